"""Hold the runtime of this process: built at the first MCP request, from what `instrument()` was given.

Light, because everything that a request passes imports it: a process without MCP
loads neither the runtime nor what that needs.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from otel_mcp.runtime import Runtime
    from otel_mcp.sessions.service import Sessions

runtime: Runtime | None = None
"""The runtime, once this process has had a reason to build one."""

_lock = threading.Lock()
_options: dict[str, Any] = {}
_uninstrumented = False
_failed = False


def configure(**options: Any) -> None:
    """Keep keyword arguments for the runtime; it is not built before it is needed."""
    global _options, _uninstrumented, _failed
    _options, _uninstrumented, _failed = options, False, False


def build() -> Runtime | None:
    """Build the runtime unless it is there; ``None`` where OpenTelemetry is switched off."""
    return runtime if runtime is not None else _slow_build()


def _slow_build() -> Runtime | None:
    global runtime, _failed
    if _uninstrumented or _failed or os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    from otel_mcp.model import state
    from otel_mcp.runtime import Runtime
    from otel_mcp.settings import load

    state.bind(sessions)
    with _lock:
        if runtime is None:
            _failed = True  # Unless it goes well: half a runtime for every request would be worse than none.
            options = dict(_options)
            providers = {
                name: options.pop(name, None) for name in ("tracer_provider", "meter_provider", "logger_provider")
            }
            runtime = Runtime(load(**options), **providers)
            _failed = False
        return runtime


def sessions() -> Sessions:
    """The session store of this process: ``save``, ``load``, ``get_or_create``, ``delete``.

    Raises:
        RuntimeError: OpenTelemetry is switched off in this process.
    """
    built = build()
    if built is None:
        raise RuntimeError("OpenTelemetry is switched off (OTEL_SDK_DISABLED) or uninstrumented")
    return built.sessions


def discard() -> None:
    """Flush and forget the runtime: what is still wrapped passes through from now on."""
    global runtime, _uninstrumented
    _uninstrumented = True
    held, runtime = runtime, None
    if held is not None:
        held.disable()
