"""Serve one HTTP request that may be MCP, by an object whose bound methods are the app's `receive` and `send`.

Every message is forwarded first and read afterwards. Nothing is buffered, delayed or reordered, and the app's
exceptions pass unchanged. One exception: the start of a JSON answer to ``initialize`` waits for the first body message,
because the headers that we add depend on it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from time import perf_counter
from typing import Any, Final

from opentelemetry import context as otel_context

from otel_mcp.exchange.replies import Answer
from otel_mcp.exchange.request import MAX_BODY
from otel_mcp.exchange.response import Exchanges
from otel_mcp.guard import report
from otel_mcp.hashing import OURS
from otel_mcp.identity.address import PROXY_HEADERS
from otel_mcp.loops import as_coroutine_function
from otel_mcp.model.call import MODERN, SCOPE_KEY, Exchange, Reading, current_call, current_exchange
from otel_mcp.semconv import OTHER, TOOL_ERROR
from otel_mcp.telemetry.census import MIN_STREAM_SECONDS
from otel_mcp.telemetry.propagation import without_ended_span
from otel_mcp.types import ASGIApp, Message, Receive, Scope, Send
from otel_mcp.wire import headers as wire_headers
from otel_mcp.wire.sse import result_size

_NOTHING: Final[Mapping[bytes, bytes]] = {}


class ExchangeHandler:
    """Serves one request."""

    __slots__ = (
        "_answer", "_around", "_call", "_exchanges", "_held_body", "_outside", "_receive", "_scope", "_send", "_size",
        "_start", "exchange",
    )  # fmt: skip

    def __init__(
        self, exchanges: Exchanges, seen: wire_headers.Seen, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Read the headers of a request. If they name a session, `run` finds out whose id it is."""
        headers, certain = seen
        version, session_id = headers.get(wire_headers.PROTOCOL_VERSION), headers.get(wire_headers.SESSION_ID)
        client, self._around = scope.get("client"), (around := otel_context.get_current())
        wire_session_id = session_id[:512].decode("latin-1") if session_id else None
        self._outside = ambient = without_ended_span(around) if around else around
        # Positional, because a dozen keyword arguments would cost as much as the rest of this function.
        self.exchange = exchange = Exchange(
            scope.get("method", ""), scope.get("path", ""), headers,
            wire_headers.HTTP_VERSIONS.get(scope.get("http_version", "1.1"), OTHER),
            str(client[0]) if client and client[0] else None, client[1] if client and len(client) > 1 else None,
            scope, version[:32].decode("latin-1") if version else None, wire_session_id, wire_session_id,
            certain, ambient,
            exchanges.capture, exchanges.tenant_of, exchanges.hides_ids, exchanges.http_spans.is_off,
        )  # fmt: skip
        if version and exchange.http_method != "POST" and exchange.modern:
            exchange.protocol_version = None  # Only earlier revisions use GET and DELETE.
        # HTTP/1.0 means a proxy that adds no headers: nginx uses it by default, and no MCP client does.
        if exchange.http_version == "1.0" or not PROXY_HEADERS.isdisjoint(headers):
            exchange.client, exchange.client_port, exchange.client_is_shared = exchanges.requests.clients.of(scope)
        if wire_session_id is None and scope.get("query_string"):
            exchange.transport_id = wire_headers.query_session_id(scope)
        self._exchanges, self._scope, self._receive, self._send = exchanges, scope, receive, send
        self._call = current_call.get()
        self._held_body: bytearray | None = None  # The request body so far, if it comes in pieces.
        self._start: Message | None = None  # A start that waits for its body.
        self._answer: Answer | None = None  # Reads the answer, if it has to be read.
        self._size = 0  # Bytes of a result that is only measured.
        scope[SCOPE_KEY] = exchange

    async def run(self, app: ASGIApp) -> None:
        """Serve the request. Exceptions of `app` pass unchanged."""
        exchange, error = self.exchange, None
        if exchange.transport_id is not None:
            try:
                owners, wire_id = self._exchanges.session_ids.owners, exchange.wire_session_id or OURS
                is_plain = self._exchanges.resolver.hashes.ready and (exchange.protocol_version or "") < MODERN
                if is_plain and owners.get(exchange.path) and not wire_id.startswith(OURS):
                    owners.move_to_end(exchange.path)
                    exchange.owns_sessions = True  # The server made this id.
                else:
                    self._scope = await self._exchanges.session_ids.claim(exchange, self._scope)
            except Exception as failure:
                report("request", failure)
        if self._outside is not self._around:
            otel_context.attach(self._outside)  # The span that was current has ended.
        here = current_exchange.set(exchange)
        try:
            await app(self._scope, self.receive, self.send)
        except BaseException as raised:
            error = raised
            exchange.raised = isinstance(raised, Exception)
            raise
        finally:
            try:
                if (start := self._start) is not None:
                    self._start = None
                    with suppress(Exception):  # The app sent no body; its own exception counts.
                        await self._as_outside(self._send, start)
            finally:  # The send above may be cancelled.
                try:
                    try:
                        self._close(error)
                    finally:
                        if type(error) is not GeneratorExit:  # The garbage collector runs this in another context.
                            current_exchange.reset(here)
                            if otel_context.get_current() is not self._around:
                                otel_context.attach(self._around)  # The app may have left its own attached.
                except Exception as failure:
                    report("end of request", failure)
                error = None  # Breaks the cycle between this frame and its traceback.

    async def receive(self) -> Message:
        """Pass the next message to the app, and read it."""
        exchange, token, call_token = self.exchange, None, None
        if otel_context.get_current() is not self._outside or current_call.get() is not self._call:
            token, call_token = otel_context.attach(self._outside), current_call.set(self._call)  # See `_as_outside`.
        try:
            message = await self._receive()
        finally:
            if token is not None and call_token is not None:
                current_call.reset(call_token)
                otel_context.detach(token)
        try:
            if message["type"] == "http.disconnect":
                # Servers send it after a complete response too; then the client has not left early.
                exchange.disconnected = not exchange.responded
            elif not exchange.parsed and message["type"] == "http.request":
                body, more = message.get("body", b""), message.get("more_body", False)
                is_read = exchange.at_sdk and exchange.confirmed and exchange.http_method == "POST"
                is_read = is_read and exchange.transport_id not in self._exchanges.asked
                if is_read and not more and not self._held_body and body[:1] == b"{" and len(body) <= MAX_BODY:
                    # The SDK parses it anyway and reports the message. `bytes()` does not copy bytes.
                    exchange.unparsed_body, exchange.body_size, exchange.parsed = bytes(body), len(body), True
                else:
                    self._held_body = self._exchanges.requests.feed(exchange, self._held_body, body, more=more)
                    if exchange.parsed and exchange.confirmed and not (exchange.at_sdk or exchange.attaches_inside):
                        await self._exchanges.dispatcher.attach(exchange, self._scope)  # No SDK will report the call.
        except Exception as failure:
            report("receive", failure)
        return message

    @as_coroutine_function
    def send(self, message: Message) -> Awaitable[None]:
        """Pass a message of the app to the server, with our headers if it starts the answer, and read it."""
        exchange, begun = self.exchange, None
        if exchange.foreign and not exchange.at_sdk:
            return self._send(message)
        try:
            if message["type"] == "http.response.start":
                begun = self._begin_known(message)
        except Exception as failure:
            report("send", failure)
        if begun is None:
            return self._forward(message)
        if otel_context.get_current() is self._outside and current_call.get() is self._call:
            return self._send(begun)
        return self._as_outside(self._send, begun)

    async def _forward(self, message: Message) -> None:
        """Pass on a message that has to be read, or a start that `_begin_known` could not handle."""
        exchange, outgoing = self.exchange, message
        if self._start is not None:
            return await self._slow_resume(self._start, message)
        try:
            if message.get("type") == "http.response.start":
                if (started := await self._slow_begin(message)) is None:
                    return  # It waits for its body.
                outgoing = started
        except Exception as failure:
            report("send", failure)
        if otel_context.get_current() is self._outside and current_call.get() is self._call:
            await self._send(outgoing)
        else:
            await self._as_outside(self._send, outgoing)
        if message.get("type") != "http.response.body":
            return
        try:
            body, more = message.get("body", b""), message.get("more_body", False)
            exchange.responded = exchange.responded or not more
            if (call := exchange.sdk_call) is not None and exchange.reading is Reading.SIZE:
                self._size += len(body)
                if not more:
                    self._exchanges.inflight.finish(call, call.handler_outcome, self._size)
            elif exchange.reading is not Reading.NOTHING:
                self._slow_answer(body, more=more)
            if exchange.http_span is not None and not more:
                self._exchanges.http_spans.end(exchange)
        except Exception as failure:
            report("send", failure)

    def _begin_known(self, message: Message) -> Message | None:
        """Begin a 200 answer of a known session if an SDK read the request; ``None`` = use `_slow_begin`."""
        exchange, call, body = self.exchange, self.exchange.sdk_call, self.exchange.unparsed_body
        if exchange.status is not None or (call is None and body is None) or message["status"] != 200:
            return None
        content_type = wire_headers.plain_type(message.get("headers"))
        if content_type == b"application/json":
            # The SDK has already served the tool call: only the size of its result is unknown.
            if call is None or call.running or call.session is None or (outcome := call.handler_outcome) is None:
                return None
            if outcome.status_code is not None or (outcome.error_type is not None and outcome.error_type != TOOL_ERROR):
                return None  # Only the answer has the code of this error.
            session, exchange.reading = call.session, Reading.SIZE
        elif content_type is not None and content_type.startswith(b"text/event-stream"):
            if body is None or b'"initialize"' in body or (session := self._exchanges.resolver.known(exchange)) is None:
                return None  # The stream opens before its answer is known.
            if b'"_meta"' in body and self._exchanges.conversations.search(body):
                return None
            exchange.session, exchange.reading = session, Reading.QUIET_STREAM
            self._exchanges.inflight.census.streams[exchange] = perf_counter()
        else:
            return None
        exchange.status = 200
        if exchange.http_span is not None:
            message = self._exchanges.http_spans.respond(exchange, message)
        if not self._exchanges.responses.adds_session_id:
            return message
        public = session.facts.session_id.encode("ascii")
        return {**message, "headers": [*message["headers"], (wire_headers.X_SESSION_ID, public)]}

    async def _slow_begin(self, message: Message, body: bytes | None = None) -> Message | None:
        """Begin any other answer; ``None`` = the start waits for its body."""
        exchange = self.exchange
        if body is None and exchange.status is not None:
            return message  # Some transports send two starts; the first one counts.
        message = wire_headers.with_headers_at_hand(message)
        begun = await self._exchanges.begin(exchange, self._scope, message, body)
        self._start = message if begun is None else None
        return begun

    async def _slow_resume(self, start: Message, message: Message) -> None:
        """Send the start that waited for its body, then `message`."""
        self._start = None
        try:
            start = await self._slow_begin(start, message.get("body", b"")) or start
        except Exception as failure:
            report("send", failure)
        await self._as_outside(self._send, start)
        await self._forward(message)

    def _slow_answer(self, body: bytes | memoryview, *, more: bool) -> None:
        """Read a chunk of the response body that was sent."""
        exchange, call = self.exchange, self.exchange.sdk_call
        if exchange.reading is Reading.QUIET_STREAM:
            # No event so far. This one may be the result whose outcome the SDK has reported.
            if not body:
                return
            size = None if call is None or call.running else result_size(body, call.id)
            if size is not None and call is not None and call.handler_outcome is not None:
                self._exchanges.inflight.finish(call, call.handler_outcome, size)
                return
            exchange.reading = Reading.STREAM
        if self._answer is None:
            self._answer = Answer(self._exchanges.replies, exchange, exchange.reading)
        self._answer.feed(body, more=more)

    def _close(self, error: BaseException | None) -> None:
        """End the request after the app has returned or raised."""
        exchange, inflight = self.exchange, self._exchanges.inflight
        if exchange.foreign and not exchange.at_sdk:
            exchange.closed, exchange.scope = True, None
            return
        began = inflight.census.streams.pop(exchange, None)
        if began is not None and (exchange.sdk_call is None or perf_counter() - began >= MIN_STREAM_SECONDS):
            self._exchanges.stream_ended(exchange, began)
        if (is_kept := not exchange.at_sdk) or exchange.dispatch is not None or exchange.unparsed_body is not None:
            self._exchanges.end_unread(exchange, self._scope)
        exchange.closed = is_over = True
        if exchange.scope is not None:
            exchange.user, exchange.scope = exchange.scope.get("user"), None
        if inflight.waiting:
            inflight.expire()
        for call in exchange.calls:
            if not call.finished and not call.running:
                inflight.leave(call)
            is_over = is_over and call.finished and not call.running and (call.dispatched or not exchange.at_sdk)
            is_kept = is_kept or not (call.dispatched and call.finished)
        if exchange.status != 200 or exchange.http_method != "POST":
            self._exchanges.ended(exchange)
        if exchange.http_span is not None:
            self._exchanges.http_spans.end(exchange, error)
        if not is_kept:  # The spans exist, so keep only what recording the calls needs.
            exchange.ambient, exchange.headers = None, exchange.headers if exchange.tenant_of else _NOTHING
        if is_over:
            exchange.calls, exchange.sdk_call, exchange.dispatch = [], None, None  # As `Exchange.forget_calls` does.

    async def _as_outside(self, server: Callable[..., Awaitable[Any]], *message: Message) -> Any:
        """Await the server in the context of its own call: uvicorn passes the current one to later requests."""
        token, call_token = otel_context.attach(self._outside), current_call.set(self._call)
        try:
            return await server(*message)
        finally:
            current_call.reset(call_token)
            otel_context.detach(token)
