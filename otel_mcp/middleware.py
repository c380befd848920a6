"""The ASGI side: watch one request pass, change nothing but the headers we add.

Pure ASGI. Every message is forwarded first and read afterwards; nothing is
buffered, delayed or reordered, and what the app raises passes untouched.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any, Final

from otel_mcp import process
from otel_mcp.guard import guarded, report
from otel_mcp.nesting import is_same
from otel_mcp.request import SCOPE_KEY, Exchange, current_exchange
from otel_mcp.wire import headers as wire_headers

if TYPE_CHECKING:
    from otel_mcp.runtime import Runtime

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

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
        return self._runtime or process.runtime()


Seen = tuple[dict[bytes, bytes], int]
"""Request headers, and the verdict on them."""


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
        kind = scope["type"]
        if kind not in ("http", "lifespan") or SCOPE_KEY in scope:
            return None
        if kind == "lifespan":
            return {}, wire_headers.NO
        # Of a repeated header the first stands, as frameworks read it.
        headers: dict[bytes, bytes] = dict(reversed(scope["headers"]))
        verdict = wire_headers.recognise(scope["method"], headers)
        if verdict == wire_headers.NO:
            return None
        around = None if from_server else current_exchange.get()
        if around is None or not is_same(around, scope, headers):
            return headers, verdict
        scope[SCOPE_KEY] = around
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
    exchange: Exchange | None = None
    runtime: Runtime | None = None
    try:
        if scope["type"] == "lifespan":
            scope[SCOPE_KEY] = None  # Once is enough: flushing waits, perhaps for exporters that are away.
            send = _lifespan(get_runtime, send)
        elif (runtime := get_runtime()) is not None:
            headers, verdict = seen
            exchange = runtime.begin(scope, headers, verdict)
            if exchange is not None and exchange.transport_id is not None:
                scope = await runtime.owning.claimed(exchange, scope)
    except Exception as failure:
        report("request", failure)
    if exchange is None or runtime is None:
        await app(scope, receive, send)
        return
    token = current_exchange.set(exchange)
    try:
        await app(scope, _watched_receive(runtime, exchange, receive), _watched_send(runtime, exchange, send))
    finally:
        try:
            current_exchange.reset(token)
            if exchange.dispatch is not None:
                exchange.dispatch.leave(None)
            runtime.watch.end(exchange)
        except Exception as failure:
            report("end of request", failure)


def _watched_receive(runtime: Runtime, exchange: Exchange, receive: Receive) -> Receive:
    watch = runtime.watch

    async def watched() -> Message:
        message = await receive()
        try:
            if message["type"] == "http.request":
                watch.requested(exchange, message.get("body", b""), more=message.get("more_body", False))
                if exchange.parsed and not (exchange.at_sdk or exchange.attaches_inside):
                    await runtime.attach(exchange)
            elif message["type"] == "http.disconnect":
                # Servers also say so after a completed response: then nobody has left early.
                exchange.disconnected = not exchange.responded
        except Exception as failure:
            report("receive", failure)
        return message

    return watched


def _watched_send(runtime: Runtime, exchange: Exchange, send: Send) -> Send:
    replies = runtime.replies

    async def watched(message: Message) -> None:
        outgoing = message
        if message["type"] == "http.response.start":
            try:
                outgoing = replies.at_once(exchange, message) or await replies.answering(exchange, message)
            except Exception as failure:
                report("send", failure)
        await send(outgoing)
        if message["type"] == "http.response.body":
            try:
                replies.answered(exchange, message.get("body", b""), more=message.get("more_body", False))
            except Exception as failure:
                report("send", failure)

    return watched


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
            elif message["type"].startswith("lifespan.shutdown.") and (runtime := process.existing()) is not None:
                await runtime.shut_down()
        await send(message)

    return watched
