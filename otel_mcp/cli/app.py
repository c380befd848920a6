"""What can be typed: names, options and help of each command, and how it ends. The work is imported when it runs."""

from __future__ import annotations

import os
import traceback
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal, cast

import typer

from otel_mcp.cli.terminal import Code, Failure, Terminal, When, clean, say
from otel_mcp.version import __version__

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,  # Plain text: starts faster, and stays readable in a pipe.
    pretty_exceptions_enable=False,
    help="Look at MCP sessions as Redis holds them.",
    epilog="Exit codes: 0 fine, 1 not found, 2 usage, 3 Redis cannot be used, 130 interrupted.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
listing = typer.Typer(rich_markup_mode=None, invoke_without_command=True)
app.add_typer(listing, name="sessions")
_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def _seconds(span: str | None) -> float | None:
    """Return the seconds of ``90s``, ``15m``, ``2h``, ``1d`` or a plain number."""
    if span is None:
        return None
    number, unit = (span[:-1], span[-1:]) if span[-1:] in _UNITS else (span, "s")
    try:
        value = float(number) * _UNITS[unit]
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e10:
        raise Failure(Code.USAGE, f"{clean(span)} is no span of time", "for example 90s, 15m, 2h or 1d")
    return value


def _color(context: typer.Context, given: When | None) -> When:
    """Return what a command is given, else what stands before it."""
    return given or context.find_root().obj or "auto"


def _option(*names: str, help: str, **more: Any) -> Any:
    return typer.Option(*names, show_default=False, help=help, **more)


Url = Annotated[str | None, _option("--redis-url", metavar="URL", help="Default: $OTEL_PYTHON_MCP_REDIS_URL.")]
Id = Annotated[str, typer.Argument(metavar="ID", help="The id of a session, or its beginning.")]
Service = Annotated[
    str | None, _option("--service", "-s", metavar="NAME", help="Default: $OTEL_SERVICE_NAME; 'shop-*': a scan.")
]
Since = Annotated[str | None, _option("--since", metavar="TIME", help="Of the last 90s, 15m, 2h, 1d...")]
Client = Annotated[str | None, _option("--client", help="Clients whose name holds this.")]
Ended = Annotated[
    bool, typer.Option("--all", "-a", help="Also sessions that ended within ten minutes, by a scan of all keys.")
]
Headers = Annotated[bool, typer.Option("--headers/--no-headers", help="Whether tables have a header.")]
Color = Annotated[
    When | None,
    _option("--color", callback=_color, help="NO_COLOR and TERM=dumb mean never, unless this is given."),
]
_OUTPUT: Final = _option("--output", "-o", help="Default: table on a terminal, tsv in a pipe.")
Output = Annotated[Literal["table", "wide", "tsv", "name", "json", "jsonl"] | None, _OUTPUT]


def run(arguments: Sequence[str] | None) -> int:
    """Run one command line; the exit code."""
    try:
        app(arguments, prog_name="otel-mcp")
    except SystemExit as ended:
        # That the reader of a pipe has gone is no error.
        has_gone = isinstance(ended.__context__, BrokenPipeError)
        return ended.code if isinstance(ended.code, int) and not has_gone else Code.FINE
    except Failure as failure:
        if failure.message:
            say(f"otel-mcp: {clean(failure.message)}")
        if failure.hint:
            say(f"  {failure.hint}")
        return failure.code
    except KeyboardInterrupt:
        return Code.INTERRUPTED
    except Exception as error:
        # Without its text, which may hold a password.
        frame = traceback.extract_tb(error.__traceback__)[-1]
        say(f"otel-mcp: {type(error).__name__} in {os.path.basename(frame.filename)}:{frame.lineno}, please report it")
        return Code.NOT_FOUND
    return Code.FINE


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"otel-mcp {__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    color: Color = None,
) -> None:
    """Take what stands before the command."""
    context.obj = color


@listing.callback()
@listing.command("ls")
def sessions(
    context: typer.Context,
    service: Service = None,
    client: Client = None,
    tenant: Annotated[str | None, typer.Option(help="Sessions of this tenant.")] = None,
    outcome: Annotated[str | None, typer.Option(help="live, gave_up, looped... Others than live: a scan.")] = None,
    tool: Annotated[str | None, typer.Option(help="Sessions that called this tool lately.")] = None,
    since: Since = None,
    probes: Annotated[bool, typer.Option("--probes", help="Show monitors and registries, too.")] = False,
    ended: Ended = False,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most so many.")] = 50,
    sort_by: Annotated[
        Literal["idle", "age", "calls", "wrong", "failed", "client"], typer.Option(help="What comes first.")
    ] = "idle",
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on until Ctrl-C; in a pipe: what changes.")] = False,
    output: Output = None,
    headers: Headers = True,
    redis_url: Url = None,
    color: Color = None,
) -> None:
    """List the newest sessions, a line each."""
    if context.invoked_subcommand is not None:
        return
    from otel_mcp.cli.listing import Query
    from otel_mcp.cli.listing import sessions as list_sessions

    query = Query(service, client, tenant, outcome, tool, _seconds(since), probes, ended, limit, sort_by)
    list_sessions(Terminal(color), redis_url, query, output, headers=headers, watch=watch)


