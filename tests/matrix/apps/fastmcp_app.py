"""A server of FastMCP, 2 to 4, in the mode that MODE names."""

import os

from fastmcp import FastMCP
from opentelemetry import _logs, trace

mode = os.environ["MODE"]
mcp = FastMCP("old")
tracer, logger = trace.get_tracer("app"), _logs.get_logger("app")


@mcp.tool
async def add(a: int, b: int) -> int:
    with tracer.start_as_current_span("query"):
        logger.emit(_logs.LogRecord(body="query"))
        return a + b


@mcp.tool
async def fail() -> str:
    raise KeyError("secret")


app = mcp.http_app(transport="sse") if mode == "sse" else mcp.http_app(stateless_http=mode == "stateless")
