"""The bundled observer: one log line for a call that failed or took long. Never any content."""

from __future__ import annotations

import logging

from otel_mcp.sessions.delta import CallRecord
from otel_mcp.sessions.state import SessionState, ToolCall

logger = logging.getLogger("otel_mcp.calls")


class slow_and_failing:
    """Logs calls of `threshold` seconds or more, and those with an error."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold

    def wants(self, call: CallRecord) -> bool:
        """Whether there is anything to log: most calls never reach the queue."""
        return call.error_type is not None or call.duration >= self._threshold

    async def __call__(self, call: ToolCall, session: SessionState) -> None:
        if call.error_type is not None:
            logger.warning(
                "tool %r failed with %s after %.3f s (session %s, trace %s)",
                call.tool_name,
                call.error_type,
                call.duration,
                session.session_id,
                call.trace_id,
            )
        elif call.duration >= self._threshold:
            logger.warning(
                "tool %r took %.3f s (session %s, trace %s)",
                call.tool_name,
                call.duration,
                session.session_id,
                call.trace_id,
            )
