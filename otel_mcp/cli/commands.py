"""What can be typed: names, options and help of each command. The work is in other modules, imported when needed."""

from __future__ import annotations

from typing import Annotated

import typer

from otel_mcp.cli.app import Color, Headers, Id, Output, Service, Since, Url, app, seconds
from otel_mcp.cli.output import SortBy, StoryFormat, TailFormat, ToolsBy, default
from otel_mcp.cli.terminal import Code, Failure, Terminal, When, clean

listing = typer.Typer(rich_markup_mode=None, invoke_without_command=True)
app.add_typer(listing, name="sessions")


@listing.callback()
@listing.command("ls")
def sessions(
    context: typer.Context,
    service: Service = None,
    client: Annotated[str | None, typer.Option(help="Clients whose name holds this.")] = None,
    outcome: Annotated[str | None, typer.Option(help="live, worked, expired... Others than live: a scan.")] = None,
    tool: Annotated[str | None, typer.Option(help="Sessions that called this tool lately.")] = None,
    since: Since = None,
    probes: Annotated[bool, typer.Option("--probes", help="Show monitors and registries, too.")] = False,
    ended: Annotated[
        bool, typer.Option("--all", "-a", help="Also those that ended within ten minutes, found by a scan of all keys.")
    ] = False,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most so many.")] = 50,
    sort_by: Annotated[SortBy, typer.Option(help="What comes first.")] = SortBy.IDLE,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on until Ctrl-C; in a pipe: what changes.")] = False,
    output: Output = None,
    headers: Headers = True,
    redis_url: Url = None,
    color: Color = When.AUTO,
) -> None:
    """List the newest sessions, a line each."""
    if context.invoked_subcommand is not None:
        return
    from otel_mcp.cli.listing import Query
    from otel_mcp.cli.listing import sessions as list_sessions

    terminal = Terminal(color)
    query = Query(service, client, outcome, tool, seconds(since), probes, ended, limit, sort_by)
    list_sessions(terminal, redis_url, query, default(terminal, output), headers, watch)


@app.command()
def show(
    session_id: Id,
    service: Service = None,
    output: Annotated[
        StoryFormat | None,
        typer.Option("--output", "-o", show_default=False, help="Default: table on a terminal, tsv in a pipe."),
    ] = None,
    headers: Headers = True,
    redis_url: Url = None,
    color: Color = When.AUTO,
) -> None:
    """Show what happened in one session, a line for each call."""
    from otel_mcp.cli.showing import show as show_story

    show_story(Terminal(color), redis_url, session_id, service, output, headers)


@app.command()
def tail(
    service: Service = None,
    tool: Annotated[str | None, typer.Option(help="Calls of this tool; refund* is a pattern.")] = None,
    client: Annotated[str | None, typer.Option(help="Clients whose name holds this.")] = None,
    errors: Annotated[bool, typer.Option("--errors", help="Only calls that did not work.")] = False,
    since: Since = "0s",
    limit: Annotated[int | None, typer.Option("--limit", "-n", min=1, help="End after so many calls.")] = None,
    output: Annotated[
        TailFormat | None,
        typer.Option("--output", "-o", show_default=False, help="Default: table on a terminal, tsv in a pipe."),
    ] = None,
    redis_url: Url = None,
    color: Color = When.AUTO,
) -> None:
    """Show calls as they land, of all replicas, until Ctrl-C."""
    from otel_mcp.cli.tailing import Filter
    from otel_mcp.cli.tailing import tail as tail_calls

    terminal, wanted = Terminal(color), Filter(tool, client, errors)
    tail_calls(terminal, redis_url, service, wanted, seconds(since) or 0.0, limit, output)


@app.command()
def top(service: Service = None, redis_url: Url = None, color: Color = When.AUTO) -> None:
    """Watch the busiest sessions and tools of the last five minutes on one screen, until Ctrl-C."""
    from otel_mcp.cli.top import top as watch_top

    watch_top(Terminal(color), redis_url, service)


@app.command()
def tools(
    service: Service = None,
    since: Since = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Look at so many of the newest sessions.")] = 1000,
    sort_by: Annotated[ToolsBy, typer.Option(help="What comes first.")] = ToolsBy.CALLS,
    output: Output = None,
    headers: Headers = True,
    redis_url: Url = None,
    color: Color = When.AUTO,
) -> None:
    """List the tools: calls, wrong and failed ones, durations, bytes; from the newest calls of the sessions."""
    from otel_mcp.cli.tools import tools as list_tools

    terminal = Terminal(color)
    list_tools(terminal, redis_url, service, seconds(since), limit, sort_by, default(terminal, output), headers)


@app.command()
def rm(
    session_id: Id,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask; scripts have to say so.")] = False,
    redis_url: Url = None,
    color: Color = When.AUTO,
) -> None:
    """End a session and remove its document; the replicas report its end."""
    from otel_mcp.cli.removing import remove

    remove(Terminal(color), redis_url, session_id, yes)


@app.command()
def settings(color: Color = When.AUTO) -> None:
    """Show every setting as this environment gives it, secrets left out."""
    from otel_mcp.settings import PREFIX, Settings, load

    terminal, current = Terminal(color), load()
    for name in Settings.model_fields:
        value = getattr(current, name)
        if value is not None and name in {"redis_url", "hash_key"}:
            value = "(set)"
        terminal.data(f"{PREFIX}{name.upper()}\t{clean(value)}")
    terminal.flush()


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
