"""A server of the MCP SDK 1.x, in the mode that MODE names."""

import os

from mcp.server.fastmcp import FastMCP
from opentelemetry import _logs, trace

mode = os.environ["MODE"]
mcp = FastMCP("old", stateless_http=mode == "stateless", json_response=mode == "json")
tracer, logger = trace.get_tracer("app"), _logs.get_logger("app")


@mcp.tool()
async def add(a: int, b: int) -> int:
    with tracer.start_as_current_span("query"):
        logger.emit(_logs.LogRecord(body="query"))
        return a + b


@mcp.tool()
async def fail() -> str:
    raise KeyError("secret")


app = mcp.sse_app() if mode == "sse" else mcp.streamable_http_app()
