"""Patches of the apps, routes and SDK transports that an HTTP request passes.

They open no span of a message. The outermost patch that a request passes observes it.
Patches of the SDK's transports add what only they can see: the context inside any HTTP
instrumentation, the authenticated user, and whether the SDK keeps sessions.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial, wraps
from types import FunctionType, MethodType, ModuleType
from typing import Any, Final

from opentelemetry import context as otel_context

from otel_mcp import current
from otel_mcp.current import look, serve
from otel_mcp.guard import guarded, report
from otel_mcp.integrations import handwritten
from otel_mcp.integrations.patching import Patches
from otel_mcp.model.call import MODERN, SCOPE_KEY, Exchange, current_exchange
from otel_mcp.runtime import Runtime
from otel_mcp.telemetry.propagation import without_ended_span
from otel_mcp.types import ASGIApp, Receive, Scope, Send

_FUNCTIONS: Final = (FunctionType, MethodType)
"""Types of a hand-written route's endpoint; an SDK's endpoint is an object."""
_SESSION_TABLES: Final = ("_server_instances", "_read_stream_writers")
"""Private fields of the SDK's transports with an entry for each session: Streamable HTTP and 2024-11-05."""
_FindHolder = Callable[[Any], Any]
"""Returns the object that holds the SDK's transport sessions."""


def starlette(module: ModuleType, patches: Patches) -> None:
    """Patch all Starlette and FastAPI apps."""
    patches.replace(module.Starlette, "__call__", _app)


def litestar(module: ModuleType, patches: Patches) -> None:
    """Patch all Litestar apps."""
    patches.replace(module.Litestar, "__call__", _app)


def route(module: ModuleType, patches: Patches) -> None:
    """Patch Starlette and FastAPI routes."""
    patches.replace(module.Route, "handle", _route)


def session_manager(module: ModuleType, patches: Patches) -> None:
    """Patch the SDK's Streamable HTTP transport, and its ASGI class, which bypasses `handle_request`."""
    patches.replace(module.StreamableHTTPSessionManager, "handle_request", _sdk(lambda manager: manager))
    if hasattr(module, "StreamableHTTPASGIApp"):
        patches.replace(module.StreamableHTTPASGIApp, "__call__", _sdk(lambda app: app.session_manager))


def sse_transport(module: ModuleType, patches: Patches) -> None:
    """Patch the SDK's transport of 2024-11-05, which always keeps sessions itself."""
    patches.replace(module.SseServerTransport, "handle_post_message", _sdk(lambda transport: transport))
    patches.replace(module.SseServerTransport, "connect_sse", _connecting)


def http_client(module: ModuleType, patches: Patches) -> None:
    """Patch httpx's in-process transport, so that its request is not taken for the one being served."""

    def make(original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        @wraps(original)
        async def handle_async_request(self: Any, *args: Any, **kwargs: Any) -> Any:
            token = current_exchange.set(None)
            try:
                return await original(self, *args, **kwargs)
            finally:
                current_exchange.reset(token)

        return handle_async_request

    patches.replace(module.ASGITransport, "handle_async_request", make)


class ObservedApp:
    """An ASGI app that observes another one. Servers probe for factories by calling, so the signature is exact."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        # The server already knows that the app is ASGI 3, so this need not be a coroutine function.
        if (seen := look(scope, from_server=True)) is None:
            return self.app(scope, receive, send)
        app = self.app
        call: Any = type(app).__call__
        if getattr(call, "__code__", None) is _AGAIN:
            app = partial(call.__wrapped__, app)  # Skips our replacement, which would look again.
        return serve(seen, app, scope, receive, send)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.app, name)


# Replacements are coroutine functions like the originals, since servers, test clients and asgiref recognise ASGI 3 by
# that. (From Python 3.12 on, `inspect.markcoroutinefunction` would save the coroutine.)


def _app(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    async def __call__(self: Any, scope: Scope, receive: Receive, send: Send) -> None:
        if (seen := look(scope)) is None:
            await original(self, scope, receive, send)
        else:
            await serve(seen, partial(original, self), scope, receive, send)

    return __call__


_AGAIN: Final = _app(ObservedApp.__call__).__code__
"""Code of our replacements of `__call__`: it identifies them, but no wrapper of another library."""


def _route(original: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    @wraps(original)
    def handle(self: Any, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        exchange = scope.get(SCOPE_KEY)
        if not isinstance(exchange, Exchange):
            return original(self, scope, receive, send)
        exchange.scope = scope  # Some middlewares copy the scope.
        if exchange.at_sdk or current.runtime is None or not isinstance(getattr(self, "endpoint", None), _FUNCTIONS):
            return original(self, scope, receive, send)
        return handwritten.serve(partial(original, self), current.runtime, exchange, scope, receive, send)

    return handle


def _sdk(find_holder: _FindHolder) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        async def __call__(self: Any, scope: Scope, receive: Receive, send: Send) -> None:
            if SCOPE_KEY not in scope and (seen := look(scope)) is not None:
                scope[SCOPE_KEY] = None  # So that the second pass through here calls the original.
                return await serve(seen, partial(__call__, self), scope, receive, send)
            token = None
            try:
                exchange, runtime = scope.get(SCOPE_KEY), current.runtime
                if isinstance(exchange, Exchange) and runtime is not None:
                    exchange.at_sdk, exchange.scope = True, scope
                    around, context = otel_context.get_current(), None
                    exchange.ambient = without_ended_span(around) if around else around
                    if exchange.http_span is not None or not exchange.http_decided:
                        context = runtime.http_spans.begin(exchange, scope)
                    if context is not None:
                        token = otel_context.attach(context)
                    if exchange.owns_sessions is None and (exchange.protocol_version or "") < MODERN:
                        _slow_learn(exchange, runtime, find_holder(self))
            except Exception as failure:
                report("transport", failure)
            try:
                await original(self, scope, receive, send)
            finally:
                if token is not None:
                    otel_context.detach(token)

        return __call__

    return make


def _slow_learn(exchange: Exchange, runtime: Runtime, holder: Any) -> None:
    """Learn whether the SDK keeps sessions, for requests that are refused before they get here."""
    if holder is None:
        return
    exchange.owns_sessions = not getattr(holder, "stateless", False)
    if exchange.transport_id is not None:
        runtime.exchanges.session_ids.learn(exchange, owns=exchange.owns_sessions)
    _watch(runtime, holder)


def _watch(runtime: Runtime, holder: Any) -> None:
    """Count the transport sessions that an SDK holds."""
    for field in _SESSION_TABLES:
        if hasattr(holder, field):
            runtime.metrics.census.watch(holder, field)


def _connecting(original: Callable[..., Any]) -> Callable[..., Any]:
    """Count the sessions of a 2024-11-05 transport from the first connection, since clients may never post."""

    @wraps(original)
    def connect_sse(self: Any, *args: Any, **kwargs: Any) -> Any:
        with guarded("transport"):
            if (runtime := current.runtime) is not None:
                _watch(runtime, self)
        return original(self, *args, **kwargs)

    return connect_sse
