"""HTTP seams: the places that an MCP request passes on its way into the server.

They start no span and make none current. The outermost seam that sees a request
watches it; those of the SDK only note what can be known there alone: the context
inside any HTTP instrumentation, the authenticated user, and who owns sessions.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import Token
from functools import partial, wraps
from types import ModuleType
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry.context import Context

from otel_mcp import current
from otel_mcp.guard import report
from otel_mcp.integrations.patching import Patches
from otel_mcp.middleware import look, observe
from otel_mcp.model.call import SCOPE_KEY, Exchange, current_exchange
from otel_mcp.telemetry.propagation import without_ended_span
from otel_mcp.types import ASGIApp, Receive, Scope, Send

Owns = Callable[[Any], bool | None]
"""Whether the server that this object serves keeps transport sessions of its own."""


def starlette(module: ModuleType, patches: Patches) -> None:
    """Every Starlette and FastAPI app, on any server."""
    patches.replace(module.Starlette, "__call__", _outer)


def litestar(module: ModuleType, patches: Patches) -> None:
    """Every Litestar app, on any server."""
    patches.replace(module.Litestar, "__call__", _outer)


def http_client(module: ModuleType, patches: Patches) -> None:
    """The in-process transport of httpx: what is asked through it is a request of its own, however much it repeats."""
    patches.replace(module.ASGITransport, "handle_async_request", _asked)


def session_manager(module: ModuleType, patches: Patches) -> None:
    """The SDK's Streamable HTTP transport. Its own ASGI class goes past `handle_request` to what lies within."""
    patches.replace(module.StreamableHTTPSessionManager, "handle_request", _sdk(lambda manager: not manager.stateless))
    if hasattr(module, "StreamableHTTPASGIApp"):
        patches.replace(module.StreamableHTTPASGIApp, "__call__", _sdk(lambda app: not app.session_manager.stateless))


def sse_transport(module: ModuleType, patches: Patches) -> None:
    """The SDK's transport of 2024-11-05, whose sessions are always the server's."""
    patches.replace(module.SseServerTransport, "handle_post_message", _sdk(lambda _: True))


class Observed:
    """An ASGI app around another. Servers probe for factories by calling, so the signature is exact."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        # By now the server knows that the app is one of ASGI 3, so no coroutine is needed around it.
        if (seen := look(scope, from_server=True)) is None:
            return self.app(scope, receive, send)
        return observe(current.build, seen, self.app, scope, receive, send)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.app, name)


def _outer(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    async def __call__(self: Any, scope: Scope, receive: Receive, send: Send) -> None:
        if (seen := look(scope)) is None:
            await original(self, scope, receive, send)
        else:
            await observe(current.build, seen, partial(original, self), scope, receive, send)

    return __call__


def _asked(original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @wraps(original)
    async def handle_async_request(self: Any, *args: Any, **kwargs: Any) -> Any:
        token = current_exchange.set(None)
        try:
            return await original(self, *args, **kwargs)
        finally:
            current_exchange.reset(token)

    return handle_async_request


def _learn(exchange: Exchange, owns: bool | None) -> None:
    """Remember it for requests that do not get here, such as those that a middleware refuses."""
    exchange.owns_sessions = owns
    if owns is not None and exchange.transport_id is not None and (runtime := current.runtime) is not None:
        runtime.owning.learn(exchange, owns=owns)


def _sdk(owns: Owns) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        async def serve(self: Any, scope: Scope, receive: Receive, send: Send) -> None:
            token = None
            exchange = scope.get(SCOPE_KEY)
            if isinstance(exchange, Exchange):
                try:
                    token = _arrive(exchange, scope)
                    if exchange.owns_sessions is None and not exchange.modern:
                        _learn(exchange, owns(self))
                except Exception as failure:
                    report("SDK seam", failure)
            try:
                await original(self, scope, receive, send)
            finally:
                if token is not None:
                    otel_context.detach(token)

        # A coroutine function like the original: whoever takes a transport for an app asks whether it is of ASGI 3.
        @wraps(original)
        async def __call__(self: Any, scope: Scope, receive: Receive, send: Send) -> None:
            if SCOPE_KEY in scope or (seen := look(scope)) is None:
                await serve(self, scope, receive, send)
            else:
                await observe(current.build, seen, partial(serve, self), scope, receive, send)

        return __call__

    return make


def _arrive(exchange: Exchange, scope: Scope) -> Token[Context] | None:
    """Note what is known here alone, inside every middleware; returns what to detach after the request."""
    exchange.at_sdk = True
    exchange.scope = scope
    exchange.ambient = without_ended_span(otel_context.get_current())
    context = None
    if (runtime := current.runtime) is not None:
        context = runtime.http_spans.begin(exchange, scope)
    return otel_context.attach(context) if context is not None else None
