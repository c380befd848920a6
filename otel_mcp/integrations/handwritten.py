"""Seams for servers without an SDK, where the HTTP handler is the handler of the message.

Two places: a function behind a Starlette or FastAPI route, which lies inside
every middleware; and, for bare ASGI apps, the moment at which the app has read
the last of the body.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import Token
from functools import wraps
from types import FunctionType, MethodType, ModuleType
from typing import Any, Final

from opentelemetry import context as otel_context
from opentelemetry.context import Context

from otel_mcp import current
from otel_mcp.exchange.dispatch import Dispatch
from otel_mcp.exchange.request import MAX_BODY
from otel_mcp.guard import guarded, report
from otel_mcp.integrations.patching import Patches
from otel_mcp.model.call import SCOPE_KEY, Call, Exchange
from otel_mcp.runtime import Runtime
from otel_mcp.telemetry.propagation import without_ended_span
from otel_mcp.types import ASGIApp, Message, Receive, Scope, Send

_GUARD: Final = guarded("route seam")
_FUNCTIONS: Final = (FunctionType, MethodType)
"""What a route of a hand-written server leads to; an SDK's leads to an object."""
_MAX_AHEAD: Final = 64 * 1024 * 1024
"""Bytes that one process reads ahead at a time."""
_MAX_PIECES: Final = 4096
"""Messages of one body that are read ahead: each is an object, however small."""
_ahead = 0


def route(module: ModuleType, patches: Patches) -> None:
    """Starlette and FastAPI routes."""
    patches.replace(module.Route, "handle", _handle)


def asgi_instrumentation(module: ModuleType, patches: Patches) -> None:
    """The OpenTelemetry ASGI middleware: its own span around `receive` would undo what is attached outside it."""
    patches.replace(module.OpenTelemetryMiddleware, "__call__", _inside(_Attaching))


def gzip(module: ModuleType, patches: Patches) -> None:
    """Starlette's compression."""
    patches.replace(module.GZipMiddleware, "__call__", _inside(_Readable))


def brotli(module: ModuleType, patches: Patches) -> None:
    """The compression of brotli-asgi."""
    patches.replace(module.BrotliMiddleware, "__call__", _inside(_Readable))


