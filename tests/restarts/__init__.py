"""What restarts do to sessions, counted: run by CI as ``python -m tests.restarts``."""
