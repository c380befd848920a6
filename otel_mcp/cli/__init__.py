"""The command line: look at sessions as Redis holds them."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of ``otel-mcp``; says what to install where the extra is missing."""
    try:
        from otel_mcp.cli.commands import app
    except ImportError as error:
        sys.exit(f"otel-mcp needs an extra: pip install 'otel-mcp-sessions[cli]' ({error.name} is missing)")
    app()
