"""A shop on FastMCP. It knows nothing of how it is observed."""

from __future__ import annotations

import os

from fastmcp import FastMCP
from fastmcp.exceptions import ToolError
from mcp.shared.exceptions import MCPError
from opentelemetry import trace

tracer = trace.get_tracer("shop")
mcp: FastMCP = FastMCP("shop", version="1.0")
options = {"stateless_http": bool(os.environ.get("STATELESS"))}


@mcp.tool
async def add(a: int, b: int) -> int:
    """Add, in a span of its own."""
    with tracer.start_as_current_span("adding"):
        return a + b


@mcp.tool
def worker() -> int:
    """Tell which process serves; a plain function runs in a thread."""
    with tracer.start_as_current_span("looking"):
        return os.getpid()


@mcp.tool
async def echo(text: str) -> str:
    """Say it back."""
    return f"you said {text}"


@mcp.tool
async def fail(text: str) -> str:
    """Refuse, and say why."""
    raise ToolError(f"no: {text}")


@mcp.tool
async def crash(text: str) -> str:
    """Break."""
    raise RuntimeError(f"broken by {text}")


@mcp.tool
async def reject(text: str) -> str:
    """Answer with an error of JSON-RPC, which is no result."""
    raise MCPError(-32050, f"rejected: {text}")


app = mcp.http_app(stateless_http=options["stateless_http"])
