"""Find or begin the session when a response starts, and add our two headers.

Headers of the server are never changed. A session begins only if its handshake
succeeds: the SDK has reported that by now, or the body of a JSON answer shows it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from re import Pattern
from time import perf_counter
from typing import Any

from otel_mcp.exchange.dispatch import Dispatcher
from otel_mcp.exchange.inflight import InFlight
from otel_mcp.exchange.replies import LIMIT, Replies, reading_of
from otel_mcp.exchange.request import Requests
from otel_mcp.exchange.session_ids import SessionIds
from otel_mcp.hashing import OURS
from otel_mcp.identity.principal import TenantOf
from otel_mcp.identity.resolver import Resolver
from otel_mcp.model.call import Call, Exchange, client_of
from otel_mcp.model.outcomes import REFUSALS
from otel_mcp.settings import Settings
from otel_mcp.telemetry.census import kind_of
from otel_mcp.telemetry.http_span import HTTPSpans
from otel_mcp.telemetry.recorder import Recorder
from otel_mcp.types import Message, Scope
from otel_mcp.wire import headers as wire_headers
from otel_mcp.wire.jsonrpc import is_handshake, outcome_of, parse_replies


class Responses:
    """Handles the starts of responses; an ``initialize`` gets an id of ours if the server keeps no sessions."""

    def __init__(
        self, settings: Settings, resolver: Resolver, requests: Requests, inflight: InFlight, session_ids: SessionIds
    ) -> None:
        self._resolver = resolver
        self._requests = requests
        self._inflight = inflight
        self._session_ids = session_ids
        self._adds_transport_id = "mcp-session-id" in settings.response_headers
        self.adds_session_id = "x-session-id" in settings.response_headers

    def waits_for_body(self, exchange: Exchange, message: Message) -> bool:
        """Return whether the headers of this response depend on its body."""
        if exchange.unparsed_body is not None and b'"initialize"' in exchange.unparsed_body:
            self._requests.read(exchange)
        if exchange.http_method != "POST" or message["status"] != 200 or len(exchange.calls) != 1:
            return False
        call = exchange.calls[0]
        if call.method != "initialize" or call.handler_outcome is not None:
            return False
        present = wire_headers.by_name(message.get("headers", ()))
        return b"content-encoding" not in present and wire_headers.media_type(present).startswith(b"application/json")

    def foresee(self, exchange: Exchange, body: bytes) -> None:
        """Read from the first chunk of such a body whether the handshake succeeded."""
        try:
            replies = parse_replies(bytes(body)) if len(body) <= LIMIT else []
        except ValueError:
            return  # Incomplete, or not JSON.
        for reply in replies:
            if (outcome := outcome_of(reply)) is not None:
                exchange.foreseen = not outcome.failed

    async def begin(self, exchange: Exchange, message: Message) -> Message:
        """Find or begin the session of a response from its start. Returns the start with our headers."""
        present = wire_headers.by_name(message.get("headers", ()))
        exchange.reading = reading_of(present)
        if wire_headers.media_type(present).startswith(b"text/event-stream"):
            self._inflight.census.streams[exchange] = perf_counter()
        if not exchange.confirmed:
            return message
        status = exchange.status or 500
        given = wire_headers.text(present, wire_headers.SESSION_ID, 512)
        if 200 <= status < 300:
            if given is not None and given == exchange.wire_session_id and exchange.owns_sessions is None:
                exchange.owns_sessions = True
                self._session_ids.learn(exchange, owns=True, named=True)
            if exchange.unparsed_body is not None:
                self._begin_early(exchange, exchange.unparsed_body)
            for call in exchange.calls:
                if call.method == "initialize" and has_succeeded(call) is False:
                    call.session = call.pending_session_id = exchange.minted = None
                elif call.session is None or call.tentative or call.method == "initialize":
                    await self._accepted(call, given)
            if exchange.session is None:
                exchange.session = self._resolver.known(exchange)
            if exchange.http_method == "GET" and exchange.transport_id and not exchange.modern:
                self._inflight.stream_opened(exchange, exchange.transport_id)
        public = exchange.session.id if exchange.session is not None else self._pending_id(exchange)
        return self._with_ids(exchange, message, present, public)

    def _begin_early(self, exchange: Exchange, body: bytes | bytearray) -> None:
        """Find the session of a stream, which begins before the SDK has its answer; else parse the message."""
        if b'"_meta"' not in body or not self._resolver.conversations.search(body):
            exchange.session = self._resolver.known(exchange)
        if exchange.session is None:
            self._requests.read(exchange)

    def _with_ids(
        self, exchange: Exchange, message: Message, present: Mapping[bytes, bytes], public: str | None
    ) -> Message:
        """Return a copy of the start with our headers after those of the server."""
        status, ours = exchange.status or 500, list[tuple[bytes, bytes]]()
        if exchange.minted and 200 <= status < 300 and wire_headers.SESSION_ID not in present:
            ours.append((wire_headers.SESSION_ID, exchange.minted.encode("ascii")))
        if public is not None and status < 400 and self.adds_session_id and wire_headers.X_SESSION_ID not in present:
            ours.append((wire_headers.X_SESSION_ID, public.encode("ascii")))
        return {**message, "headers": [*(message.get("headers") or ()), *ours]} if ours else message

    def _pending_id(self, exchange: Exchange) -> str | None:
        """Return the id of the session that begins if the handshake succeeds."""
        for call in exchange.calls:
            if call.pending_session_id is not None and is_handshake(call.params):
                return self._resolver.named_by(exchange, call.pending_session_id)
        return None

    async def _accepted(self, call: Call, given: str | None) -> None:
        """Give its session to a call that the server accepted; `given` is the session id of the response."""
        exchange = call.exchange
        if call.method != "initialize":
            await self._resolver.resolve(call)
            if call.method == "server/discover":
                exchange.session = None  # Only the body shows whether the probe failed.
            return
        if not exchange.transport_id:
            await self._new(call, given)
        elif exchange.status == 202:
            # 2024-11-05: the event stream gave out the id, and will carry the answer.
            await self._resolver.opens(call, exchange.transport_id)
        elif not (has_succeeded(call) or is_handshake(call.params)):
            pass  # The handshake most likely fails: leave it without a session.
        elif call.session is None or call.tentative:
            if given is None and exchange.status == 200 and not exchange.modern:
                # The server ignored the id and gave out none: it keeps no sessions.
                exchange.owns_sessions = exchange.owns_sessions or False
                self._session_ids.learn(exchange, owns=False, named=True)
            await self._resolver.resolve(call)
        if call.session is not None and self._may_tell(exchange):
            new = call.session.id
            exchange.minted = new if new.startswith(OURS) and new != exchange.wire_session_id else exchange.minted

    async def _new(self, call: Call, given: str | None) -> None:
        """Begin the session of an ``initialize`` without an id: with the server's id, or else with one of ours."""
        exchange = call.exchange
        if exchange.status == 200 and not exchange.modern:
            self._session_ids.learn(exchange, owns=given is not None)
        if given is not None:
            exchange.server_session_id, exchange.owns_sessions, exchange.minted = given, True, None
            await self._resolver.opens(call, given)
        elif exchange.status == 200:
            await self.mint(call)
        if has_succeeded(call):
            self._resolver.opened(call)

    def _may_tell(self, exchange: Exchange) -> bool:
        """Return whether the answer to an ``initialize`` may carry an id of ours.

        Browsers get none: their next preflight would name a header that the
        app may not allow.
        """
        is_legacy_post = exchange.http_method == "POST" and not exchange.modern
        return self._adds_transport_id and is_legacy_post and b"origin" not in exchange.headers

    async def mint(self, call: Call) -> None:
        """Give an id of ours to an ``initialize`` that succeeds, if the server keeps no sessions."""
        exchange = call.exchange
        if exchange.minted is not None or exchange.wire_session_id or not self._may_tell(exchange):
            return
        if has_succeeded(call) or is_handshake(call.params):
            await self._resolver.prepare(exchange)
            exchange.minted = self._resolver.hashes.mint(self._resolver.user(exchange))
            await self._resolver.opens(call, exchange.minted)


