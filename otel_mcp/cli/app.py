"""The application: how it starts and ends, and the options that commands share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

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

Url = Annotated[
    str | None,
    typer.Option("--redis-url", metavar="URL", show_default=False, help="Default: $OTEL_PYTHON_MCP_REDIS_URL."),
]
Color = Annotated[When, typer.Option("--color", help="NO_COLOR and TERM=dumb mean never, unless this is given.")]


def run(arguments: Sequence[str] | None) -> int:
    """Run one command line; the exit code."""
    # The commands register themselves.
    import otel_mcp.cli.commands  # pyright: ignore[reportUnusedImport]  # noqa: F401

    try:
        app(arguments, prog_name="otel-mcp")
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
