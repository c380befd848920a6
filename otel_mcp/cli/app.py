"""Commands with their options, help and exit codes; each imports its work when it runs."""

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
    help="Show the MCP sessions of all replicas, from Redis.",
    epilog="Exit codes: 0 ok, 1 not found, 2 usage, 3 Redis cannot be used, 130 interrupted.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
listing = typer.Typer(rich_markup_mode=None, invoke_without_command=True)
app.add_typer(listing, name="sessions")
_UNIT_SECONDS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def _seconds(text: str | None) -> float | None:
    """Return the seconds of ``90s``, ``15m``, ``2h``, ``1d`` or a plain number."""
    if text is None:
        return None
    number, unit = (text[:-1], text[-1:]) if text[-1:] in _UNIT_SECONDS else (text, "s")
    try:
        value = float(number) * _UNIT_SECONDS[unit]
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e10:
        raise Failure(Code.USAGE, f"{clean(text)} is not a duration", "for example 90s, 15m, 2h or 1d")
    return value


def _color(context: typer.Context, given: When | None) -> When:
    """Return the color option of the command, else the one before the command."""
    return given or context.find_root().obj or "auto"


def _option(*names: str, help: str, **more: Any) -> Any:
    return typer.Option(*names, show_default=False, help=help, **more)


Url = Annotated[str | None, _option("--redis-url", metavar="URL", help="Default: $OTEL_PYTHON_MCP_REDIS_URL.")]
Id = Annotated[str, typer.Argument(metavar="ID", help="Session id, or its first characters.")]
Service = Annotated[
    str | None, _option("--service", "-s", metavar="NAME", help="Default: $OTEL_SERVICE_NAME; 'shop-*' scans all keys.")
]
Since = Annotated[str | None, _option("--since", metavar="TIME", help="Only the last 90s, 15m, 2h, 1d...")]
Client = Annotated[str | None, _option("--client", help="Only clients whose name contains this.")]
Ended = Annotated[
    bool, typer.Option("--all", "-a", help="Include sessions that ended in the last ten minutes; scans all keys.")
]
Headers = Annotated[bool, typer.Option("--headers/--no-headers", help="Show column titles.")]
Color = Annotated[
    When | None,
    _option("--color", callback=_color, help="Overrides NO_COLOR and TERM=dumb."),
]
_OUTPUT: Final = _option("--output", "-o", help="Default: table in a terminal, tsv in a pipe.")
Output = Annotated[Literal["table", "wide", "tsv", "name", "json", "jsonl"] | None, _OUTPUT]


def run(arguments: Sequence[str] | None) -> int:
    """Run one command line and return its exit code."""
    try:
        app(arguments, prog_name="otel-mcp")
    except SystemExit as ended:
        # A closed pipe is not an error, as in `otel-mcp sessions | head`.
        is_closed = isinstance(ended.__context__, BrokenPipeError)
        return ended.code if isinstance(ended.code, int) and not is_closed else Code.FINE
    except Failure as failure:
        if failure.message:
            say(f"otel-mcp: {clean(failure.message)}")
        if failure.hint:
            say(f"  {failure.hint}")
        return failure.code
    except KeyboardInterrupt:
        return Code.INTERRUPTED
    except Exception as error:
        # Without the text of the error, which may contain a password.
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
    """Read the options that stand before the command."""
    context.obj = color


@listing.callback()
@listing.command("ls")
def sessions(
    context: typer.Context,
    service: Service = None,
    client: Client = None,
    tenant: Annotated[str | None, typer.Option(help="Only this tenant.")] = None,
    outcome: Annotated[str | None, typer.Option(help="live, gave_up, looped...; all but live scan all keys.")] = None,
    tool: Annotated[str | None, typer.Option(help="Only sessions whose newest calls include this tool.")] = None,
    since: Since = None,
    probes: Annotated[bool, typer.Option("--probes", help="Include monitors and registries.")] = False,
    ended: Ended = False,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Show at most this many.")] = 50,
    sort_by: Annotated[
        Literal["idle", "age", "calls", "wrong", "failed", "client"], typer.Option(help="Order of the rows.")
    ] = "idle",
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Refresh until Ctrl-C; in a pipe, print changed sessions.")
    ] = False,
    output: Output = None,
    headers: Headers = True,
    redis_url: Url = None,
    color: Color = None,
) -> None:
    """List the newest sessions, one line each."""
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
    """Show one session, one line for each call."""
    from otel_mcp.cli.showing import show as show_story

    show_story(Terminal(color), redis_url, session_id, service, output, headers=headers)


