"""The command line: look at sessions as Redis holds them.

Starts fast: what takes long to import (redis, pydantic, rich) is imported by the command that needs it, when it runs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``otel-mcp`` and exit; says what to install where the extra is missing."""
    try:
        import typer

        from otel_mcp.cli.app import run
    except ImportError as error:
        sys.exit(f"otel-mcp needs an extra: pip install 'otel-mcp-sessions[cli]' ({error.name} is missing)")
    del typer
    sys.exit(run(arguments))