def _handle(original: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    @wraps(original)
    def handle(self: Any, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        exchange = scope.get(SCOPE_KEY)
        if not isinstance(exchange, Exchange):
            return original(self, scope, receive, send)
        exchange.scope = scope  # Middlewares have run, and some of them copy.
        runtime, is_function = current.runtime, isinstance(getattr(self, "endpoint", None), _FUNCTIONS)
        if not is_function or runtime is None or exchange.at_sdk:
            return original(self, scope, receive, send)
        return serve(self, runtime, exchange, scope, receive, send)

    async def serve(
        route: Any, runtime: Runtime, exchange: Exchange, scope: Scope, receive: Receive, send: Send
    ) -> None:
        length = 0 if exchange.parsed else _may_read_ahead(exchange)
        if not length:
            return await run(route, runtime, exchange, scope, receive, send)
        ahead = _Ahead(receive, length)
        exchange.read_ahead = True
        try:
            await ahead.read()
            await run(route, runtime, exchange, scope, ahead, send)
        finally:
            ahead.let_go()  # Also where the app never reads it.

    async def run(route: Any, runtime: Runtime, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        token = None
        try:
            send = runtime.replies.within(exchange, send)
            token = _arrive(runtime, exchange, scope)
        except Exception as failure:
            report("route seam", failure)
        try:
            call = _only_call(exchange)
            if call is None or runtime.watch.handed_over.hands_over(exchange):
                await original(route, scope, receive, send)
            else:
                await Dispatch(runtime, call, handwritten=True).run(lambda: original(route, scope, receive, send))
        finally:
            if token is not None:
                otel_context.detach(token)

    return handle


def _arrive(runtime: Runtime, exchange: Exchange, scope: Scope) -> Token[Context] | None:
    """Note the context here, inside every middleware; returns what to detach after the request."""
    if exchange.http_span is None:
        exchange.ambient = without_ended_span(otel_context.get_current())
    context = runtime.http_spans.begin(exchange, scope) if exchange.confirmed else None
    return otel_context.attach(context) if context is not None else None


def _only_call(exchange: Exchange) -> Call | None:
    requests = [call for call in exchange.calls if call.id is not None]
    return requests[0] if len(requests) == 1 and not requests[0].dispatched else None


def _may_read_ahead(exchange: Exchange) -> int:
    """Bytes of a body that may be read before the app asks for it; 0 = none."""
    length = exchange.headers.get(b"content-length", b"")
    if b"expect" in exchange.headers or not length.isdigit() or len(length) > len(str(MAX_BODY)):
        return 0
    return int(length) if int(length) <= MAX_BODY and _ahead + int(length) <= _MAX_AHEAD else 0


class _Ahead:
    """A body taken off the wire, message by message, for the app to get it the same way."""

    def __init__(self, receive: Receive, length: int) -> None:
        global _ahead
        self._receive = receive
        self._length = length
        self._messages: deque[Message] = deque()
        self._error: Exception | None = None
        # From before its first byte: a thousand slow ones must not all find room.
        _ahead += length

    async def read(self) -> None:
        """Wait for the whole body, unless it comes in too many pieces. What that raises, the app gets when it asks."""
        size, more = 0, True
        while more and size <= MAX_BODY and len(self._messages) < _MAX_PIECES:
            try:
                message = await self._receive()
            except Exception as error:
                self._error = error
                return
            self._messages.append(message)
            size += len(message.get("body", b""))
            more = message["type"] == "http.request" and message.get("more_body", False)

    async def __call__(self) -> Message:
        if not self._messages:
            if (error := self._error) is not None:
                self._error = None
                raise error
            return await self._receive()
        message = self._messages.popleft()
        if not self._messages:
            self.let_go()
        return message

    def let_go(self) -> None:
        """It takes no room any more."""
        global _ahead
        _ahead -= self._length
        self._length = 0


async def attach(runtime: Runtime, exchange: Exchange, scope: Scope) -> None:
    """Put the rest of a bare ASGI app under the span of the one call that it has just read.

    Runs in the app's own task, so that what is attached is the app's context.
    The first request of an app shows that nobody else will open a span; it gets
    its own afterwards.
    """
    if exchange.dispatch is not None or not runtime.watch.is_bare(exchange):
        return
    call = _only_call(exchange)
    if call is not None:
        runtime.http_spans.begin(exchange, scope)
        exchange.dispatch = Dispatch(runtime, call, handwritten=True)
        exchange.dispatch.take()
        await exchange.dispatch.resolve()
        exchange.dispatch.enter()


def _inside(wrapper: type[_Inner]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Have a middleware call its app through `wrapper`, from the first request on that is watched."""

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        async def __call__(self: Any, scope: Scope, receive: Receive, send: Send) -> None:
            with _GUARD:
                if scope.get(SCOPE_KEY) is not None and not isinstance(self.app, wrapper):
                    self.app = wrapper(self.app)
            await original(self, scope, receive, send)

        return __call__

    return make


class _Inner:
    """The app inside a middleware of others."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with _GUARD:
            exchange, runtime = scope.get(SCOPE_KEY), current.runtime
            if isinstance(exchange, Exchange) and runtime is not None:
                receive, send = self._watched(runtime, exchange, scope, receive, send)
        await self.app(scope, receive, send)

    def _watched(
        self, runtime: Runtime, exchange: Exchange, scope: Scope, receive: Receive, send: Send
    ) -> tuple[Receive, Send]:
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:
        return getattr(self.app, name)


class _Attaching(_Inner):
    """Inside the ASGI middleware of OpenTelemetry, whose span is the parent."""

    def _watched(
        self, runtime: Runtime, exchange: Exchange, scope: Scope, receive: Receive, send: Send
    ) -> tuple[Receive, Send]:
        exchange.attaches_inside = True

        async def attaching() -> Message:
            message = await receive()
            with _GUARD:
                if exchange.parsed:
                    await attach(runtime, exchange, scope)
            return message

        return attaching, send


class _Readable(_Inner):
    """Inside a middleware that compresses, where the answer can still be read."""

    def _watched(
        self, runtime: Runtime, exchange: Exchange, scope: Scope, receive: Receive, send: Send
    ) -> tuple[Receive, Send]:
        return receive, runtime.replies.within(exchange, send)
