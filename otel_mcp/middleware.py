"""The ASGI side: watch one request pass, change nothing but the headers we add.

Pure ASGI. Every message is forwarded first and read afterwards; nothing is
buffered, delayed or reordered, and what the app raises passes untouched. But
for one: the answer to ``initialize`` in JSON starts with its first body message,
as servers may have it too; only then is it known which headers it gets.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TypeVar

from opentelemetry import context as otel_context
from opentelemetry.context import Context

from otel_mcp import current
from otel_mcp.exchange.nesting import is_same
from otel_mcp.exchange.response_headers import with_headers_at_hand
from otel_mcp.guard import guarded, report
from otel_mcp.model.call import SCOPE_KEY, Exchange, current_call, current_exchange
from otel_mcp.types import ASGIApp, Message, Receive, Scope, Send
from otel_mcp.wire import headers as wire_headers

if TYPE_CHECKING:
    from otel_mcp.runtime import Runtime

T = TypeVar("T")

_LIFESPAN: Final = guarded("lifespan")


class MCPMiddleware:
    """Observe the MCP traffic of an ASGI app.

    Not needed under ``opentelemetry-instrument``; for apps that no seam reaches:

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
            await observe(self._get_runtime, seen, self.app, scope, receive, send)

    def _get_runtime(self) -> Runtime | None:
        return self._runtime or current.build()


Seen = tuple[dict[bytes, bytes], int]
"""Request headers by lower-case name, and the verdict on them."""


def look(scope: Scope, *, from_server: bool = False) -> Seen | None:
    """The first look at a connection, by every seam that it passes.

    Args:
        scope: the connection.
        from_server: it comes from the server itself, so it is of no other request.

    Returns:
        ``None`` where there is nothing to observe: no MCP by its headers, or
        somebody further out has begun to watch, perhaps under another scope.
    """
    try:
        kind = scope.get("type")
        if kind not in ("http", "lifespan"):
            return None
        if SCOPE_KEY in scope:
            if (exchange := scope[SCOPE_KEY]) is not None:
                exchange.scope = scope
            return None
        if kind == "lifespan":
            return {}, wire_headers.NO
        headers = wire_headers.by_name(scope)
        verdict = wire_headers.recognise(scope.get("method", ""), headers)
        if verdict == wire_headers.NO:
            return None
        around = None if from_server else current_exchange.get()
        if around is None or not is_same(around, scope, headers):
            return headers, verdict
        scope[SCOPE_KEY], around.scope = around, scope
    except Exception as failure:
        report("first look", failure)
    return None


async def observe(
    get_runtime: Callable[[], Runtime | None], seen: Seen, app: ASGIApp, scope: Scope, receive: Receive, send: Send
) -> None:
    """Run `app` for one ASGI connection that :func:`look` found worth it.

    The runtime is asked for only where the headers allow MCP: other traffic, and
    processes without any, never load it.
    """
    handler: _Handler | None = None
    try:
        if scope["type"] == "lifespan":
            scope[SCOPE_KEY] = None  # Once is enough: flushing waits, perhaps for exporters that are away.
            send = _lifespan(get_runtime, send)
        elif (runtime := get_runtime()) is not None:
            headers, verdict = seen
            exchange = runtime.begin(scope, headers, verdict)
            if exchange is not None:
                handler = _Handler(runtime, exchange, receive, send)
                if exchange.transport_id is not None:
                    scope = await runtime.owning.claimed(exchange, scope)
    except Exception as failure:
        report("request", failure)
    if handler is None:
        await app(scope, receive, send)
    else:
        await handler.run(app, scope)


