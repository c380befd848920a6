"""The official MCP conformance suite, with us and without: run by CI as ``python -m tests.conformance``."""
