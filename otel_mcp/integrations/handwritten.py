"""Patches for servers without an SDK, where the HTTP handler is the handler of the message.

A function behind a Starlette or FastAPI route lies inside every middleware. Of
bare ASGI apps no patch knows anything; those of middlewares around them are met
on their inner side.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from functools import wraps
from types import ModuleType
from typing import Any, Final

from opentelemetry import context as otel_context

from otel_mcp import current
from otel_mcp.exchange.dispatch import AppDispatch, only_call
from otel_mcp.exchange.request import MAX_BODY
from otel_mcp.guard import guarded, report
from otel_mcp.integrations.patching import Patches
from otel_mcp.model.call import SCOPE_KEY, Exchange
from otel_mcp.runtime import Runtime
from otel_mcp.telemetry.propagation import without_ended_span
from otel_mcp.types import ASGIApp, Message, Receive, Scope, Send

_GUARD: Final = guarded("route seam")
_MAX_AHEAD: Final = 64 * 1024 * 1024
"""Bytes that one process reads ahead at a time."""
_MAX_PIECES: Final = 4096
"""Messages of one body that are read ahead: each is an object, however small."""
_ahead = 0


def asgi_instrumentation(module: ModuleType, patches: Patches) -> None:
    """The OpenTelemetry ASGI middleware: its own span around `receive` would undo what is attached outside it."""
    patches.replace(module.OpenTelemetryMiddleware, "__call__", _inside(_Attaching))


def gzip(module: ModuleType, patches: Patches) -> None:
    """Starlette's compression."""
    patches.replace(module.GZipMiddleware, "__call__", _inside(_Readable))


def brotli(module: ModuleType, patches: Patches) -> None:
    """The compression of brotli-asgi."""
    patches.replace(module.BrotliMiddleware, "__call__", _inside(_Readable))


async def serve(
    handler: ASGIApp, runtime: Runtime, exchange: Exchange, scope: Scope, receive: Receive, send: Send
) -> None:
    """Run the function behind a route as the handler of the message that its request carries."""
    length = 0 if exchange.parsed else _may_read_ahead(exchange)
    if not length:
        return await _run(handler, runtime, exchange, scope, receive, send)
    ahead = _Ahead(receive, length)
    exchange.read_ahead = True
    try:
        await ahead.read()
        await _run(handler, runtime, exchange, scope, ahead, send)
    finally:
        ahead.release()  # Also where the app never reads it.


async def _run(
    handler: ASGIApp, runtime: Runtime, exchange: Exchange, scope: Scope, receive: Receive, send: Send
) -> None:
    token = None
    try:
        send = runtime.exchanges.replies.within(exchange, send)
        if exchange.http_span is None:
            exchange.ambient = without_ended_span(otel_context.get_current())
        if exchange.confirmed and (context := runtime.http_spans.begin(exchange, scope)) is not None:
            token = otel_context.attach(context)
    except Exception as failure:
        report("route seam", failure)
    try:
        call = only_call(exchange)
        if call is None or runtime.exchanges.inflight.handed_over.hands_over(exchange):
            await handler(scope, receive, send)
        else:
            await AppDispatch(runtime.dispatcher, call).run(lambda: handler(scope, receive, send))
    finally:
        if token is not None:
            otel_context.detach(token)


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
            self.release()
        return message

    def release(self) -> None:
        """Take no room any more."""
        global _ahead
        _ahead -= self._length
        self._length = 0


def _inside(wrapper: type[_Inner]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Have a middleware call its app through `wrapper`, from the first request on that is observed."""

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

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        with _GUARD:
            exchange, runtime = scope.get(SCOPE_KEY), current.runtime
            if isinstance(exchange, Exchange) and runtime is not None:
                receive, send = self._observed(runtime, exchange, scope, receive, send)
        return self.app(scope, receive, send)

    def _observed(
        self, runtime: Runtime, exchange: Exchange, scope: Scope, receive: Receive, send: Send
    ) -> tuple[Receive, Send]:
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:
        return getattr(self.app, name)


class _Attaching(_Inner):
    """Inside the ASGI middleware of OpenTelemetry, whose span is the parent."""

    def _observed(
        self, runtime: Runtime, exchange: Exchange, scope: Scope, receive: Receive, send: Send
    ) -> tuple[Receive, Send]:
        exchange.attaches_inside = True

        async def attaching() -> Message:
            message = await receive()
            with _GUARD:
                if exchange.parsed:
                    await runtime.dispatcher.attach(exchange, scope)
            return message

        return attaching, send


class _Readable(_Inner):
    """Inside a middleware that compresses, where the answer can still be read."""

    def _observed(
        self, runtime: Runtime, exchange: Exchange, scope: Scope, receive: Receive, send: Send
    ) -> tuple[Receive, Send]:
        return receive, runtime.exchanges.replies.within(exchange, send)
