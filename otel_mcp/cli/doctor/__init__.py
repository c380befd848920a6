"""``otel-mcp doctor``: find out what keeps telemetry of an MCP server from arriving, and say how to mend it."""
