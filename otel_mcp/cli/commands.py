"""Commands of ``otel-mcp``. They read, and never write."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from otel_mcp.cli.reading import Reader
from otel_mcp.sessions.state import SessionState
from otel_mcp.settings import PREFIX, Settings, load

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Look at MCP sessions as Redis holds them.")
console = Console()

Url = Annotated[str | None, typer.Option("--redis-url", help=f"Default: ${PREFIX}REDIS_URL")]


@app.command()
def sessions(redis_url: Url = None, limit: int = 50, service: str | None = None) -> None:
    """List the newest sessions."""
    states = asyncio.run(_reader(redis_url).newest(limit, service))
    table = Table("session", "service", "client", "source", "last activity", "calls", "errors", "state")
    for state in states:
        table.add_row(
            state.session_id,
            state.service or "",
            f"{state.client_name or '?'} {state.client_version or ''}",
            state.source or "",
            f"{state.last_activity:%Y-%m-%d %H:%M:%S}" if state.last_activity else "",
            str(state.tool_call_count),
            str(state.error_count),
            state.ended.reason if state.ended else "live",
        )
    console.print(table)


@app.command()
def show(session_id: str, redis_url: Url = None) -> None:
    """Show one session and its newest tool calls."""
    state = asyncio.run(_reader(redis_url).one(session_id))
    if state is None:
        console.print(f"no session {session_id}", style="red", markup=False)
        raise typer.Exit(1)
    console.print_json(state.model_dump_json(exclude_none=True, exclude={"tool_calls"}))
    console.print(_calls(state))


@app.command()
def settings() -> None:
    """Show every setting as this environment gives it, passwords left out."""
    table = Table("variable", "value")
    current = load()
    for name in Settings.model_fields:
        value = getattr(current, name)
        if value is not None and name in {"redis_url", "hash_key"}:
            value = "(set)"
        table.add_row(f"{PREFIX}{name.upper()}", str(value))
    console.print(table)


def _reader(redis_url: str | None) -> Reader:
    current = load(redis_url=redis_url)
    if current.redis_url is None:
        console.print(f"no Redis: give --redis-url or set {PREFIX}REDIS_URL", style="red")
        raise typer.Exit(2)
    return Reader(current)


def _calls(state: SessionState) -> Table:
    table = Table("started", "tool", "duration", "error", "bytes", "trace")
    for call in state.tool_calls:
        table.add_row(
            f"{call.started_at:%H:%M:%S.%f}"[:-3],
            call.tool_name,
            f"{call.duration:.3f} s",
            call.error_type or "",
            "" if call.result_bytes is None else str(call.result_bytes),
            call.trace_id or "",
        )
    return table
