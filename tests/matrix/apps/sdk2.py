"""A server of the MCP SDK 2.x, in the mode that MODE names."""

import os

from mcp.server.mcpserver import MCPServer
from opentelemetry import _logs, trace

mode = os.environ["MODE"]
mcp = MCPServer("new", log_level="WARNING")
tracer, logger = trace.get_tracer("app"), _logs.get_logger("app")


@mcp.tool()
async def add(a: int, b: int) -> int:
    with tracer.start_as_current_span("query"):
        logger.emit(_logs.LogRecord(body="query"))
        return a + b


@mcp.tool()
async def fail() -> str:
    raise KeyError("secret")


if mode == "sse":
    app = mcp.sse_app()
else:
    app = mcp.streamable_http_app(stateless_http=mode == "stateless", json_response=mode == "json")