def has_succeeded(call: Call) -> bool | None:
    """Return whether a handshake succeeded; ``None`` = unknown until the body is read."""
    return call.exchange.foreseen if call.handler_outcome is None else not call.handler_outcome.failed


@dataclass(slots=True, eq=False)
class Exchanges:
    """What the exchanges of one process share."""

    resolver: Resolver
    recorder: Recorder
    http_spans: HTTPSpans
    inflight: InFlight
    session_ids: SessionIds
    requests: Requests
    replies: Replies
    responses: Responses
    dispatcher: Dispatcher
    capture: Callable[[Any], str | None] | None
    """See `Exchange.capture`."""
    tenant_of: TenantOf | None
    asked: Mapping[str, Any]
    """`Outgoing.waiting`: a body of one of its transport sessions may have an answer."""
    conversations: Pattern[bytes]
    """See `Claims.conversations`."""
    hides_ids: bool

    def close(self) -> None:
        """End everything that waits: the process is about to end."""
        self.inflight.close()
        self.session_ids.close()

    async def begin(
        self, exchange: Exchange, scope: Scope, message: Message, body: bytes | None = None
    ) -> Message | None:
        """Begin an answer.

        Args:
            exchange: of the answer.
            scope: of the request.
            message: the start of the answer.
            body: its first chunk, if the start has waited for it.

        Returns:
            The start to send; ``None`` = it waits for its body.
        """
        if body is None:
            exchange.status = int(message["status"])
            if not exchange.http_decided:
                # First, because it is the parent of the message's span.
                self.http_spans.decide(exchange, scope)
        else:
            self.responses.foresee(exchange, body)
        if exchange.confirmed or (exchange.http_method == "GET" and exchange.status == 200):
            if body is None and self.responses.waits_for_body(exchange, message):
                return None
            message = await self.responses.begin(exchange, message)
        if exchange.http_span is not None:
            message = self.http_spans.respond(exchange, message)
        return message

    def end_unread(self, exchange: Exchange, scope: Scope) -> None:
        """Parse what no SDK has read, and end what a bare app has run."""
        if exchange.dispatch is not None:
            exchange.dispatch.leave(None)
        if exchange.confirmed and not exchange.http_decided:
            self.http_spans.begin(exchange, scope)
        if exchange.unparsed_body is not None:
            self.requests.read(exchange)
        if exchange.calls and not exchange.at_sdk:
            self.requests.learn_bare(exchange)

    def ended(self, exchange: Exchange) -> None:
        """Handle the end of a request that was not a POST answered with 200: it may end or refuse a session."""
        status = exchange.status if exchange.status in REFUSALS else None
        if exchange.transport_id is not None and (exchange.http_method != "POST" or status is not None):
            self.session_ids.ended(exchange, exchange.transport_id)
        if status is not None:
            self._refused(exchange, status)

    def _refused(self, exchange: Exchange, status: int) -> None:
        """Count a request that was refused by its HTTP status."""
        if exchange.confirmed or (not exchange.parsed and wire_headers.takes_streams(exchange.headers)):
            self.recorder.metrics.request_refused(status, self._client(exchange))
            # A body that was read has a call, which has its own audit record.
            if (audit := self.recorder.audit) is not None and not exchange.calls:
                audit.refused(exchange, status, self.resolver.known(exchange))

    def stream_ended(self, exchange: Exchange, began: float) -> None:
        """Measure a stream that has ended; `began` is in seconds of `perf_counter`."""
        seconds = perf_counter() - began
        if (kind := kind_of(exchange, seconds)) is not None:
            self.recorder.metrics.stream_ended(kind, self._client(exchange), seconds)

    def _client(self, exchange: Exchange) -> str | None:
        """Return the client's name from its calls or their session; ``None`` = unknown."""
        if not exchange.confirmed:
            return None
        client = next((name for call in exchange.calls if (name := client_of(call)[0]) is not None), None)
        if client is None and (session := self.resolver.known(exchange)) is not None:
            client = session.facts.client_name
        return client
