"""Register the patches for ``opentelemetry-instrument``, without importing the patched libraries."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Any

from opentelemetry.instrumentation.instrumentor import BaseInstrumentor

from otel_mcp import current
from otel_mcp.guard import guarded
from otel_mcp.integrations.patching import TARGETS, Patches

INSTRUMENTS_ANY = ("mcp >= 1.9", "fastmcp >= 2.0", "starlette >= 0.37", "uvicorn >= 0.30")
"""One of these libraries is enough, since a hand-written server has no SDK; also an extra in ``pyproject.toml``."""


class MCPInstrumentor(BaseInstrumentor):
    """Observe every MCP server of this process.

    Example:
        >>> MCPInstrumentor().instrument()  # doctest: +SKIP
    """

    _patches = Patches()
    is_early = False
    """Whether `load_early` registered the patches, and OpenTelemetry has not called `instrument` yet."""

    def instrument(self, **kwargs: Any) -> None:
        """Register the patches, unless `load_early` has just done so."""
        if self.is_early and self.is_instrumented_by_opentelemetry:
            self.is_early = False
            return
        super().instrument(**kwargs)

    def instrumentation_dependencies(self) -> Collection[str]:
        """Return no requirement: each library is patched when it is imported."""
        return ()

    def _instrument(self, **kwargs: Any) -> None:
        # An exception here would keep every later instrumentor from loading.
        with guarded("instrument"):
            kwargs.pop("skip_dep_check", None)
            current.configure(**kwargs)
            for module, apply in TARGETS:
                self._patches.on_import(module, apply)

    def _uninstrument(self, **kwargs: Any) -> None:
        with guarded("uninstrument"):
            self._patches.restore()
            current.discard()


def load_early() -> None:
    """Register the patches before other instrumentors load; an entry point of ``opentelemetry_pre_instrument``.

    Instrumentors load in no particular order, and after an exception in one, none
    loads.
    """
    with guarded("instrument"):
        disabled = os.environ.get("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "")
        if {"otel_mcp", "*"} & {name.strip() for name in disabled.split(",")}:
            return
        instrumentor = MCPInstrumentor()
        if not instrumentor.is_instrumented_by_opentelemetry:
            instrumentor.instrument(skip_dep_check=True)
            instrumentor.is_early = True
