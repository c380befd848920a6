"""The answer of an exchange, from its first byte to its last, and the headers that it may get of ours.

What is answered here ends calls; `watch` says what that means.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from otel_mcp.exchange.answer import Answer, Finish
from otel_mcp.exchange.foresight import foresee, has_succeeded, is_decided_by_body
from otel_mcp.exchange.inflight import Pending
from otel_mcp.exchange.response_headers import ResponseHeaders, by_name
from otel_mcp.exchange.session_ids import Owning
from otel_mcp.exchange.within import Within
from otel_mcp.hashing import OURS
from otel_mcp.identity.resolver import Resolver
from otel_mcp.model.call import Call, Exchange
from otel_mcp.model.outcomes import REFUSALS
from otel_mcp.model.session import Session
from otel_mcp.semconv import TOOL_ERROR
from otel_mcp.settings import Settings
from otel_mcp.telemetry.metrics import Metrics
from otel_mcp.types import Message as ASGIMessage
from otel_mcp.types import Send
from otel_mcp.wire import headers as wire_headers
from otel_mcp.wire.jsonrpc import JsonId, is_handshake, negotiated_version
from otel_mcp.wire.sse import result_size

_STREAM: Final = {b"content-type": b"text/event-stream"}
_RESULTS: Final = frozenset({None, TOOL_ERROR})
"""Outcomes that go out as a result; others become errors, whose code only the answer tells."""


class Replies:
    """Sees answers go by."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        resolver: Resolver,
        owning: Owning,
        pending: Pending,
        read: Callable[[Exchange], None],
        finish: Finish,
    ) -> None:
        """Begin with nothing seen.

        Args:
            settings: which headers we add, and whether results are kept.
            metrics: learns the names of tools that the server lists.
            resolver: finds and opens sessions.
            owning: learns who gives out session ids.
            pending: calls that are answered on another stream.
            read: parses the request of an exchange after all.
            finish: takes each call that has been answered.
        """
        self._store_content = settings.store_content
        self._headers = ResponseHeaders(settings)
        self._metrics = metrics
        self._resolver = resolver
        self._owning = owning
        self._pending = pending
        self._read = read
        self._finish = finish

    def at_once(self, exchange: Exchange, message: ASGIMessage) -> ASGIMessage | None:
        """Take the start of a response that is as most are: a plain 200 of a session that is known.

        Returns:
            The message to send; ``None`` = it is not as plain as that, and not taken: see `answering`.
        """
        if (exchange.sdk_call is None and exchange.unparsed_body is None) or exchange.status is not None:
            return None
        headers: Any = message.get("headers")
        if message["status"] != 200 or not isinstance(headers, list):
            return None
        present = by_name(message["headers"])
        if b"content-encoding" in present:
            return None
        if present.get(b"content-type") == b"application/json":
            session = self._result_begins(exchange)
        else:
            session = self._stream_begins(exchange, present)
        if session is None:
            return None
        exchange.status = 200
        return self._headers.with_public(message, present, session.id)

    def _result_begins(self, exchange: Exchange) -> Session | None:
        """The SDK has served the one tool call already: all but the size of its result is known."""
        call = exchange.sdk_call
        if call is None or call.running or call.session is None or call.handler_outcome is None:
            return None
        if call.handler_outcome.status_code is not None or call.handler_outcome.error_type not in _RESULTS:
            return None
        exchange.result_of = call
        return call.session

    def _stream_begins(self, exchange: Exchange, present: Mapping[bytes, bytes]) -> Session | None:
        """The SDK opens a stream before it tells what will be answered on it."""
        if not present.get(b"content-type", b"").startswith(b"text/event-stream"):
            return None
        if exchange.unparsed_body is None or b'"initialize"' in exchange.unparsed_body:
            return None
        session = self._resolver.known(exchange)
        if session is not None:
            exchange.session, exchange.streams = session, True
        return session

    async def answering(self, exchange: Exchange, message: ASGIMessage) -> ASGIMessage | None:
        """The response starts: last chance for headers of ours.

        Returns:
            The message to send; ``None`` = it waits for the next one: see `resumed`.
        """
        if exchange.status is not None:
            return message  # Some transports start twice; the first one stands.
        status = int(message["status"])
        if not exchange.confirmed and not (exchange.http_method == "GET" and status == 200):
            if status in REFUSALS and not exchange.parsed and wire_headers.takes_streams(exchange.headers):
                self._metrics.request_refused(status, None)  # Before anybody has read what it asks for.
            return message
        present = by_name(message.get("headers", ()))
        if exchange.unparsed_body is not None and b'"initialize"' in exchange.unparsed_body:
            self._read(exchange)
        if is_decided_by_body(exchange, status, present):
            exchange.held = message
            return None
        return await self._answering(exchange, message, present)

    async def _answering(self, exchange: Exchange, message: ASGIMessage, present: Mapping[bytes, bytes]) -> ASGIMessage:
        status = int(message["status"])
        exchange.status, exchange.answer = status, self._answer(exchange, present)
        if not exchange.confirmed:
            return message
        said = wire_headers.text(present, wire_headers.SESSION_ID, 512)
        if 200 <= status < 300:
            if said is not None and said == exchange.wire_session_id and exchange.owns_sessions is None:
                exchange.owns_sessions = True
                self._owning.learn(exchange, owns=True, named=True)
            if exchange.unparsed_body is not None:
                self._read_unless_known(exchange)
            for call in exchange.calls:
                if call.method == "initialize" and has_succeeded(call) is False:
                    call.session = call.pending_session_id = exchange.minted = None
                elif call.session is None or call.tentative or call.method == "initialize":
                    await self._accepted(call, said)
            if exchange.session is None:
                exchange.session = self._resolver.known(exchange)
            if exchange.http_method == "GET" and exchange.transport_id and not exchange.modern:
                self._stream_opened(exchange, exchange.transport_id)
        public = exchange.session.id if exchange.session is not None else self._opening(exchange)
        return self._headers.added(exchange, message, present, public)

    def _opening(self, exchange: Exchange) -> str | None:
        """The id of the session that begins if the rest of the answer says so."""
        for call in exchange.calls:
            if call.pending_session_id is not None and is_handshake(call.params):
                return self._resolver.named_by(exchange, call.pending_session_id)
        return None

    def within(self, exchange: Exchange, send: Send) -> Send:
        """The `send` of a handler whose answer may be compressed on its way out."""
        return Within(exchange, send, self._answer) if b"accept-encoding" in exchange.headers else send

    def _answer(self, exchange: Exchange, present: Mapping[bytes, bytes]) -> Answer:
        find = exchange.find if exchange.calls and exchange.http_method != "GET" else partial(self._find, exchange)
        answer = Answer(exchange, find, self._finish, present, reads_results=self._store_content)
        answer.on_reply = self._replied
        if not exchange.confirmed:
            answer.on_endpoint = partial(self._endpoint, exchange)
        return answer

    def _read_unless_known(self, exchange: Exchange) -> None:
        """The answer begins before the SDK has told what it answers: a stream."""
        exchange.session = self._resolver.known(exchange)
        if exchange.session is None or (
            exchange.unparsed_body is not None and b'"initialize"' in exchange.unparsed_body
        ):
            self._read(exchange)

    async def _accepted(self, call: Call, said: str | None) -> None:
        """The server answers a call with success; only ``initialize`` may bring an id."""
        exchange = call.exchange
        if call.method == "initialize" and not exchange.transport_id:
            if exchange.status == 200 and not exchange.modern:
                self._owning.learn(exchange, owns=said is not None)
            if said is not None:
                exchange.server_session_id, exchange.owns_sessions, exchange.minted = said, True, None
                await self._resolver.opens(call, said)
            elif exchange.status == 200 and self._headers.may_mint(exchange):
                await self.mint(call)
            if has_succeeded(call):
                self._resolver.opened(call)
        elif call.method == "initialize" and exchange.status == 202 and exchange.transport_id is not None:
            # 2024-11-05: the stream has given out the id, and the answer comes on it.
            await self._resolver.opens(call, exchange.transport_id)
        elif call.method == "initialize" and not (has_succeeded(call) or is_handshake(call.params)):
            pass  # It goes on with no session: most likely it is about to be refused.
        elif call.session is None or call.tentative:
            if call.method == "initialize" and said is None and exchange.status == 200 and not exchange.modern:
                # It knew no such session, and gave out none: it keeps none.
                exchange.owns_sessions = exchange.owns_sessions or False
                self._owning.learn(exchange, owns=False, named=True)
            await self._resolver.resolve(call)
            if call.method == "server/discover":
                exchange.session = None  # Only the body tells whether this answers the probe or refuses it.
        if call.method == "initialize" and call.session is not None and self._headers.may_tell(exchange):
            new = call.session.id
            exchange.minted = new if new.startswith(OURS) and new != exchange.wire_session_id else exchange.minted

    async def mint(self, call: Call) -> None:
        """Give an ``initialize`` that the server keeps no session for one of ours, should it succeed."""
        exchange = call.exchange
        if exchange.minted is None and (has_succeeded(call) or is_handshake(call.params)):
            await self._resolver.keys.prepare(exchange)
            exchange.minted = self._resolver.keys.mint(self._resolver.user(exchange))
            await self._resolver.opens(call, exchange.minted)

    def may_mint(self, exchange: Exchange) -> bool:
        return self._headers.may_mint(exchange)

    async def resumed(self, exchange: Exchange, start: ASGIMessage, message: ASGIMessage) -> ASGIMessage:
        """What `answering` has waited for is about to be sent. Returns the start to send."""
        foresee(exchange, message)
        return await self._answering(exchange, start, by_name(start.get("headers", ())))

    def answered(self, exchange: Exchange, body: bytes, *, more: bool) -> None:
        """A piece of the response body has been sent."""
        if not more:
            exchange.responded = True
        if exchange.result_of is not None:
            exchange.result_size += len(body)
            if not more:
                self._finish(exchange.result_of, exchange.result_of.handler_outcome, exchange.result_size)
        elif exchange.answer is not None:
            # Starlette passes a memoryview on, and servers take a bytearray: what is not ours may not be kept.
            exchange.answer.feed(body if type(body) is bytes else memoryview(body).cast("B"), more=more)
        elif exchange.streams and body:
            self._streamed(exchange, body, more=more)

    def _streamed(self, exchange: Exchange, body: bytes, *, more: bool) -> None:
        """A piece of a stream that has brought nothing yet but the result which the SDK's seam has told before."""
        call, chunk = exchange.sdk_call, body if type(body) is bytes else memoryview(body).cast("B")
        if call is not None and call.handler_outcome is not None and not call.running:
            size = result_size(chunk, call.id)
            if size is not None:
                self._finish(call, call.handler_outcome, size)
                return
        exchange.answer = self._answer(exchange, _STREAM)
        exchange.answer.feed(chunk, more=more)

    def _find(self, exchange: Exchange, request_id: JsonId) -> Call | None:
        if exchange.unparsed_body is not None:
            self._read(exchange)
            if 200 <= (exchange.status or 0) < 300:
                for late in exchange.calls:
                    self._resolver.rejoin(late)
        call = exchange.find(request_id)
        if call is None and exchange.http_method == "GET" and exchange.transport_id:
            call = self._pending.find(exchange, request_id)
        return call

    def _endpoint(self, exchange: Exchange, data: bytes) -> None:
        """The first event of a 2024-11-05 stream: where to post, and with which session."""
        session_id = wire_headers.endpoint_session_id(data)
        if session_id is None:
            return
        exchange.confirmed = True
        exchange.transport_id, exchange.owns_sessions = session_id, True
        exchange.sse_endpoint = True
        self._stream_opened(exchange, session_id)

    def _stream_opened(self, exchange: Exchange, session_id: str) -> None:
        self._pending.stream_opened(exchange, session_id)

    def _replied(self, call: Call | None, reply: Mapping[str, object]) -> None:
        if call is None:
            return
        self._metrics.learn_listed(call.method, reply.get("result"))
        if call.method == "initialize" and (version := negotiated_version(reply)) is not None:
            self._resolver.opened(call)
            call.exchange.protocol_version = version
            if call.session is not None:
                call.session.facts.protocol_version = version
        elif call.method == "server/discover" and "error" in reply and not call.accepted:
            call.session = None  # A probe that failed: the session will be that of the handshake which follows.
        if self._store_content or call.exchange.capture is not None:
            call.result = reply.get("result")
