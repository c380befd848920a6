"""What otel_mcp costs: see ``README.md``."""
