"""Patches for servers without an SDK, where the HTTP handler is the handler of the message.

A function behind a Starlette or FastAPI route lies inside every middleware. Of
bare ASGI apps no patch knows anything; those of middlewares around them are met
on their inner side.
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
"""What the app inside a middleware is to receive and send by."""


def asgi_instrumentation(module: ModuleType, patches: Patches) -> None:
    """Patch OpenTelemetry's ASGI middleware: its own span around `receive` would undo what is attached outside it."""
    patches.replace(module.OpenTelemetryMiddleware, "__call__", _inside(_attach_inside))


def gzip(module: ModuleType, patches: Patches) -> None:
    """Patch Starlette's compression."""
    patches.replace(module.GZipMiddleware, "__call__", _inside(_read_inside))


def brotli(module: ModuleType, patches: Patches) -> None:
    """Patch the compression of brotli-asgi."""
    patches.replace(module.BrotliMiddleware, "__call__", _inside(_read_inside))


async def serve(
    handler: ASGIApp, runtime: Runtime, exchange: Exchange, scope: Scope, receive: Receive, send: Send
) -> None:
    """Run the function behind a route as the handler of the message that its request carries."""
    token, outcome = None, None
    try:
        exchange.routed = exchange.attaches_inside = True
        send = runtime.exchanges.replies.within(exchange, send)
        if exchange.http_span is None:
            exchange.ambient = without_ended_span(otel_context.get_current())
        if exchange.confirmed and (context := runtime.http_spans.begin(exchange, scope)) is not None:
            token = otel_context.attach(context)
        if exchange.parsed:  # By a middleware that has read it.
            await runtime.dispatcher.attach(exchange, scope)
        receive = _attaching(runtime, exchange, scope, receive)
    except Exception as failure:
        report("route", failure)
    try:
        await handler(scope, receive, send)
    except BaseException as error:
        with _GUARD:
            if exchange.dispatch is not None and is_cancellation(error):  # Of any other, the answer tells.
                outcome = exchange.dispatch.failed(error)
        raise
    finally:
        with _GUARD:
            if (dispatch := exchange.dispatch) is not None:
                exchange.dispatch = None
                dispatch.leave(outcome)
        if token is not None:
            otel_context.detach(token)


def _attaching(runtime: Runtime, exchange: Exchange, scope: Scope, receive: Receive) -> Receive:
    """Have the app's own task, once it has read its request, run under the span of the message in it."""
    routed = exchange.routed

    async def attaching() -> Message:
        message = await receive()
        with _GUARD:
            if exchange.parsed and exchange.routed is routed:  # A route lies further in.
                await runtime.dispatcher.attach(exchange, scope)
        return message

    return attaching


def _attach_inside(
    runtime: Runtime, exchange: Exchange, scope: Scope, receive: Receive, send: Send
) -> tuple[Receive, Send]:
    """Attach inside the ASGI middleware of OpenTelemetry, whose span is the parent."""
    exchange.attaches_inside = True
    return _attaching(runtime, exchange, scope, receive), send


def _read_inside(runtime: Runtime, exchange: Exchange, _: Scope, receive: Receive, send: Send) -> tuple[Receive, Send]:
    """Read inside a middleware that compresses, where the answer is still plain."""
    return receive, runtime.exchanges.replies.within(exchange, send)


def _inside(observed: Observed) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Have a middleware call its app as `observed`, from the first request on that is observed."""

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
    """The app inside a middleware of others."""

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
