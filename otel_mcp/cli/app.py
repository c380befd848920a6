"""The application: how it starts and ends, and the options that commands share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final

import typer

from otel_mcp.cli.output import Format
from otel_mcp.cli.terminal import Code, Failure, When, clean, closed, say
from otel_mcp.version import __version__

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,  # Plain text: starts faster, and stays readable in a pipe.
    pretty_exceptions_enable=False,
    help="Look at MCP sessions as Redis holds them.",
    epilog="Exit codes: 0 fine, 1 not found, 2 usage, 3 Redis cannot be used, 130 interrupted.",
    context_settings={"help_option_names": ["-h", "--help"]},
)

_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}

Url = Annotated[
    str | None,
    typer.Option("--redis-url", metavar="URL", show_default=False, help="Default: $OTEL_PYTHON_MCP_REDIS_URL."),
]
Id = Annotated[str, typer.Argument(metavar="ID", help="The id of a session, or its beginning.")]
Service = Annotated[
    str | None,
    typer.Option(
        "--service", "-s", metavar="NAME", show_default=False, help="Default: $OTEL_SERVICE_NAME; 'shop-*': a scan."
    ),
]
Since = Annotated[
    str | None,
    typer.Option("--since", metavar="TIME", show_default=False, help="Of the last 90s, 15m, 2h, 1d..."),
]
Output = Annotated[
    Format | None,
    typer.Option("--output", "-o", show_default=False, help="Default: table on a terminal, tsv in a pipe."),
]
Headers = Annotated[bool, typer.Option("--headers/--no-headers", help="Whether tables have a header.")]
Color = Annotated[When, typer.Option("--color", help="NO_COLOR and TERM=dumb mean never, unless this is given.")]


def seconds(span: str | None) -> float | None:
    """The seconds of ``90s``, ``15m``, ``2h``, ``1d`` or a plain number.

    Raises:
        Failure: it is none of these.
    """
    if span is None:
        return None
    number, unit = (span[:-1], span[-1:]) if span[-1:] in _UNITS else (span, "s")
    try:
        value = float(number) * _UNITS[unit]
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e10:
        raise Failure(Code.USAGE, f"{span!r} is no span of time", "for example 90s, 15m, 2h or 1d")
    return value


def run(arguments: Sequence[str] | None) -> int:
    """Run one command line; the exit code."""
    # The commands register themselves.
    import otel_mcp.cli.commands  # pyright: ignore[reportUnusedImport]  # noqa: F401

    try:
        app(arguments, prog_name="otel-mcp")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else Code.FINE
    except Failure as failure:
        if failure.message:
            say(f"otel-mcp: {clean(failure.message)}")
        if failure.hint:
            say(f"  {failure.hint}")
        return failure.code
    except KeyboardInterrupt:
        return Code.INTERRUPTED
    except BrokenPipeError:
        return closed().code
    return Code.FINE


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"otel-mcp {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Take what stands before the command."""
