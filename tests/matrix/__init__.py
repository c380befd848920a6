"""Older servers, each in a virtual environment of its own: run by CI as ``python -m tests.matrix``."""
