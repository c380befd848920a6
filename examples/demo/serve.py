"""Keeps the demo's server running for clients of one's own, with a live table of its sessions."""

from __future__ import annotations

import asyncio

from rich.console import Console, Group, RenderableType
from rich.live import Live

from .report_metrics import tools_table
from .report_sessions import sessions_table
from .stack import Stack


async def serve(stack: Stack, console: Console) -> None:
    """Start the server and show its sessions until cancelled.

    Raises:
        ServerFailed: The server did not come up, or ended.
    """
    with console.status("Starting the server, two processes"):
        await stack.start_server()
    console.print(f"Point an MCP client (Streamable HTTP) at [bold]{stack.url}[/]")
    console.print(f"Sessions: redis-cli -u {stack.redis_url} KEYS 'mcp_session:*'")
    console.print("Ctrl-C ends everything.\n")
    with Live(console=console, auto_refresh=False) as live:
        while True:
            stack.require_server()
            live.update(_view(stack), refresh=True)
            await asyncio.sleep(1)


def _view(stack: Stack) -> RenderableType:
    sessions = stack.sessions.sessions()
    return Group(sessions_table(sessions, stack.telemetry), tools_table(stack.telemetry))
