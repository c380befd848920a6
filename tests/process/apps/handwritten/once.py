"""A program that calls its own server in a loop that ends, without any HTTP server, and goes."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import httpx
from app import app

from otel_mcp import MCPMiddleware


async def main(calls: int) -> None:
    """Shake hands, and call."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(MCPMiddleware(app)), base_url="http://test") as http:

        async def post(number: int, method: str, params: dict[str, Any]) -> httpx.Response:
            message = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
            return await http.post("/mcp", json=message, headers=headers)

        headers = {"accept": "application/json, text/event-stream"}
        answer = await post(0, "initialize", {"protocolVersion": "2025-11-25", "clientInfo": {"name": "own"}})
        headers["mcp-session-id"] = answer.headers["mcp-session-id"]
        for number in range(calls):
            await post(number + 1, "tools/call", {"name": "add", "arguments": {}})


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
