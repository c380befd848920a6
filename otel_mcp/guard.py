"""Contain our own failures: telemetry may fail, requests may not.

Our code that runs in the user's program runs under :func:`guarded`, which counts an
exception, logs it without content, at most once a minute for each component, and
suppresses it. It never contains the user's code.

Code that runs on every request uses ``try`` with :func:`report` in ``except``
instead, which saves two calls.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Final

logger = logging.getLogger("otel_mcp")

_LOG_INTERVAL: Final = 60.0
"""Seconds between two log lines about the same component."""

failures: Counter[str] = Counter()
"""Our failures since the process began, by component; feeds ``otel_mcp.errors``."""
_last_logged: dict[str, float] = {}


def report(component: str, error: BaseException) -> None:
    """Count a failure of ours and log it, at most once a minute for each component.

    Logs only the type of the error and where it was raised, since its text may
    contain content of a request.
    """
    failures[component] += 1
    now = time.monotonic()
    if now - _last_logged.get(component, -_LOG_INTERVAL) < _LOG_INTERVAL:
        return
    _last_logged[component] = now
    logger.warning(
        "otel_mcp: %s failed with %s at %s; the request is not affected (%d so far)",
        component,
        type(error).__name__,
        _origin(error.__traceback__),
        failures[component],
    )


def _origin(traceback: TracebackType | None) -> str:
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback is None:
        return "unknown"
    code = traceback.tb_frame.f_code
    return f"{code.co_name}:{traceback.tb_lineno}"


class guarded:
    """Context manager that swallows and reports an ``Exception`` of our own code.

    Any other ``BaseException`` (cancellation, exit) passes.
    """

    __slots__ = ("_component",)

    def __init__(self, component: str) -> None:
        self._component = component

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if error is None or not isinstance(error, Exception):
            return False
        report(self._component, error)
        return True


def quietly(component: str, function: Callable[[], object]) -> None:
    """Call `function` under the guard."""
    with guarded(component):
        function()
