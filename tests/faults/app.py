"""The server of both sides: a tool that takes as long as a query to a database, and one that fails."""

from __future__ import annotations

import asyncio
import gc

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from opentelemetry import metrics
from starlette.requests import Request
from starlette.responses import Response

mcp = MCPServer("faults", version="1.0", log_level="CRITICAL")


@mcp.tool()
async def add(a: int, b: int) -> int:
    """Add, after 10 ms."""
    await asyncio.sleep(0.01)
    return a + b


@mcp.tool()
async def fail(text: str) -> str:
    """Refuse."""
    raise ToolError(text)


@mcp.custom_route("/settle", methods=["POST"])
async def settle(_: Request) -> Response:
    """Have the full garbage collection behind that every process makes some time after it has imported everything.

    It stops one of these servers for 100 ms and more, once: whether before or while it is measured would be chance.
    """
    gc.collect()
    return Response()


@mcp.custom_route("/export", methods=["POST"])
async def export(_: Request) -> Response:
    """Export the metrics now, and else as seldom as by default: that takes its time, and only one side has any."""
    await asyncio.to_thread(getattr(metrics.get_meter_provider(), "force_flush", int))
    return Response()


app = mcp.streamable_http_app(stateless_http=True)
