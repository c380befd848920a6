"""Observe one HTTP exchange and its calls, from the request until the answer."""
