"""Writes sessions to the store in the background, and asks the store about them."""
