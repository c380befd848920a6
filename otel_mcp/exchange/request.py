"""What one exchange asks for, and how that ends; `replies` sees the answer in between.

Everything here runs on the request path: it fills records and hands finished
calls over; the recorder turns them into telemetry later.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any, Final

from opentelemetry import context as otel_context

from otel_mcp.bounded import Paths
from otel_mcp.exchange.contradictions import Contradictions
from otel_mcp.exchange.endings import Endings
from otel_mcp.exchange.flights import Flights
from otel_mcp.exchange.inflight import Pending
from otel_mcp.exchange.nesting import HandedOver
from otel_mcp.identity.address import PROXY_HEADERS, Clients
from otel_mcp.identity.resolver import Resolver
from otel_mcp.model.call import SCOPE_KEY, Call, Exchange, client_of, slim
from otel_mcp.model.delta import SessionDelta
from otel_mcp.model.outcomes import REFUSALS, left_open, merged, was_refused
from otel_mcp.semconv import OTHER
from otel_mcp.settings import Settings
from otel_mcp.telemetry.content import capturer
from otel_mcp.telemetry.propagation import without_ended_span
from otel_mcp.telemetry.recorder import Recorder
from otel_mcp.types import Scope
from otel_mcp.wire import headers as wire_headers
from otel_mcp.wire.jsonrpc import (
    KNOWN_METHODS,
    JsonId,
    Message,
    Outcome,
    is_mcp,
    meta_of,
    parse_head,
    parse_messages,
    target_of,
)

MAX_BODY: Final = 1024 * 1024
"""Bytes of a request body that are read; a larger one is told by its headers or the dispatch seam."""
_NOTHING: Final[Mapping[Any, Any]] = {}
_MAX_KEPT: Final = 64 * 1024
"""Bytes of a request whose arguments are kept until it is recorded."""
_MAX_HEAD: Final = 64 * 1024
"""Bytes that are read of a larger body."""


class Watch:
    """Sees requests, and the ends of calls."""

    def __init__(
        self,
        settings: Settings,
        resolver: Resolver,
        recorder: Recorder,
        submit: Callable[[SessionDelta], None],
    ) -> None:
        self._settings = settings
        self._resolver = resolver
        self._recorder = recorder
        self._capture = capturer(settings)
        self._hides_ids = settings.session_id == "hashed"
        self._clients = Clients(settings.trusted_proxies, settings.proxy_header)
        self.active: Counter[str] = Counter()
        """Requests being served, by method."""
        self.pending = Pending(
            resolver.user,
            lambda call: self.finish(call, call.handler_outcome or Outcome(error_type="disconnected"), None),
        )
        self._flights = Flights(resolver)
        self._endings = Endings(settings, resolver, self.pending, recorder.drain, submit)
        self.handed_over = HandedOver()
        self.contradictions = Contradictions(resolver)
        self._bare: Paths[bool] = Paths()
        """Paths of apps that no seam reaches: the HTTP app itself is the handler."""

    def begin(self, scope: Scope, headers: wire_headers.HeaderMap, verdict: int) -> Exchange:
        """Take up an HTTP request that may be MCP. One that names a session has still to be claimed, see `owning`."""
        http_version = wire_headers.HTTP_VERSIONS.get(scope.get("http_version", "1.1"), OTHER)
        client = scope.get("client")
        version, session_id = headers.get(wire_headers.PROTOCOL_VERSION), headers.get(wire_headers.SESSION_ID)
        wire_session_id = session_id[:512].decode("latin-1") if session_id else None
        exchange = Exchange(
            scope.get("method", ""),
            scope.get("path", ""),
            headers,
            http_version,
            str(client[0]) if client and client[0] else None,
            client[1] if client and len(client) > 1 else None,
            scope=scope,
            protocol_version=version[:32].decode("latin-1") if version else None,
            wire_session_id=wire_session_id,
            transport_id=wire_session_id,
            confirmed=verdict == wire_headers.YES,
            capture=self._capture,
            hides_ids=self._hides_ids,
            ambient=without_ended_span(otel_context.get_current()),
        )
        if exchange.http_method != "POST" and exchange.modern:
            exchange.protocol_version = None  # Streams and goodbyes are of the revisions before it.
        # A proxy that adds no header is known by its HTTP/1.0: no client of MCP speaks it, nginx does by default.
        if http_version == "1.0" or not PROXY_HEADERS.isdisjoint(headers):
            exchange.client, exchange.client_port, exchange.client_is_shared = self._clients.of(scope)
        if wire_session_id is None and scope.get("query_string"):
            exchange.transport_id = wire_headers.query_session_id(scope)
        scope[SCOPE_KEY] = exchange
        return exchange

    def requested(self, exchange: Exchange, body: bytes | bytearray, *, more: bool) -> None:
        """A piece of the request body has been handed to the app."""
        if exchange.parsed:
            return
        exchange.body_size += len(body)
        if exchange.body_size > MAX_BODY:
            head = exchange.body[:_MAX_HEAD] if exchange.body is not None else b""
            exchange.body, exchange.parsed = None, True
            if exchange.http_method == "POST":
                self._too_large(exchange, head + body[: _MAX_HEAD - len(head)])
            return
        if more or exchange.body is not None:
            exchange.body = bytearray() if exchange.body is None else exchange.body
            exchange.body += body
            if more:
                return
            body, exchange.body = exchange.body, None
        exchange.parsed = True
        if exchange.http_method != "POST":
            return
        if exchange.at_sdk and exchange.confirmed and body[:1] == b"{":
            # The SDK parses it anyway, and tells at the dispatch seam.
            exchange.unparsed_body = body
        else:
            self._parse(exchange, body)

    def read(self, exchange: Exchange) -> None:
        """Parse the request body after all."""
        body, exchange.unparsed_body = exchange.unparsed_body, None
        if body is not None:
            self._parse(exchange, body)

    def dispatched(self, exchange: Exchange, request_id: JsonId | None, method: str, params: Mapping[str, Any]) -> Call:
        """The SDK has read the body, which holds this one message."""
        target, meta = target_of(method, params), meta_of(params)
        if exchange.calls:  # Too large to be read on its way.
            call = exchange.calls[0]
            call.id, call.id_unknown, call.target = request_id, False, target or call.target
            if params:
                call.params, call.meta = params, meta
            return call
        exchange.unparsed_body = None
        call = Call(exchange, method, request_id, target, params, meta)
        exchange.calls.append(call)
        self.active[method if method in KNOWN_METHODS else OTHER] += 1
        if exchange.transport_id:
            self._flights.note(exchange, call)
        return call

    def _too_large(self, exchange: Exchange, head: bytes | bytearray) -> None:
        """Recognise a body beyond the bound by its beginning, or else by its headers, where the revision has them."""
        message = parse_head(head)
        if message is None and exchange.modern and (method := wire_headers.text(exchange.headers, wire_headers.METHOD)):
            message = Message(method, None, {"name": wire_headers.text(exchange.headers, wire_headers.NAME)})
        if message is None or message.method.startswith("notifications/") or not self._is_mcp(exchange, message):
            return
        if message.id is None:
            message.id = ""
        call = self._add(exchange, message)
        call.id_unknown = True
        self.contradictions.compare(exchange, call)

    def _is_mcp(self, exchange: Exchange, *messages: Message) -> bool:
        exchange.confirmed = exchange.confirmed or any(map(is_mcp, messages))
        return exchange.confirmed

    def _add(self, exchange: Exchange, message: Message) -> Call:
        call = exchange.add(message)
        self.active[call.method if call.method in KNOWN_METHODS else OTHER] += 1
        return call

    def _parse(self, exchange: Exchange, body: bytes | bytearray) -> None:
        if not body:
            return
        try:
            messages = parse_messages(body)
        except ValueError:
            return  # Not JSON: the server will say so, and there is no message to speak of.
        if not self._is_mcp(exchange, *messages):
            return
        for message in messages:
            call = self._add(exchange, message)
            self.contradictions.compare(exchange, call)
            self._flights.note(exchange, call)
            self.handed_over.add(call)

    def is_bare(self, exchange: Exchange) -> bool:
        """Whether nobody but us will open a span for the calls of this exchange."""
        bare = (
            not (exchange.at_sdk or exchange.read_ahead)
            and exchange.confirmed
            and self._bare.get(exchange.path) is True
        )
        bare = bare and not self.handed_over.hands_over(exchange)
        return bare and exchange.transport_id == exchange.wire_session_id

    def _learn_bare(self, exchange: Exchange) -> None:
        if exchange.status is None or not 200 <= exchange.status < 300:
            return
        # What cannot be read is an answer as well, unless it only says that one will come.
        unread = exchange.status == 200 and exchange.answer is not None and not exchange.answer.is_readable
        if any(call.id is not None and not call.dispatched and (call.finished or unread) for call in exchange.calls):
            self._bare.learn(exchange.path, True)

    def finish(self, call: Call, outcome: Outcome | None, size: int | None) -> None:
        """A call has its outcome. The first one stands."""
        if call.finished:
            return
        call.finished = True
        call.duration = perf_counter() - call.exchange.started
        call.result_bytes = size
        call.outcome = merged(outcome, call)
        if call.method == "initialize":
            self._handshaken(call)
        if call.session is not None and was_refused(call):
            call.session = None
        self.active[call.method if call.method in KNOWN_METHODS else OTHER] -= 1
        exchange = call.exchange
        self.handed_over.drop(call)
        if call.cancel_key is not None:
            self._flights.landed(call)
        if self.pending.calls:
            self.pending.settled(call)
        if exchange.body_size > _MAX_KEPT:
            self._slim(call)
        if call.dispatched:
            # It waits to be recorded: nothing that only the path needed is kept until then.
            call.arguments = call.params.get("arguments")
            if call.session is None:
                slim(call)  # Nobody else remembers which client it was.
            else:
                call.params = call.meta = _NOTHING
        self._recorder.add(call)

    def _handshaken(self, call: Call) -> None:
        """Only a handshake that succeeds begins a session, or goes on with one."""
        if was_refused(call) or (call.outcome is not None and call.outcome.failed):
            call.session = call.exchange.session = call.pending_session_id = None
        else:
            self._resolver.opened(call)

    def _slim(self, call: Call) -> None:
        """Let go of arguments too large to be digested: many of them must not wait in memory."""
        if not self._settings.store_content and self._capture is None:
            slim(call)

    def handled(self, call: Call) -> None:
        """A handler has returned. If its request is over, nothing else may say how it ended."""
        exchange = call.exchange
        if exchange.closed and not self.pending.awaits(call):
            self.finish(call, call.handler_outcome, None)

    def end(self, exchange: Exchange) -> None:
        """The app has returned, or raised."""
        exchange.closed = True
        exchange.see_user()
        if exchange.unparsed_body is not None:
            self.read(exchange)
        if self.pending.calls:
            self.pending.expire()
        if not exchange.at_sdk:
            self._learn_bare(exchange)
        for call in exchange.calls:
            if not call.finished and not call.running:
                self._leave(call)
        if (transport_id := exchange.transport_id) is not None:
            if exchange.stream is not None:
                self.pending.stream_closed(exchange)
            if not exchange.modern:
                self._endings.closed(exchange, transport_id)
        if exchange.status in REFUSALS:
            self._recorder.metrics.request_refused(exchange.status, self._client_of(exchange))
        if exchange.at_sdk:
            _let_go(exchange)

    def _client_of(self, exchange: Exchange) -> str | None:
        """The name of a client that was refused: its own word, or that of the session which it names and has."""
        for call in exchange.calls:
            if (name := client_of(call)[0]) is not None:
                return name
        session = self._resolver.known(exchange)
        return session.facts.client_name if session is not None else None

    def _leave(self, call: Call) -> None:
        """The HTTP request of an unanswered call is over."""
        exchange = call.exchange
        stream = exchange.streams or (exchange.answer is not None and exchange.answer.is_stream)
        unanswered = exchange.disconnected or exchange.status == 202 or (stream and exchange.status == 200)
        elsewhere = call.id is not None and call.handler_outcome is None and not exchange.modern
        if unanswered and elsewhere and exchange.transport_id:
            if exchange.body_size > _MAX_KEPT:
                self._slim(call)
            if self.pending.add(exchange.transport_id, call):
                return
        self.finish(call, left_open(call), None)

    def close(self) -> None:
        """Wait for nothing any longer: the process is about to end."""
        self.pending.close()
        self._endings.close()


def _let_go(exchange: Exchange) -> None:
    """Until its calls are recorded, an exchange keeps only what that takes."""
    exchange.answer = None
    for call in exchange.calls:
        if not (call.dispatched and call.finished):
            return  # Its span is still to be made, under this context.
    exchange.ambient = None
    exchange.headers = _NOTHING
