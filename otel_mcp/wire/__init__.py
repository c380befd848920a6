"""Parse MCP over HTTP, by functions without I/O and without OpenTelemetry."""
