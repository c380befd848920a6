"""A tool that asks a person, on replicas that share the key of what it remembers meanwhile."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import anyio
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.request_state import RequestStateSecurity

sys.path.append(str(Path(__file__).parents[4]))
from tests.support.rounds import ask

mcp = MCPServer(
    "shop", version="1.0", log_level="WARNING", request_state_security=RequestStateSecurity(keys=["k" * 32])
)


@mcp.tool()
async def approve(ctx: Context[Any], a: int) -> Any:
    """Ask twice; each time takes as long as a database does."""
    await anyio.sleep(0.25)
    return ask(ctx.request_state, answered=bool(ctx.input_responses))


app = mcp.streamable_http_app(stateless_http=True)