@app.command()
def tail(
    service: Service = None,
    tool: Annotated[str | None, typer.Option(help="Only this tool, or a pattern such as 'refund*'.")] = None,
    client: Client = None,
    errors: Annotated[bool, typer.Option("--errors", help="Only calls that did not succeed.")] = False,
    since: Since = "0s",
    limit: Annotated[int | None, typer.Option("--limit", "-n", min=1, help="Stop after this many calls.")] = None,
    output: Annotated[Literal["table", "tsv", "jsonl"] | None, _OUTPUT] = None,
    redis_url: Url = None,
    color: Color = None,
) -> None:
    """Follow the calls of all replicas.

    Shows calls as they finish, until Ctrl-C.
    """
    from otel_mcp.cli.following import Query
    from otel_mcp.cli.following import tail as tail_calls

    query = Query(service, client, tool=tool, since=_seconds(since))
    tail_calls(Terminal(color), redis_url, query, limit=limit, errors=errors, form=output)


@app.command()
def top(service: Service = None, redis_url: Url = None, color: Color = None) -> None:
    """Watch the busiest sessions and tools.

    Redraws one screen with the last five minutes, until Ctrl-C.
    """
    from otel_mcp.cli.following import top as watch_top

    watch_top(Terminal(color), redis_url, service)


@app.command()
def tools(
    service: Service = None,
    since: Since = None,
    ended: Ended = False,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Read this many of the newest sessions.")] = 1000,
    sort_by: Annotated[
        Literal["calls", "wrong", "failed", "p95", "bytes", "listed", "name"], typer.Option(help="Order of the rows.")
    ] = "calls",
    output: Output = None,
    headers: Headers = True,
    redis_url: Url = None,
    color: Color = None,
) -> None:
    """Sum up the calls of each tool.

    Counts, failures, durations and bytes come from the newest calls of the sessions.
    """
    from otel_mcp.cli.listing import Query
    from otel_mcp.cli.tools import tools as list_tools

    query = Query(service, since=_seconds(since), ended=ended, limit=limit)
    list_tools(Terminal(color), redis_url, query, sort_by, output, headers=headers)


@app.command()
def rm(
    session_id: Id,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation; scripts need this.")] = False,
    redis_url: Url = None,
    color: Color = None,
) -> None:
    """End a session and remove its document.

    A replica reports the end.
    """
    from otel_mcp.cli.showing import remove

    remove(Terminal(color), redis_url, session_id, yes=yes)


@app.command()
def who(
    subject: Annotated[str, typer.Argument(metavar="NAME", help="User name or 'sub'; '-' reads a credential.")],
    issuer: Annotated[str | None, _option("--issuer", help="'iss' of the tokens.")] = None,
    client_id: Annotated[str | None, _option("--client-id", help="OAuth client of verified tokens.")] = None,
    service: Service = None,
    output: Output = None,
    headers: Headers = True,
    redis_url: Url = None,
    color: Color = None,
) -> None:
    """Show the hashes that stand for a person.

    There is one for each way in which a server may know the person. For a bearer token or an API key that is not a
    JWT, give - and write the whole value of its header to standard input.
    """
    from otel_mcp.cli.who import who as find

    find(Terminal(color), redis_url, service, subject, issuer, client_id, output, headers=headers)


@app.command()
def settings(output: Output = None, headers: Headers = True, color: Color = None) -> None:
    """Show all settings, without secrets."""
    from otel_mcp.cli.rows import Field, write
    from otel_mcp.settings import PREFIX, Settings, load

    current = load()

    def text(name: str) -> str | None:
        value: object = getattr(current, name)
        if isinstance(value, tuple):
            return ",".join(cast("tuple[str, ...]", value)) or None
        if isinstance(value, bool):
            return str(value).lower()
        shown = f"{value:.12g}" if isinstance(value, float) else str(value)
        return None if value is None else "(set)" if name in {"redis_url", "hash_key"} else shown

    names = Field[str]("SETTING", lambda name: f"{PREFIX}{name.upper()}", "name")
    fields = (names, Field[str]("VALUE", text, "value"))
    write(Terminal(color), list(Settings.model_fields), fields, output, "setting", headers=headers)


@app.command()
def doctor(
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="-- COMMAND", show_default=False, help="Command that starts the server."),
    ] = None,
    output: Annotated[Literal["text", "json"], _option("--output", "-o", help="Format of the report.")] = "text",
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 on warnings, too.")] = False,
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds to wait for the app's import.")] = 8.0,
    redis_url: Url = None,
    color: Color = None,
) -> None:
    """Find what keeps telemetry from arriving.

    Shows a line that fixes each problem, and exits with 1 if there is one. With a command, the app is imported as its
    server would do; no server is started.
    """
    from otel_mcp.cli.doctor import examine

    examine(Terminal(color), command or [], redis_url, timeout, is_json=output == "json", is_strict=strict)
