"""The one runtime of this process: made at the first MCP request, from what `instrument()` was given."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from otel_mcp.runtime import Runtime

_lock = threading.Lock()
_runtime: Runtime | None = None
_options: dict[str, Any] = {}
_uninstrumented = False
_failed = False


def configure(**options: Any) -> None:
    """Remember keyword arguments for the runtime; it is not made before it is needed."""
    global _options, _uninstrumented, _failed
    _options, _uninstrumented, _failed = options, False, False


def existing() -> Runtime | None:
    """The runtime if this process has had a reason to make one."""
    return _runtime


def runtime() -> Runtime | None:
    """The runtime, made on first use; ``None`` where OpenTelemetry is switched off."""
    return _runtime if _runtime is not None else _make()


def _make() -> Runtime | None:
    global _runtime
    if _is_off():
        return None
    from otel_mcp.runtime import Runtime
    from otel_mcp.settings import load

    global _failed
    with _lock:
        if _runtime is None:
            _failed = True  # Unless it goes well: half a runtime for every request would be worse than none.
            options = dict(_options)
            providers = {
                name: options.pop(name, None) for name in ("tracer_provider", "meter_provider", "logger_provider")
            }
            _runtime = Runtime(load(**options), **providers)
            _failed = False
        return _runtime


def discard() -> None:
    """Flush and forget the runtime: what is still wrapped passes through from now on."""
    global _runtime, _uninstrumented
    _uninstrumented = True
    held, _runtime = _runtime, None
    if held is not None:
        held.disable()


def _is_off() -> bool:
    return _uninstrumented or _failed or os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
