"""The app within a FastAPI application."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from app import app as mcp_app
from app import mcp
from fastapi import FastAPI


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncGenerator[None]:
    """Run the MCP sessions: FastAPI starts no lifespan but its own."""
    async with mcp.session_manager.run():
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/prices")
def prices() -> dict[str, float]:
    """Answer ordinary HTTP clients."""
    return {"lamp": 49.0}


app.mount("/shop", mcp_app)
