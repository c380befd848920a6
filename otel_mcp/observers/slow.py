"""The bundled observer, if it is switched on: a log line for a call that failed or took long, within a limit.

Never any content, and no id that could be used.
"""

from __future__ import annotations

import logging
import time
from typing import Final

from otel_mcp.model.delta import CallRecord
from otel_mcp.model.state import SessionState, ToolCall

logger = logging.getLogger("otel_mcp.calls")

LINES: Final = 60
"""Lines a minute at most: clients decide how many calls fail."""
_MINUTE: Final = 60.0


_SHOWN: Final = 8


def _shortened(session_id: str) -> str:
    """Enough of an id to find the session by: a client with the whole id can use a transport's session."""
    return session_id if len(session_id) <= _SHOWN else f"{session_id[:_SHOWN]}…"


def _failed(call: CallRecord | ToolCall) -> bool:
    return call.error_type is not None or call.failure is not None


class slow_and_failing:
    """Logs calls of `threshold` seconds or more, and those with an error."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._began = -_MINUTE
        self._written = 0
        self._left_out = 0

    def wants(self, call: CallRecord) -> bool:
        """Whether there is anything to log: most calls never reach the queue."""
        return _failed(call) or call.duration >= self._threshold

    async def __call__(self, call: ToolCall, session: SessionState) -> None:
        failed = _failed(call)
        if not (failed or call.duration >= self._threshold) or not self._has_room():
            return
        what = f"failed with {call.error_type or call.failure} after" if failed else "took"
        shown = _shortened(session.session_id)
        logger.warning(
            "tool %r %s %.3f s (session %s, trace %s)", call.tool_name, what, call.duration, shown, call.trace_id
        )

    def _has_room(self) -> bool:
        now = time.monotonic()
        if now - self._began >= _MINUTE:
            if self._left_out:
                logger.warning("%d more calls failed or took long in the minute of the last line", self._left_out)
            self._began, self._written, self._left_out = now, 0, 0
        if self._written < LINES:
            self._written += 1
            return True
        self._left_out += 1
        return False
