"""The server of both sides: a tool that takes as long as a query to a database, and one that fails."""

from __future__ import annotations

import asyncio

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

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


app = mcp.streamable_http_app(stateless_http=True)
