"""The command line: look at sessions as Redis holds them.

Starts fast: what takes long to import (redis, pydantic, rich) is imported by the command that needs it, when it runs.
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
    gc.disable()  # A fifth of the time to start; what goes on for long enables it.
    try:
        from otel_mcp.cli.app import run
    except ImportError as error:
        sys.exit(_MISSING.format(name=error.name))
    code = run(arguments)
    gc.freeze()  # A fifth of the time to end: Python would look through all that was imported, some times.
    sys.exit(code)
