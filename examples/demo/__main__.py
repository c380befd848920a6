"""Runs the demo: `python -m examples.demo`, or `python -m examples.demo serve` to keep it up."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from importlib.metadata import PackageNotFoundError, version
from types import FrameType

from rich.console import Console
from rich.markup import escape

from . import report
from .checks import judge
from .evidence import Evidence
from .progress import Progress
from .serve import serve
from .stack import ServerFailed, Stack
from .story import ClientFailed, play


def main() -> int:
    """Run what the command line asks for and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__)
    parser.add_argument("mode", nargs="?", choices=["run", "serve"], default="run")
    parser.add_argument("--port", type=int, default=8765, help="the port that serve prefers")
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 140)
    if not _instrumentation_installed():
        console.print("[red]otel-mcp-sessions is not installed here; `make demo` does it.[/]")
        return 1
    # Loopback must not go through a proxy that the environment names.
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1"
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, _interrupt)
    try:
        with Stack(port=options.port if options.mode == "serve" else 0) as stack:
            return _within(stack, console, serving=options.mode == "serve")
    except KeyboardInterrupt:
        console.print("Stopped.")
        # To be interrupted is how serving ends; the demo itself has not shown anything then.
        return 0 if options.mode == "serve" else 130


def _within(stack: Stack, console: Console, *, serving: bool) -> int:
    try:
        if serving:
            asyncio.run(serve(stack, console))
            return 0
        return asyncio.run(_demonstrate(stack, console))
    except (ServerFailed, ClientFailed) as failure:
        console.print(f"[bold red]Failed:[/] {escape(str(failure))}")
        _print_server_log(stack, console)
        return 1
    except Exception:
        # A client that met a broken server, say: its traceback alone tells only half of it.
        _print_server_log(stack, console)
        raise
    finally:
        # From here on the processes are being ended; a second Ctrl-C must not leave one behind.
        signal.signal(signal.SIGINT, signal.SIG_IGN)


async def _demonstrate(stack: Stack, console: Console) -> int:
    tally = await play(stack, Progress(console, stack))
    sessions = stack.sessions.sessions()
    checks = judge(Evidence(stack.telemetry, sessions, stack.sessions.malformed(), tally))
    report.show(console, sessions, stack.telemetry, checks, stack.redis_url)
    missing = [check for check in checks if not check.passed]
    if missing:
        _print_server_log(stack, console)
        for check in missing:
            console.print(f"[bold red]Missing:[/] {escape(check.expectation)} ({check.found})")
        return 1
    console.print("\nAll of this was read back from Redis and from the OTLP receiver.")
    console.print("`make demo-serve` keeps it running for a client of your own.")
    return 0


def _print_server_log(stack: Stack, console: Console) -> None:
    console.rule("the server's log")
    console.print(stack.server_log(), markup=False, highlight=False)
    console.rule()


def _instrumentation_installed() -> bool:
    try:
        return bool(version("otel-mcp-sessions"))
    except PackageNotFoundError:
        return False


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