@app.command()
def show(
    session_id: Id,
    service: Service = None,
    output: Annotated[Literal["table", "tsv", "json", "md", "html"] | None, _OUTPUT] = None,
    headers: Headers = True,
    redis_url: Url = None,
    color: Color = None,
) -> None:
    """Show what happened in one session, a line for each call."""
    from otel_mcp.cli.showing import show as show_story

    show_story(Terminal(color), redis_url, session_id, service, output, headers=headers)


@app.command()
def tail(
    service: Service = None,
    tool: Annotated[str | None, typer.Option(help="Calls of this tool; refund* is a pattern.")] = None,
    client: Client = None,
    errors: Annotated[bool, typer.Option("--errors", help="Only calls that did not work.")] = False,
    since: Since = "0s",
    limit: Annotated[int | None, typer.Option("--limit", "-n", min=1, help="End after so many calls.")] = None,
    output: Annotated[Literal["table", "tsv", "jsonl"] | None, _OUTPUT] = None,
    redis_url: Url = None,
    color: Color = None,
) -> None:
    """Show calls as they land, of all replicas, until Ctrl-C."""
    from otel_mcp.cli.following import Query
    from otel_mcp.cli.following import tail as tail_calls

    query = Query(service, client, tool=tool, since=_seconds(since))
    tail_calls(Terminal(color), redis_url, query, limit=limit, errors=errors, form=output)


@app.command()
def top(service: Service = None, redis_url: Url = None, color: Color = None) -> None:
    """Watch the busiest sessions and tools of the last five minutes on one screen, until Ctrl-C."""
    from otel_mcp.cli.following import top as watch_top

    watch_top(Terminal(color), redis_url, service)


@app.command()
def tools(
    service: Service = None,
    since: Since = None,
    ended: Ended = False,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Look at so many of the newest sessions.")] = 1000,
    sort_by: Annotated[
        Literal["calls", "wrong", "failed", "p95", "bytes", "name"], typer.Option(help="What comes first.")
    ] = "calls",
    output: Output = None,
    headers: Headers = True,
    redis_url: Url = None,
    color: Color = None,
) -> None:
    """List the tools: calls, wrong and failed ones, durations, bytes; from the newest calls of the sessions."""
    from otel_mcp.cli.listing import Query
    from otel_mcp.cli.tools import tools as list_tools

    query = Query(service, since=_seconds(since), ended=ended, limit=limit)
    list_tools(Terminal(color), redis_url, query, sort_by, output, headers=headers)


@app.command()
def rm(
    session_id: Id,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask; scripts have to say so.")] = False,
    redis_url: Url = None,
    color: Color = None,
) -> None:
    """End a session and remove its document; the replicas report its end."""
    from otel_mcp.cli.showing import remove

    remove(Terminal(color), redis_url, session_id, yes=yes)


@app.command()
def settings(output: Output = None, headers: Headers = True, color: Color = None) -> None:
    """Show every setting as this environment gives it, secrets left out."""
    from otel_mcp.cli.rows import Field, write
    from otel_mcp.settings import PREFIX, Settings, load

    current = load()

    def value(name: str) -> str | None:
        found: object = getattr(current, name)
        if isinstance(found, tuple):
            return ",".join(cast("tuple[str, ...]", found)) or None
        if isinstance(found, bool):
            return str(found).lower()
        text = f"{found:.12g}" if isinstance(found, float) else str(found)
        return None if found is None else "(set)" if name in {"redis_url", "hash_key"} else text

    names = Field[str]("SETTING", lambda name: f"{PREFIX}{name.upper()}", "name")
    fields = (names, Field[str]("VALUE", value, "value"))
    write(Terminal(color), list(Settings.model_fields), fields, output, "setting", headers=headers)


@app.command()
def doctor(
    command: Annotated[
        list[str] | None, typer.Argument(metavar="-- COMMAND", show_default=False, help="How the server is started.")
    ] = None,
    output: Annotated[Literal["text", "json"], _option("--output", "-o", help="How to report.")] = "text",
    strict: Annotated[bool, typer.Option("--strict", help="Warnings count as well for the exit code.")] = False,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.1, help="Seconds that importing the app may take.")
    ] = 8.0,
    redis_url: Url = None,
    color: Color = None,
) -> None:
    """Find out what keeps telemetry from arriving, each with the line that mends it; exit code 1 where something does.

    With a command the app is imported as its server would; no server is started.
    """
    from otel_mcp.cli.doctor import examine

    examine(Terminal(color), command or [], redis_url, timeout, is_json=output == "json", is_strict=strict)
