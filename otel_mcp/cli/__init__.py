"""The command line: show sessions as Redis holds them.

Starts fast: each command imports redis, pydantic and rich only when it runs.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence

_MISSING = """\
otel-mcp needs the extra [cli]: {name} is missing
  pip install 'otel-mcp-sessions[cli]', or in a checkout: pip install '.[cli]'"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``otel-mcp`` and exit; names what to install where the extra is missing."""
    gc.disable()  # Saves a fifth of the start; commands that run for long enable it again.
    try:
        from otel_mcp.cli.app import run
    except ImportError as error:
        sys.exit(_MISSING.format(name=error.name))
    code = run(arguments)
    gc.freeze()  # Saves a fifth of the exit, where Python would collect everything imported several times.
    sys.exit(code)
