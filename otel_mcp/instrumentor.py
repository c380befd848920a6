"""Entry point of ``opentelemetry-instrument``: registers the seams, imports nothing of the user's."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from opentelemetry.instrumentation.instrumentor import BaseInstrumentor

from otel_mcp import process
from otel_mcp.guard import guarded
from otel_mcp.seams.patching import Patches
from otel_mcp.seams.table import SEAMS

INSTRUMENTS_ANY = ("mcp >= 1.9", "fastmcp >= 2.0", "starlette >= 0.37", "uvicorn >= 0.30")
"""Any one suffices: a hand-written server has no SDK. The same list is the extra in ``pyproject.toml``."""


class MCPInstrumentor(BaseInstrumentor):
    """Observe every MCP server of this process.

    Example:
        >>> MCPInstrumentor().instrument()  # doctest: +SKIP
    """

    _patches = Patches()

    def instrumentation_dependencies(self) -> Collection[str]:
        """Nothing that must be there: what is, is patched when it is imported."""
        return ()

    def _instrument(self, **kwargs: Any) -> None:
        # An exception here would keep every later instrumentor from loading.
        with guarded("instrument"):
            kwargs.pop("skip_dep_check", None)
            process.configure(**kwargs)
            for module, apply in SEAMS:
                self._patches.on_import(module, apply)

    def _uninstrument(self, **kwargs: Any) -> None:
        with guarded("uninstrument"):
            self._patches.restore()
            process.discard()
