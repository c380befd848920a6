"""Patches for servers without an SDK, whose HTTP handler also handles the message.

The function of a Starlette or FastAPI route runs inside all middlewares. Bare ASGI
apps cannot be patched, so known middlewares are patched where they call the app.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import wraps
from types import ModuleType
from typing import Any, Final

from opentelemetry import context as otel_context

from otel_mcp import current
from otel_mcp.guard import guarded, report
from otel_mcp.integrations.patching import Patches
from otel_mcp.loops import is_cancellation
from otel_mcp.model.call import SCOPE_KEY, Exchange
from otel_mcp.runtime import Runtime
from otel_mcp.telemetry.propagation import without_ended_span
from otel_mcp.types import ASGIApp, Message, Receive, Scope, Send

_GUARD: Final = guarded("route")

Observed = Callable[[Runtime, Exchange, Scope, Receive, Send], tuple[Receive, Send]]
"""Returns the `receive` and `send` for the app inside a middleware."""


def asgi_instrumentation(module: ModuleType, patches: Patches) -> None:
    """Patch OpenTelemetry's ASGI middleware: its span around `receive` would replace a context attached outside it."""
    patches.replace(module.OpenTelemetryMiddleware, "__call__", _inside(_attach_inside))


def gzip(module: ModuleType, patches: Patches) -> None:
    """Patch Starlette's compression."""
    patches.replace(module.GZipMiddleware, "__call__", _inside(_read_inside))


def brotli(module: ModuleType, patches: Patches) -> None:
    """Patch brotli-asgi's compression."""
    patches.replace(module.BrotliMiddleware, "__call__", _inside(_read_inside))


async def serve(
    handler: ASGIApp, runtime: Runtime, exchange: Exchange, scope: Scope, receive: Receive, send: Send
) -> None:
    """Run the function behind a route as the handler of the request's message."""
    token, outcome = None, None
    try:
        exchange.routed = exchange.attaches_inside = True
        send = runtime.exchanges.replies.within(exchange, send)
        if exchange.http_span is None:
            around = otel_context.get_current()
            exchange.ambient = without_ended_span(around) if around else around
        if exchange.confirmed and (context := runtime.http_spans.begin(exchange, scope)) is not None:
            token = otel_context.attach(context)
        if exchange.parsed:  # A middleware has read the body.
            await runtime.dispatcher.attach(exchange, scope)
        receive = _attaching(runtime, exchange, scope, receive)
    except Exception as failure:
        report("route", failure)
    try:
        await handler(scope, receive, send)
    except BaseException as error:
        with _GUARD:
            if exchange.dispatch is not None and is_cancellation(error):  # The answer shows any other error.
                outcome = exchange.dispatch.failed(error)
        raise
    finally:
        if (dispatch := exchange.dispatch) is not None:
            with _GUARD:
                exchange.dispatch = None
                dispatch.leave(outcome)
        if token is not None:
            otel_context.detach(token)


def _attaching(runtime: Runtime, exchange: Exchange, scope: Scope, receive: Receive) -> Receive:
    """Return a `receive` that attaches the message's span to the app's task once the body has been read."""
    routed = exchange.routed

    async def attaching() -> Message:
        message = await receive()
        if exchange.parsed and exchange.confirmed and exchange.routed is routed:  # Else an inner route attaches it.
            with _GUARD:
                await runtime.dispatcher.attach(exchange, scope)
        return message

    return attaching


def _attach_inside(
    runtime: Runtime, exchange: Exchange, scope: Scope, receive: Receive, send: Send
) -> tuple[Receive, Send]:
    """Attach the message's span inside OpenTelemetry's ASGI middleware, whose span is its parent."""
    exchange.attaches_inside = True
    return _attaching(runtime, exchange, scope, receive), send


def _read_inside(runtime: Runtime, exchange: Exchange, _: Scope, receive: Receive, send: Send) -> tuple[Receive, Send]:
    """Read the answer inside a compressing middleware, where it is not compressed yet."""
    return receive, runtime.exchanges.replies.within(exchange, send)


def _inside(observed: Observed) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Wrap the app of a middleware with `observed` when its first observed request comes."""

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        async def __call__(self: Any, scope: Scope, receive: Receive, send: Send) -> None:
            with _GUARD:
                if scope.get(SCOPE_KEY) is not None and not isinstance(self.app, _Inner):
                    self.app = _Inner(self.app, observed)
            await original(self, scope, receive, send)

        return __call__

    return make


class _Inner:
    """The wrapped app of a middleware."""

    def __init__(self, app: ASGIApp, observed: Observed) -> None:
        self.app = app
        self._observed = observed

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        with _GUARD:
            exchange, runtime = scope.get(SCOPE_KEY), current.runtime
            if isinstance(exchange, Exchange) and runtime is not None:
                receive, send = self._observed(runtime, exchange, scope, receive, send)
        return self.app(scope, receive, send)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.app, name)
