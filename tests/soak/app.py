"""The server of the soak: one tool set behind every transport there is, and an ordinary route.

It knows our internals in one place, the route that counts them; and it makes the few bounds that are constants so
small that they are reached while the server warms up.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib import import_module

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Mount, Route

from tests.soak.inside import counts
from tests.soak.leaks import LEAKS

OBSERVED = "otel_mcp" not in os.environ.get("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "")
leak = LEAKS.get(os.environ.get("SOAK_LEAK", ""), (None, ""))[0]


def make(name: str) -> MCPServer:
    """A server with tools that work, refuse, break, take long, and use our API."""
    mcp = MCPServer(name, version="1.0", log_level="CRITICAL")

    @mcp.tool()
    async def add(a: int, b: int) -> int:
        if leak is not None:
            leak()
        return a + b

    @mcp.tool()
    def threaded(text: str) -> str:
        return text * 200

    @mcp.tool()
    async def slow(seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "done"

    @mcp.tool()
    async def fail(text: str) -> str:
        raise ToolError(text)

    @mcp.tool()
    async def crash(text: str) -> str:
        raise RuntimeError(text)

    @mcp.tool()
    async def note(text: str) -> int:
        """Keep something in the session."""
        if not OBSERVED:
            return 0
        from otel_mcp import current_session
        from otel_mcp.api import sessions

        known = current_session()
        if known is None:
            return 0
        state = await sessions().get_or_create(known.session_id)
        state.attributes["note"] = text
        await sessions().save(state)
        return state.tool_call_count

    return mcp


stateful, stateless, sse = make("stateful"), make("stateless"), make("sse")
stateful_app = stateful.streamable_http_app(session_idle_timeout=5.0)
stateless_app = stateless.streamable_http_app(stateless_http=True)


@asynccontextmanager
async def lifespan(_app: Starlette) -> AsyncGenerator[None]:
    """Run the sessions of both; Starlette starts no lifespan of a mounted app."""
    async with AsyncExitStack() as stack:
        for server in (stateful, stateless):
            await stack.enter_async_context(server.session_manager.run())
        yield


async def inside(_request: Request) -> JSONResponse:
    return JSONResponse(counts())


async def health(_request: Request) -> PlainTextResponse:
    return PlainTextResponse("ok")


app = Starlette(
    routes=[
        Route("/inside", inside),
        Route("/health", health),
        Mount("/stateful", stateful_app),
        Mount("/stateless", stateless_app),
        Mount("/", sse.sse_app()),
    ],
    lifespan=lifespan,
)

if OBSERVED:
    # Every table that strangers fill, small enough to be full within minutes.
    for module, name in (
        ("exchange.handed_over", "_MOST"),
        ("exchange.inflight", "MAX_CALLS"),
        ("exchange.rounds", "_MOST"),
        ("exchange.session_ids", "MAX_KEPT"),
        ("identity.claims", "_MAX_KNOWN"),
        ("sessions.findings", "_SESSIONS"),
        ("sessions.flusher", "_SESSIONS"),
        ("sessions.interruptions", "KEPT"),
    ):
        loaded = import_module(f"otel_mcp.{module}")
        assert hasattr(loaded, name)
        setattr(loaded, name, 200)
