"""What tool authors may call."""

from __future__ import annotations

from otel_mcp.current import sessions
from otel_mcp.model.call import current_call
from otel_mcp.model.state import SessionState, bind

__all__ = ["SessionState", "current_session", "sessions"]

bind(sessions)


def current_session() -> SessionState | None:
    """Return the session of the request being served, as this process knows it.

    Returns:
        ``None`` outside a request, and where the session is unknown. The state
        is a copy without tool calls; ``SessionState.load(id)`` reads the shared one.
    """
    call = current_call.get()
    if call is None or call.session is None:
        return None
    return call.session.state()
