"""The app within a FastAPI application."""

from __future__ import annotations

from app import app as mcp_app
from fastapi import FastAPI

app = FastAPI(lifespan=mcp_app.lifespan)


@app.get("/prices")
def prices() -> dict[str, float]:
    """Answer ordinary HTTP clients."""
    return {"lamp": 49.0}


app.mount("/shop", mcp_app)
