"""Clients that are not written in Python, live against real servers: run by CI as ``python -m tests.hosts``."""
