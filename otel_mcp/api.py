"""The public API: the middleware for apps that no patch reaches, and functions for authors of tools."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_mcp.current import look, serve, sessions
from otel_mcp.model.call import current_call
from otel_mcp.model.state import SessionState, bind

if TYPE_CHECKING:
    from otel_mcp.runtime import Runtime
    from otel_mcp.types import ASGIApp, Receive, Scope, Send

__all__ = ["MCPMiddleware", "SessionState", "current_session", "sessions"]

bind(sessions)


class MCPMiddleware:
    """Observe the MCP traffic of an ASGI app, if no patch reaches the app by itself.

    Example:
        >>> app = MCPMiddleware(app)  # doctest: +SKIP
    """

    def __init__(self, app: ASGIApp, runtime: Runtime | None = None) -> None:
        self.app = app
        self._runtime = runtime

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (seen := look(scope)) is None:
            await self.app(scope, receive, send)
        else:
            await serve(seen, self.app, scope, receive, send, self._runtime)


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
