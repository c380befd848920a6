"""The bundled observer: one log line for a call that failed or took long. Never any content."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from otel_mcp.sessions.state import SessionState, ToolCall

logger = logging.getLogger("otel_mcp.calls")


def slow_and_failing(threshold: float) -> Callable[[ToolCall, SessionState], Awaitable[None]]:
    """An observer that logs calls of `threshold` seconds or more, and those with an error."""

    async def observe(call: ToolCall, session: SessionState) -> None:
        if call.error_type is not None:
            logger.warning(
                "tool %r failed with %s after %.3f s (session %s, trace %s)",
                call.tool_name,
                call.error_type,
                call.duration,
                session.session_id,
                call.trace_id,
            )
        elif call.duration >= threshold:
            logger.warning(
                "tool %r took %.3f s (session %s, trace %s)",
                call.tool_name,
                call.duration,
                session.session_id,
                call.trace_id,
            )

    return observe
