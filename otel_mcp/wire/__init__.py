"""MCP over HTTP as pure functions: bytes and headers in, facts out. No I/O, no OpenTelemetry."""
