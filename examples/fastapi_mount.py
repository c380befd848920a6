"""An MCP server inside a FastAPI application; only its path is observed as MCP.

opentelemetry-instrument uvicorn examples.fastapi_mount:app
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from mcp.server.mcpserver import MCPServer

mcp = MCPServer("catalogue", version="1.0.0")
PRICES = {"lamp": 49.0, "desk": 320.0}


@mcp.tool()
def price_of(article: str) -> float:
    """Tell what an article costs; an unknown article is a failing call."""
    return PRICES[article]


mcp_app = mcp.streamable_http_app()  # answers at /mcp


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncGenerator[None]:
    """Run the MCP sessions as long as the application: FastAPI starts no lifespan but its own."""
    async with mcp.session_manager.run():
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/prices")
def prices() -> dict[str, float]:
    """Answer ordinary HTTP clients, which otel_mcp lets through untouched."""
    return PRICES


# Last, since it takes every path that no route before it has taken.
app.mount("/", mcp_app)
