"""Read the answer of an exchange while it passes: how each call ended, and other facts such as listed names.

Memory is bounded: a larger JSON body or event is measured, but not kept.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import Any, Final

from otel_mcp.exchange.inflight import InFlight
from otel_mcp.exchange.request import Requests
from otel_mcp.guard import report
from otel_mcp.identity.resolver import Resolver
from otel_mcp.loops import as_coroutine_function
from otel_mcp.model.call import Call, Exchange, Reading
from otel_mcp.settings import Settings
from otel_mcp.telemetry.metrics import Metrics
from otel_mcp.types import Message, Send
from otel_mcp.wire import headers as wire_headers
from otel_mcp.wire.catalogue import Listing, unread_page
from otel_mcp.wire.jsonrpc import (
    FINE,
    JsonId,
    Outcome,
    json_id,
    negotiated_version,
    outcome_of,
    parse_replies,
    result_id,
)
from otel_mcp.wire.sse import Decoder, Event, whole
from otel_mcp.wire.tasks import NOTIFICATIONS, TASK_METHODS

LIMIT: Final = 256 * 1024
"""Bytes held of one answer."""
_LISTING_LIMIT: Final = 1024 * 1024
"""The same for a list of tools: public servers with a few hundred tools send 250 KB."""

_PLAIN: Final = frozenset({b"identity", b""})
_MESSAGES: Final = (b"message", b"")
"""Names of the events that carry JSON-RPC."""


def reading_of(present: Mapping[bytes, bytes]) -> Reading:
    """Choose how to read the body of a response with these headers; a compressed body is not read."""
    if present.get(b"content-encoding", b"identity").strip().lower() in _PLAIN:
        content_type = wire_headers.media_type(present)
        if content_type.startswith(b"text/event-stream"):
            return Reading.STREAM
        if content_type.startswith(b"application/json"):
            return Reading.JSON
    return Reading.NOTHING


class Replies:
    """Applies answers to their calls."""

    def __init__(
        self, settings: Settings, metrics: Metrics, resolver: Resolver, requests: Requests, inflight: InFlight
    ) -> None:
        self._metrics = metrics
        self._resolver = resolver
        self._requests = requests
        self._inflight = inflight
        self.keeps_results = settings.store_content
        """Results are stored, so each one is parsed."""

    def find(self, exchange: Exchange, request_id: JsonId) -> Call | None:
        """Find the call that a reply with this id answers."""
        if exchange.unparsed_body is not None:
            self._requests.read(exchange)
            if 200 <= (exchange.status or 0) < 300:
                for late in exchange.calls:
                    self._resolver.rejoin(late)
        call = exchange.find(request_id)
        if call is None and exchange.http_method == "GET" and exchange.transport_id:
            call = self._inflight.find(exchange, request_id)
        return call

    def read(self, exchange: Exchange, data: bytes | bytearray, size: int) -> None:
        """Read a JSON-RPC reply or a batch, unless the SDK has already reported the outcome."""
        if not self.keeps_results and self._is_known(exchange, data, size):
            return
        try:
            replies = parse_replies(data)
        except ValueError:
            return  # Not JSON: nothing to learn from it.
        for reply in replies:
            self._apply(exchange, reply, size // len(replies), data if data[:1] != b"[" else b"")

    def _is_known(self, exchange: Exchange, data: bytes | bytearray, size: int) -> bool:
        if (request_id := result_id(data)) is None:
            return False
        call = exchange.sdk_call
        if call is None or call.id != request_id:
            call = self.find(exchange, request_id)
        if call is not None and call.method == "tools/list" and self._metrics.listings.see(call, data):
            self._inflight.finish(call, FINE, size)
            return True
        if call is None or call.method != "tools/call" or not call.accepted:
            return False
        if call.running or call.handler_outcome is None:
            return False
        self._inflight.finish(call, call.handler_outcome, size)
        return True

    def _apply(self, exchange: Exchange, reply: Mapping[str, Any], size: int, data: bytes | bytearray) -> None:
        # A request of the server: its id may equal the id of a client's request.
        if "method" in reply:
            if reply["method"] in NOTIFICATIONS:
                self._metrics.tasks.notified(reply.get("params"))
            elif "id" in reply:
                call = only_unfinished(exchange) if exchange.calls else self._inflight.only_waiting(exchange)
                self._inflight.outgoing.sent(exchange, call, reply)
            return
        if (outcome := outcome_of(reply)) is None:
            return
        request_id = json_id(reply.get("id"))
        call = self.find(exchange, request_id) if request_id is not None else None
        if call is None:
            call = only_unfinished(exchange)
            # Refusals have no id, or one that the server made up.
            refused = (exchange.status or 0) >= 400 or reply.get("id") is None
            if call is None or not (call.id_unknown or refused):
                return
        try:
            if call.method == "tools/list" and call.listing is None and data:
                self._metrics.listings.see(call, data)
            self._learn(call, reply)
        finally:
            self._inflight.finish(call, outcome, size)

    def _learn(self, call: Call, reply: Mapping[str, Any]) -> None:
        """Learn the other facts of a reply: the revision, listed names, the result."""
        fields: Any = (result := reply.get("result"))
        self._metrics.catalogues.learn(call.method, result)
        is_task = isinstance(result, dict) and call.method in TASK_METHODS
        if is_task and (call.method != "tools/call" or "content" not in fields):
            self._metrics.tasks.see(call, fields)
        elif call.method == "tasks/result" and "error" in reply and (call.exchange.status or 0) < 400:
            self._metrics.tasks.see(call, {"error": reply["error"]})
        if call.method == "initialize" and (version := negotiated_version(reply)) is not None:
            self._resolver.opened(call)
            call.exchange.protocol_version = version
            if call.session is not None:
                call.session.facts.protocol_version = version
        elif call.method == "server/discover" and "error" in reply and not call.accepted:
            call.session = None  # The probe failed: a handshake follows, and has the session.
        if self.keeps_results or call.exchange.capture is not None:
            call.result = result

    def too_large(self, exchange: Exchange, size: int) -> None:
        """End the only unfinished call, if there is just one, when an answer is too large to read."""
        if (call := only_unfinished(exchange)) is not None:
            if call.method == "tools/list":
                call.listing = Listing(None, unread_page(size))
            elif call.method == "tasks/result":
                self._metrics.tasks.see(call, None)
            self._inflight.finish(call, call.handler_outcome or Outcome(unclassified=True), size)

    def endpoint(self, exchange: Exchange, data: bytes) -> None:
        """Learn the transport id from the first event of a 2024-11-05 stream, the address for POSTs."""
        if (session_id := wire_headers.endpoint_session_id(data)) is not None:
            exchange.confirmed = exchange.owns_sessions = exchange.sse_endpoint = True
            exchange.transport_id = session_id
            self._inflight.stream_opened(exchange, session_id)

    def within(self, exchange: Exchange, send: Send) -> Send:
        """Wrap the `send` of a handler whose answer a middleware may compress."""
        return _Within(self, exchange, send).send if b"accept-encoding" in exchange.headers else send


def only_unfinished(exchange: Exchange) -> Call | None:
    """Return the only unfinished call of an exchange; ``None`` if there are none or several."""
    unfinished = [call for call in exchange.calls if not call.finished]
    return unfinished[0] if len(unfinished) == 1 else None


def limit_of(exchange: Exchange) -> int:
    """Return how many bytes of an answer may be kept."""
    return _LISTING_LIMIT if exchange.calls and exchange.calls[0].method == "tools/list" else LIMIT


class Answer:
    """The body of one response."""

    __slots__ = ("_body", "_decoder", "_exchange", "_reading", "_replies", "_size", "_unread")

    def __init__(self, replies: Replies, exchange: Exchange, reading: Reading) -> None:
        self._replies = replies
        self._exchange = exchange
        self._reading = reading
        self._body: bytearray | bytes = b""
        self._size = 0
        self._decoder: Decoder | None = None
        self._unread: int | None = None
        """Size of an event that was too large to read."""

    def feed(self, body: bytes | bytearray | memoryview, *, more: bool) -> None:
        """Read one body message that was already forwarded."""
        # Apps may send a memoryview or bytearray and reuse it afterwards, so only copies may be kept.
        chunk = body if type(body) is bytes else memoryview(body).cast("B")
        if self._reading is Reading.STREAM:
            most = LIMIT if len(chunk) <= LIMIT else limit_of(self._exchange)
            if self._decoder is None and (event := whole(chunk, most)) is not None:
                self._event(event)
            elif chunk:
                if self._decoder is None:
                    self._decoder = Decoder(limit_of(self._exchange))
                for event in self._decoder.feed(chunk):
                    self._event(event)
            if not more and self._unread is not None:
                self._replies.too_large(self._exchange, self._unread)
        elif self._reading is Reading.JSON:
            self._size += len(chunk)
            if fits := self._size <= LIMIT or self._size <= limit_of(self._exchange):
                self._hold(chunk)
            if more:
                return
            if not fits:
                self._replies.too_large(self._exchange, self._size)
            elif self._body:
                body, self._body = self._body, b""
                self._replies.read(self._exchange, body, self._size)

    def _hold(self, chunk: bytes | memoryview) -> None:
        if not self._body:
            self._body = bytes(chunk)  # Copies if the app may reuse its buffer.
        elif isinstance(self._body, bytearray):
            self._body += chunk
        else:
            self._body = bytearray(self._body) + chunk

    def _event(self, event: Event) -> None:
        if not self._exchange.confirmed:
            if event.name == b"endpoint" and event.data:
                self._replies.endpoint(self._exchange, event.data)
            if not self._exchange.confirmed:
                self._reading = Reading.NOTHING  # An event stream that is not MCP.
        elif event.data is None:
            self._unread = event.size  # Answer or notification: the end of the stream shows which.
        elif event.name in _MESSAGES and (b'"id"' in event.data or b'"notifications/tasks' in event.data):
            self._replies.read(self._exchange, event.data, event.size)


class _Within:
    """Reads the answer of a hand-written server before a middleware compresses it."""

    __slots__ = ("_answer", "_exchange", "_passes", "_reading", "_replies", "_send")

    def __init__(self, replies: Replies, exchange: Exchange, send: Send) -> None:
        self._replies = replies
        self._exchange = exchange
        self._send = send
        self._reading = Reading.NOTHING
        self._answer: Answer | None = None
        self._passes = False
        """The outer handler reads it, or it is not MCP."""

    @as_coroutine_function
    def send(self, message: Message) -> Awaitable[None]:
        """Forward the message, and read it if the outer handler cannot."""
        return self._send(message) if self._passes or self._exchange.foreign else self._read(message)

    async def _read(self, message: Message) -> None:
        # Taken before sending: a compressing middleware replaces the body in the same dictionary.
        body, more = message.get("body", b""), message.get("more_body", False)
        try:
            if message["type"] == "http.response.start":
                message = wire_headers.with_headers_at_hand(message)
                self._reading = reading_of(wire_headers.by_name(message.get("headers", ())))
        except Exception as failure:
            report("send", failure)
        await self._send(message)
        try:
            if message["type"] == "http.response.body":
                if self._answer is None:
                    if not self._exchange.confirmed or self._exchange.reading is not Reading.NOTHING:
                        self._passes = True
                        return
                    self._answer = Answer(self._replies, self._exchange, self._reading)
                self._answer.feed(body, more=more)
        except Exception as failure:
            report("send", failure)
