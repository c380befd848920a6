"""A tool that asks a person, on replicas that share the key of what it remembers meanwhile."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.request_state import RequestStateSecurity
from mcp_types import SamplingMessage, TextContent
from pydantic import BaseModel

from otel_mcp.exchange import rounds
from otel_mcp.sessions import lookups, worker

sys.path.append(str(Path(__file__).parents[4]))
from tests.support.rounds import ask

# What another replica has asked is looked for twice, briefly, and not found on a machine that is too busy: the round is
# then a call of its own in the metrics.
for module, name, seconds in (
    (rounds, "_PAUSE", 1.0),
    (rounds, "_LOST", 30.0),
    (lookups, "PATIENCE", 20.0),
    (worker, "PATIENCE", 20.0),
):
    setattr(module, name, seconds)

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
