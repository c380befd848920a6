"""A server with the official MCP SDK, observed without a line of code for it.

opentelemetry-instrument uvicorn examples.sdk_server:app
opentelemetry-instrument python examples/sdk_server.py
"""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

from mcp.server.mcpserver import MCPServer

mcp = MCPServer("clock", version="1.0.0")


@mcp.tool()
def time_in(zone: str) -> str:
    """Tell what time it is in a zone such as Europe/Berlin; an unknown zone is a failing call."""
    return datetime.now(ZoneInfo(zone)).isoformat(timespec="seconds")


# For uvicorn with several workers, add stateless_http=True: a stateful session of the SDK lives in
# one process, and the next request may reach another.
app = mcp.streamable_http_app()

if __name__ == "__main__":
    mcp.run(transport="streamable-http", host="127.0.0.1", port=8000)
