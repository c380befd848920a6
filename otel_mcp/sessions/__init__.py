"""Brings what happened in sessions to the store, off the path of requests."""