class _Handler:
    """One request that is watched. Its bound methods are the `receive` and `send` of the app."""

    __slots__ = ("_call", "_exchange", "_outside", "_receive", "_runtime", "_scope", "_send")

    def __init__(self, runtime: Runtime, exchange: Exchange, receive: Receive, send: Send) -> None:
        self._runtime = runtime
        self._exchange = exchange
        self._receive = receive
        self._send = send
        self._scope: Scope = {}
        self._outside = exchange.ambient or Context()
        self._call = current_call.get()

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        """Serve the request. What `app` raises passes untouched."""
        exchange, error, token = self._exchange, None, None
        self._scope = scope
        if otel_context.get_current() is not self._outside:
            token = otel_context.attach(self._outside)  # The span that was current has ended.
        here = current_exchange.set(exchange)
        try:
            await app(scope, self.receive, self.send)
        except BaseException as raised:
            error = raised
            exchange.raised = isinstance(raised, Exception)
            raise
        finally:
            if (start := exchange.held) is not None:
                exchange.held = None
                with suppress(Exception):  # The app has ended without a body, and what it raised is what counts.
                    await self._as_outside(self._send, start)
            try:
                if exchange.dispatch is not None:
                    exchange.dispatch.leave(None)
                spans = self._runtime.http_spans
                if exchange.confirmed and not exchange.http_decided:
                    spans.begin(exchange, scope)
                self._runtime.watch.end(exchange)
                spans.end(exchange, error)
                current_exchange.reset(here)
            except Exception as failure:
                report("end of request", failure)
            error = None  # Or this frame and its traceback refer to each other.
            if token is not None:
                otel_context.detach(token)

    async def receive(self) -> Message:
        if otel_context.get_current() is self._outside and current_call.get() is self._call:
            message = await self._receive()
        else:
            message = await self._as_outside(self._receive)
        exchange = self._exchange
        try:
            if message["type"] == "http.request":
                self._runtime.watch.requested(exchange, message.get("body", b""), more=message.get("more_body", False))
                if exchange.parsed and not (exchange.at_sdk or exchange.attaches_inside):
                    await self._runtime.attach(exchange, self._scope)
            elif message["type"] == "http.disconnect":
                # Servers also say so after a completed response: then nobody has left early.
                exchange.disconnected = not exchange.responded
        except Exception as failure:
            report("receive", failure)
        return message

    async def send(self, message: Message) -> None:
        exchange, runtime = self._exchange, self._runtime
        outgoing: Message | None = message
        is_body = False
        if exchange.held is not None:
            await self._resume(exchange.held, message)
        try:
            kind = message.get("type")
            is_body = kind == "http.response.body"
            if kind == "http.response.start":
                message = outgoing = with_headers_at_hand(message)
                # In the order of what the app sees: the span first, whose context the message's span belongs under.
                if not exchange.http_decided:
                    runtime.http_spans.decide(exchange, self._scope)
                outgoing = runtime.replies.at_once(exchange, message) or await runtime.replies.answering(
                    exchange, message
                )
                if outgoing is not None and exchange.http_span is not None:
                    outgoing = runtime.http_spans.responding(exchange, outgoing)
        except Exception as failure:
            report("send", failure)
        if outgoing is None:
            return  # It waits for the body.
        if otel_context.get_current() is self._outside and current_call.get() is self._call:
            await self._send(outgoing)
        else:
            await self._as_outside(self._send, outgoing)
        if is_body:
            try:
                more = message.get("more_body", False)
                runtime.replies.answered(exchange, message.get("body", b""), more=more)
                if not more and exchange.http_span is not None:
                    runtime.http_spans.end(exchange)
            except Exception as failure:
                report("send", failure)

    async def _resume(self, start: Message, message: Message) -> None:
        """Send the start that has waited for its body, which is here."""
        exchange, runtime = self._exchange, self._runtime
        exchange.held = None
        try:
            start = await runtime.replies.resumed(exchange, start, message)
            if exchange.http_span is not None:
                start = runtime.http_spans.responding(exchange, start)
        except Exception as failure:
            report("send", failure)
        await self._as_outside(self._send, start)

    async def _as_outside(self, server: Callable[..., Awaitable[T]], *message: Message) -> T:
        """Wait for the server in the context that it called us in.

        A server may schedule callbacks meanwhile, which keep the context that they
        are scheduled in: in that of a request, the later ones of its connection
        would seem to be part of it (uvicorn with h11 or httptools, on asyncio).
        """
        token, call_token = otel_context.attach(self._outside), current_call.set(self._call)
        try:
            return await server(*message)
        finally:
            current_call.reset(call_token)
            otel_context.detach(token)


def _lifespan(get_runtime: Callable[[], Runtime | None], send: Send) -> Send:
    """Get ready before the first request, and flush before the server is told that the app has shut down.

    Some servers end without running ``atexit``: they raise the signal again that
    stopped them.
    """

    async def watched(message: Message) -> None:
        with _LIFESPAN:
            if message["type"] == "lifespan.startup.complete" and "mcp" in sys.modules:
                if (runtime := get_runtime()) is not None:
                    await runtime.warm_up()
            elif message["type"].startswith("lifespan.shutdown.") and (runtime := current.runtime) is not None:
                await runtime.shut_down()
        await send(message)

    return watched
