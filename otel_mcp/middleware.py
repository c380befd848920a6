"""The ASGI middleware for apps that no patch reaches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_mcp.current import look, serve

if TYPE_CHECKING:
    from otel_mcp.runtime import Runtime
    from otel_mcp.types import ASGIApp, Receive, Scope, Send


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
