"""A tool that asks a person, on replicas that share the key of what it remembers meanwhile."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.request_state import RequestStateSecurity
from mcp_types import SamplingMessage, TextContent
from pydantic import BaseModel

sys.path.append(str(Path(__file__).parents[4]))
from tests.support.rounds import ask

mcp = MCPServer(
    "shop", version="1.0", log_level="WARNING", request_state_security=RequestStateSecurity(keys=["k" * 32])
)


@mcp.tool()
async def approve(ctx: Context[Any], a: int) -> Any:
    """Ask twice, sooner than any store answers."""
    return ask(ctx.request_state, answered=bool(ctx.input_responses))


class Sure(BaseModel):
    """What a person is asked."""

    ok: bool


@mcp.tool()
async def consult(ctx: Context[Any]) -> bool:
    """Ask the person, then the model; both while the tool runs, as up to 2025-11-25."""
    asked = await ctx.elicit("Sure?", Sure)
    question = SamplingMessage(role="user", content=TextContent(type="text", text="Sure?"))
    await ctx.session.create_message([question], max_tokens=9, related_request_id=ctx.request_id)  # pyright: ignore[reportDeprecated]
    return asked.action == "accept"


app = mcp.streamable_http_app()
