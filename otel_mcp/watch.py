"""The events of one exchange, in the order in which they happen.

Everything here runs on the request path: it fills records and hands finished
calls over; the recorder turns them into telemetry later.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from time import perf_counter
from typing import Any, Final

from opentelemetry import context as otel_context

from otel_mcp.answer import Answer, tool_names
from otel_mcp.bounded import remember
from otel_mcp.content import capturer
from otel_mcp.endings import Endings
from otel_mcp.flights import Flights
from otel_mcp.identity.keys import OURS
from otel_mcp.identity.resolver import Resolver
from otel_mcp.metrics import Metrics
from otel_mcp.middleware import Message as ASGIMessage
from otel_mcp.middleware import Scope
from otel_mcp.outcomes import left_open, merged
from otel_mcp.pending import Pending
from otel_mcp.recording import Recorder
from otel_mcp.request import SCOPE_KEY, Call, Exchange, slim
from otel_mcp.responses import ResponseHeaders, by_name, with_headers_at_hand
from otel_mcp.semconv import OTHER, TOOL_ERROR
from otel_mcp.sessions.delta import SessionDelta
from otel_mcp.settings import Settings
from otel_mcp.wire import headers as wire_headers
from otel_mcp.wire.jsonrpc import (
    FINE,
    KNOWN_METHODS,
    JsonId,
    Message,
    Outcome,
    is_mcp,
    meta_of,
    negotiated_version,
    parse_messages,
    target_of,
    text,
)

MAX_BODY: Final = 1024 * 1024
"""Bytes of a request body that are read; a larger one is told by its headers or the dispatch seam."""
_RESULTS: Final = frozenset({None, TOOL_ERROR})
"""Outcomes that go out as a result; others become errors, whose code only the answer tells."""
_NOTHING: Final[Mapping[Any, Any]] = {}
_MAX_PATHS: Final = 100
_KEPT_OUT: Final = frozenset({401, 403})
_MAX_KEPT: Final = 64 * 1024
"""Bytes of a request whose arguments are kept until it is recorded."""
_VERSION_META: Final = "io.modelcontextprotocol/protocolVersion"


class Watch:
    """Sees exchanges from their first byte to their last."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        resolver: Resolver,
        recorder: Recorder,
        submit: Callable[[SessionDelta], None],
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._recorder = recorder
        self._headers = ResponseHeaders(settings)
        self._capture = capturer(settings)
        self._hides_ids = settings.session_id == "hashed"
        self.resolver = resolver
        self.active: Counter[str] = Counter()
        """Requests being served, by method."""
        self.pending = Pending(lambda call: self.finish(call, call.told or Outcome(error_type="disconnected"), None))
        self._owning: OrderedDict[str, bool] = OrderedDict()
        """By path: whether the server there gives out session ids, as its answers to `initialize` showed."""
        self._flights = Flights(resolver.are_strangers)
        self._endings = Endings(settings, resolver, self.pending, recorder.drain, submit)
        self._bare: OrderedDict[str, None] = OrderedDict()
        """Paths of apps that no seam reaches: the HTTP app itself is the handler."""

    def begin(self, scope: Scope, headers: wire_headers.HeaderMap, verdict: int) -> Exchange:
        """Take up an HTTP request that may be MCP. One that names a session has still to be `claimed`."""
        if b"x-forwarded-for" in headers or b"forwarded" in headers:
            headers = wire_headers.with_all_hops(headers, scope)
        client = scope.get("client")
        version, session_id = headers.get(wire_headers.PROTOCOL_VERSION), headers.get(wire_headers.SESSION_ID)
        exchange = Exchange(
            scope["method"],
            scope["path"],
            headers,
            scope.get("http_version", "1.1"),
            str(client[0]) if client else None,
            scope.get("user"),
            protocol_version=version[:32].decode("latin-1") if version else None,
            wire_session_id=session_id[:512].decode("latin-1") if session_id else None,
            confirmed=verdict == wire_headers.YES,
            capture=self._capture,
            hides_ids=self._hides_ids,
            ambient=otel_context.get_current(),
        )
        if exchange.wire_session_id is None and scope.get("query_string"):
            exchange.query_session_id = wire_headers.query_session_id(scope)
        scope[SCOPE_KEY] = exchange
        return exchange

    async def claimed(self, exchange: Exchange, scope: Scope) -> Scope:
        """Tell whose the id of a transport session is; returns the scope for the app."""
        if exchange.modern:
            pass  # The revision of 2026-07-28 has no transport sessions: an id on its requests says nothing.
        elif (wire_id := exchange.wire_session_id) and wire_id.startswith(OURS):
            await self.resolver.keys.prepare()
            if self.resolver.keys.is_ours(wire_id):
                exchange.owns_sessions = False
                scope = _without_session_id(scope)
        else:
            exchange.owns_sessions = self._owning.get(exchange.path)
            if not self.resolver.keys.usable:
                await self.resolver.keys.prepare()
        return scope

    def requested(self, exchange: Exchange, body: bytes, *, more: bool) -> None:
        """A piece of the request body has been handed to the app."""
        if exchange.parsed:
            return
        exchange.body_size += len(body)
        if exchange.body_size > MAX_BODY:
            exchange.body, exchange.parsed = None, True
            self._too_large(exchange)
            return
        if exchange.body is not None:
            exchange.body += body
        elif more and body:
            exchange.body = bytearray(body)
        if more:
            return
        exchange.parsed = True
        whole, exchange.body = body if exchange.body is None else exchange.body, None
        if exchange.http_method != "POST":
            return
        if exchange.at_sdk and exchange.confirmed and whole[:1] == b"{":
            # The SDK parses it anyway, and tells at the dispatch seam.
            exchange.unread = whole
        else:
            self._parse(exchange, whole)

    def read(self, exchange: Exchange) -> None:
        """Parse the request body after all."""
        body, exchange.unread = exchange.unread, None
        if body is not None:
            self._parse(exchange, body)

    def dispatched(self, exchange: Exchange, request_id: JsonId | None, method: str, params: Mapping[str, Any]) -> Call:
        """The SDK has read the body, which holds this one message."""
        target, meta = target_of(method, params), meta_of(params)
        if exchange.calls:  # Told by its headers until now.
            call = exchange.calls[0]
            call.id, call.id_unknown, call.target = request_id, False, target
            call.params, call.meta = params, meta
            return call
        exchange.unread = None
        call = Call(exchange, method, request_id, target, params, meta)
        exchange.calls.append(call)
        self.active[method if method in KNOWN_METHODS else OTHER] += 1
        if exchange.wire_session_id or exchange.query_session_id:
            self._flights.note(exchange, call)
        return call

    def _too_large(self, exchange: Exchange) -> None:
        """A body beyond the bound is told by its headers, where the revision has them."""
        method = wire_headers.text(exchange.headers, wire_headers.METHOD)
        if exchange.http_method == "POST" and method is not None and not method.startswith("notifications/"):
            target = wire_headers.text(exchange.headers, wire_headers.NAME)
            call = self._add(exchange, Message(method, "", {"name": target}))
            call.id_unknown = True

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
        if not exchange.confirmed:
            if not any(is_mcp(message) for message in messages):
                return
            exchange.confirmed = True
        for message in messages:
            call = self._add(exchange, message)
            if exchange.protocol_version is None:
                initial = call.method == "initialize"
                said = call.params.get("protocolVersion") if initial else call.meta.get(_VERSION_META)
                exchange.protocol_version = text(said, 32) if isinstance(said, str) else None
            self._flights.note(exchange, call)

    def served(self, exchange: Exchange, message: ASGIMessage) -> ASGIMessage | None:
        """The response starts of the one tool call that the SDK has served already: all but its size is known.

        Returns:
            The message to send; ``None`` = it is not as plain as that, see `answering`.
        """
        call = exchange.served
        if call is None or call.running or call.session is None or call.told is None or exchange.status is not None:
            return None
        headers: Any = message.get("headers")
        if message["status"] != 200 or not isinstance(headers, list) or call.told.error_type not in _RESULTS:
            return None
        present = by_name(message["headers"])
        if present.get(b"content-type") != b"application/json" or b"content-encoding" in present:
            return None
        exchange.status, exchange.result_of = 200, call
        return self._headers.with_public(message, present, call.session)

    async def answering(self, exchange: Exchange, message: ASGIMessage) -> ASGIMessage:
        """The response starts: last chance for headers of ours. Returns the message to send."""
        if exchange.status is not None:
            return message  # Some transports start twice; the first one stands.
        status = int(message["status"])
        if not exchange.confirmed and not (exchange.http_method == "GET" and status == 200):
            return message
        message = with_headers_at_hand(message)
        present = by_name(message.get("headers", ()))
        exchange.status, exchange.answer = status, self._answer(exchange, present)
        if not exchange.confirmed:
            return message
        said = wire_headers.text(present, wire_headers.SESSION_ID, 512)
        if said is not None and said == exchange.wire_session_id and not exchange.owns_sessions:
            exchange.owns_sessions = True
            self._learn_owning(exchange, owns=True)
        if 200 <= status < 300:
            if exchange.unread is not None:
                self._read_unless_known(exchange)
            for call in exchange.calls:
                if call.session is None or call.proposed or call.method == "initialize":
                    await self._accepted(call, said)
            if exchange.session is None:
                exchange.session = self.resolver.known(exchange)
            if exchange.http_method == "GET" and exchange.transport_id:
                self._stream_opened(exchange, exchange.transport_id)
        return self._headers.added(exchange, message, present)

    def _answer(self, exchange: Exchange, present: Mapping[bytes, bytes]) -> Answer:
        find = exchange.find if exchange.calls and exchange.http_method != "GET" else partial(self._find, exchange)
        answer = Answer(exchange, find, self.finish, present, reads_results=self._settings.store_content)
        answer.on_reply = self._replied
        if not exchange.confirmed:
            answer.on_endpoint = partial(self._endpoint, exchange)
        return answer

    def _read_unless_known(self, exchange: Exchange) -> None:
        """The answer begins before the SDK has told what it answers: a stream."""
        exchange.session = self.resolver.known(exchange)
        if exchange.session is None or (exchange.unread is not None and b'"initialize"' in exchange.unread):
            self.read(exchange)

    async def _accepted(self, call: Call, said: str | None) -> None:
        """The server answers a call with success; only ``initialize`` may bring an id."""
        exchange = call.exchange
        if call.method == "initialize" and not exchange.transport_id:
            if exchange.status == 200 and not exchange.modern:
                self._learn_owning(exchange, owns=said is not None)
            if said is not None:
                exchange.server_session_id, exchange.owns_sessions, exchange.minted = said, True, None
                await self.resolver.opened(call, said)
            elif exchange.status == 200 and self._headers.may_mint(exchange):
                await self.mint(call)
        elif call.session is None or call.proposed:
            if call.method == "initialize" and said is None and exchange.status == 200 and not exchange.modern:
                # It knew no such session, and gave out none: it keeps none.
                exchange.owns_sessions = exchange.owns_sessions or False
                self._learn_owning(exchange, owns=False)
            await self.resolver.resolve(call)
            if call.method == "server/discover":
                exchange.session = None  # Only the body tells whether this answers the probe or refuses it.
        if call.method == "initialize" and call.session is not None and self._headers.may_tell(exchange):
            new = call.session.id
            exchange.minted = new if new.startswith(OURS) and new != exchange.wire_session_id else exchange.minted

    def is_bare(self, exchange: Exchange) -> bool:
        """Whether nobody but us will open a span for the calls of this exchange."""
        bare = exchange.path in self._bare and not exchange.at_sdk and exchange.confirmed
        return bare and exchange.query_session_id is None

    def _learn_bare(self, exchange: Exchange) -> None:
        if exchange.status is None or not 200 <= exchange.status < 300:
            return
        if any(call.id is not None and not call.dispatched and call.finished for call in exchange.calls):
            remember(self._bare, exchange.path, None, _MAX_PATHS)

    def _learn_owning(self, exchange: Exchange, *, owns: bool) -> None:
        remember(self._owning, exchange.path, owns, _MAX_PATHS)

    async def mint(self, call: Call) -> None:
        """Open a session of ours for an ``initialize`` that the server keeps none for."""
        exchange = call.exchange
        if exchange.minted is None:
            await self.resolver.keys.prepare()
            exchange.minted = self.resolver.keys.mint()
            await self.resolver.opened(call, exchange.minted)

    def may_mint(self, exchange: Exchange) -> bool:
        return self._headers.may_mint(exchange)

    def answered(self, exchange: Exchange, body: bytes, *, more: bool) -> None:
        """A piece of the response body has been sent."""
        if not more:
            exchange.responded = True
        if exchange.result_of is not None:
            exchange.result_size += len(body)
            if not more:
                self.finish(exchange.result_of, exchange.result_of.told, exchange.result_size)
        elif exchange.answer is not None:
            # Starlette passes a memoryview on, and servers take a bytearray: what is not ours may not be kept.
            exchange.answer.feed(body if type(body) is bytes else memoryview(body).cast("B"), more=more)

    def _find(self, exchange: Exchange, request_id: JsonId) -> Call | None:
        if exchange.unread is not None:
            self.read(exchange)
        call = exchange.find(request_id)
        if call is None and exchange.http_method == "GET" and exchange.transport_id:
            call = self.pending.find(exchange.transport_id, request_id)
        return call

    def _endpoint(self, exchange: Exchange, data: bytes) -> None:
        """The first event of a 2024-11-05 stream: where to post, and with which session."""
        session_id = wire_headers.endpoint_session_id(data)
        if session_id is None:
            return
        exchange.confirmed = True
        exchange.query_session_id, exchange.owns_sessions = session_id, True
        exchange.sse_endpoint = True
        self._stream_opened(exchange, session_id)

    def _stream_opened(self, exchange: Exchange, session_id: str) -> None:
        exchange.streaming = True
        self.pending.stream_opened(session_id)

    def _replied(self, call: Call | None, reply: Mapping[str, object]) -> None:
        if call is None:
            return
        if call.method == "tools/list":
            self._metrics.learn_tools(tool_names(reply))
        elif call.method == "initialize" and (version := negotiated_version(reply)) is not None:
            call.exchange.protocol_version = version
            if call.session is not None:
                call.session.facts.protocol_version = version
        elif call.method == "server/discover" and "error" in reply and not call.taken:
            call.session = None  # A probe that failed: the session will be that of the handshake which follows.
        if self._settings.store_content or self._capture is not None:
            call.result = reply.get("result")

    def finish(self, call: Call, outcome: Outcome | None, size: int | None) -> None:
        """A call has its outcome. The first one stands."""
        if call.finished:
            return
        call.finished = True
        call.duration = perf_counter() - call.exchange.started
        call.result_bytes = size
        call.outcome = FINE if outcome is call.told is FINE else merged(outcome, call)
        self.active[call.method if call.method in KNOWN_METHODS else OTHER] -= 1
        exchange = call.exchange
        if call.id is not None and (transport_id := exchange.wire_session_id or exchange.query_session_id):
            self._flights.landed(transport_id, call.id)
            if self.pending.calls:
                self.pending.settled(transport_id, call)
        if exchange.body_size > _MAX_KEPT:
            self._slim(call)
        if call.dispatched:
            # It waits to be recorded: nothing that only the path needed is kept until then.
            call.arguments = call.params.get("arguments")
            call.params = call.meta = _NOTHING
        self._recorder.add(call)

    def _slim(self, call: Call) -> None:
        """Let go of arguments too large to be digested: many of them must not wait in memory."""
        if not self._settings.store_content and self._capture is None:
            slim(call)

    def handled(self, call: Call) -> None:
        """A handler has returned. If its request is over, nothing else may say how it ended."""
        exchange = call.exchange
        if exchange.closed and not (exchange.transport_id and self.pending.has_stream(exchange.transport_id)):
            self.finish(call, call.told, None)

    def end(self, exchange: Exchange) -> None:
        """The app has returned, or raised."""
        exchange.closed = True
        if exchange.unread is not None:
            self.read(exchange)
        if self.pending.calls:
            self.pending.expire()
        if not exchange.at_sdk:
            self._learn_bare(exchange)
        for call in exchange.calls:
            if not call.finished and not call.running:
                self._leave(call)
        if exchange.at_sdk:
            _let_go(exchange)
        transport_id = exchange.wire_session_id or exchange.query_session_id
        if transport_id is None or exchange.modern:
            return
        if exchange.streaming:
            self.pending.stream_closed(transport_id)
            if exchange.sse_endpoint:
                # The stream was the session: there is no way back to it.
                self._endings.end(exchange, transport_id, "client_delete" if exchange.disconnected else "server_closed")
        status = exchange.status or 500
        served = 200 <= status < 300 or (exchange.owns_sessions is False and status not in _KEPT_OUT)
        if exchange.http_method == "DELETE" and served:
            self._endings.end(exchange, transport_id, "client_delete")
        elif status == 404 and exchange.owns_sessions:
            self._endings.end(exchange, transport_id, "server_closed")

    def _leave(self, call: Call) -> None:
        """The HTTP request of an unanswered call is over."""
        exchange = call.exchange
        stream = exchange.answer is not None and exchange.answer.is_stream
        unanswered = exchange.disconnected or exchange.status == 202 or (stream and exchange.status == 200)
        elsewhere = call.id is not None and call.told is None and not exchange.modern
        if unanswered and elsewhere and exchange.transport_id:
            if exchange.body_size > _MAX_KEPT:
                self._slim(call)
            self.pending.add(exchange.transport_id, call)
            return
        self.finish(call, left_open(call), None)

    def close(self) -> None:
        """Wait for nothing any longer: the process is about to end."""
        self.pending.close()
        self._endings.close()


def _let_go(exchange: Exchange) -> None:
    """Until its calls are recorded, an exchange keeps only what that takes."""
    exchange.answer = exchange.ambient = None
    for call in exchange.calls:
        if not (call.dispatched and call.finished):
            return
    exchange.headers = _NOTHING


def _without_session_id(scope: Scope) -> Scope:
    """The scope as the app would have got it had we not given the client an id."""
    kept = [(name, value) for name, value in scope["headers"] if name != wire_headers.SESSION_ID]
    return {**scope, "headers": kept}
