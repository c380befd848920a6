"""A server of the MCP SDK 2.x, in the mode that MODE names."""

import os

from mcp.server.mcpserver import MCPServer
from opentelemetry import trace

mode = os.environ["MODE"]
mcp = MCPServer("new", log_level="WARNING")
tracer = trace.get_tracer("app")


@mcp.tool()
async def add(a: int, b: int) -> int:
    with tracer.start_as_current_span("query"):
        return a + b


@mcp.tool()
async def fail() -> str:
    raise KeyError("secret")


if mode == "sse":
    app = mcp.sse_app()
else:
    app = mcp.streamable_http_app(stateless_http=mode == "stateless", json_response=mode == "json")
