"""What can be typed: names, options and help of each command. The work is in other modules, imported when needed."""

from __future__ import annotations

from typing import Annotated

import typer

from otel_mcp.cli.app import Color, Url, app
from otel_mcp.cli.terminal import Code, Failure, Terminal, When, clean

PREFIX = "OTEL_PYTHON_MCP_"


@app.command()
def sessions(redis_url: Url = None, limit: int = 50, service: str | None = None, color: Color = When.AUTO) -> None:
    """List the newest sessions."""
    import asyncio

    terminal = Terminal(color)
    for state in asyncio.run(_reader(redis_url).newest(limit, service)):
        ended = state.ended.reason if state.ended else "live"
        terminal.data("\t".join(clean(part) for part in (state.session_id, state.client_name, ended)))
    terminal.flush()


@app.command()
def show(session_id: Annotated[str, typer.Argument(metavar="ID")], redis_url: Url = None) -> None:
    """Show one session and its newest tool calls."""
    import asyncio

    terminal = Terminal()
    state = asyncio.run(_reader(redis_url).one(session_id))
    if state is None:
        raise Failure(Code.NOT_FOUND, f"no session {session_id}")
    terminal.data(state.model_dump_json(exclude_none=True))
    terminal.flush()


@app.command()
def settings() -> None:
    """Show every setting as this environment gives it, passwords left out."""
    from otel_mcp.settings import Settings, load

    terminal, current = Terminal(), load()
    for name in Settings.model_fields:
        value = getattr(current, name)
        if value is not None and name in {"redis_url", "hash_key"}:
            value = "(set)"
        terminal.data(f"{PREFIX}{name.upper()}\t{clean(value)}")
    terminal.flush()


def _reader(redis_url: str | None):
    from otel_mcp.cli.reading import Reader
    from otel_mcp.settings import load

    current = load(redis_url=redis_url)
    if current.redis_url is None:
        raise Failure(Code.USAGE, "no Redis", f"give --redis-url or set {PREFIX}REDIS_URL")
    return Reader(current)


@app.command()
def doctor(
    command: Annotated[
        list[str] | None, typer.Argument(metavar="-- COMMAND", show_default=False, help="How the server is started.")
    ] = None,
    output: Annotated[str, typer.Option("-o", "--output", metavar="text|json", help="How to report.")] = "text",
    strict: Annotated[bool, typer.Option("--strict", help="Warnings count as well for the exit code.")] = False,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.1, help="Seconds that importing the app may take.")
    ] = 8.0,
    redis_url: Url = None,
    color: Color = When.AUTO,
) -> None:
    """Find out what keeps telemetry from arriving, each with the line that mends it; exit code 1 where something does.

    With a command the app is imported as its server would; no server is started.
    """
    import asyncio
    import os

    from otel_mcp.cli.doctor.diagnosis import diagnose
    from otel_mcp.cli.doctor.report import as_json, as_lines

    if output not in {"text", "json"}:
        raise Failure(Code.USAGE, f"no output {output}", "-o text or -o json")
    terminal = Terminal(color)
    found = asyncio.run(diagnose(command or [], os.environ, redis_url=redis_url, seconds=timeout))
    if output == "json":
        terminal.data(as_json(found))
    else:
        as_lines(terminal, found)
    terminal.flush()
    if found.count("FAIL") or (strict and found.count("warn")):
        raise Failure(Code.NOT_FOUND)
