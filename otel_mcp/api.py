"""Functions for authors of tools."""

from __future__ import annotations

from otel_mcp.current import sessions
from otel_mcp.model.call import current_call
from otel_mcp.model.state import SessionState, bind

__all__ = ["SessionState", "current_session", "sessions"]

bind(sessions)


def current_session() -> SessionState | None:
    """Return the session of the request being served, as this process knows it.

    Returns:
        A copy without tool calls; ``SessionState.load(id)`` reads the shared state.
        ``None`` outside a request, or if the session is unknown.
    """
    call = current_call.get()
    if call is None or call.session is None:
        return None
    return call.session.state()
