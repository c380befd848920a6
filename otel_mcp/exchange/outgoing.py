"""Requests of the server to its client, up to 2025-11-25: elicitation, sampling, roots.

They go out on an event stream, mostly that of the call which needs the answer, and are answered by a POST of their own.
The conventions have the one who asks report it, as a client, whichever side that is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter, time_ns
from typing import Any, Final

from opentelemetry import propagate

from otel_mcp import loops, semconv
from otel_mcp.guard import guarded
from otel_mcp.model.call import Call, Exchange
from otel_mcp.telemetry.metrics import Metrics
from otel_mcp.telemetry.spans import Spans
from otel_mcp.wire.jsonrpc import JsonId, field_of, json_id, outcome_of, parse_replies

_GUARD: Final = guarded("requests to clients")
METHODS: Final = frozenset({"elicitation/create", "sampling/createMessage", "roots/list"})
UNANSWERED: Final = "unanswered"
"""Value of ``error.type`` where no answer came before the call or the session ended, or in time."""
PATIENCE: Final = 600.0
"""Seconds that an answer may take."""
_MOST: Final = 1000
"""Transport sessions whose clients are asked something."""
_MOST_OF_ONE: Final = 100
"""Requests to the client of one of them that wait for an answer."""


@dataclass(slots=True, eq=False)
class _Request:
    """One that waits for its answer."""

    method: str
    id: JsonId
    call: Call | None
    """The one that needs the answer, as far as the stream tells."""
    version: str | None
    sent: float
    """Seconds of `perf_counter`."""
    sent_ns: int
    """Unix nanoseconds."""
    has_span: bool
    """A library has opened a span for it, whose context it carries."""


class Outgoing:
    """Requests of this process to clients that wait for an answer."""

    def __init__(self, metrics: Metrics, spans: Spans) -> None:
        self._metrics = metrics
        self._spans = spans
        self.waiting: dict[str, dict[JsonId, _Request]] = {}
        """By transport session, oldest first; for a session that is not in it nothing here runs."""
        loops.leave_to_parent(self)

    def sent(self, exchange: Exchange, call: Call | None, message: Mapping[str, Any]) -> None:
        """Take up a message of the server on a stream of `exchange`, on which `call` alone waits for an answer."""
        with _GUARD:
            method, request_id, session = message.get("method"), json_id(message.get("id")), exchange.transport_id
            if method not in METHODS or request_id is None or session is None:
                return
            if session not in self.waiting and len(self.waiting) >= _MOST:
                self.closed(next(iter(self.waiting)))
            of_session = self.waiting.setdefault(session, {})
            if request_id in of_session:
                return  # A server repeats it where its client has lost the stream.
            if len(of_session) >= _MOST_OF_ONE:
                self._give_up(of_session, [next(iter(of_session))])
            params = message.get("params")
            meta = field_of(params, "_meta")
            has_span = any(field_of(meta, name) is not None for name in propagate.get_global_textmap().fields)
            version = exchange.protocol_version
            of_session[request_id] = _Request(
                str(method), request_id, call, version, perf_counter(), time_ns(), has_span
            )

    def read(self, exchange: Exchange, body: bytes | bytearray) -> None:
        """Take the client's answers out of the body of a POST."""
        session = exchange.transport_id or ""
        if not (of_session := self.waiting.get(session)):
            self.waiting.pop(session, None)
            return
        with _GUARD:
            try:
                messages = parse_replies(body)
            except ValueError:
                return  # Not JSON, as the server will say.
            for message in messages:
                request_id, outcome = json_id(message.get("id")), outcome_of(message)
                if "method" in message or request_id is None or outcome is None:
                    continue
                if (request := of_session.pop(request_id, None)) is not None:
                    code = outcome.status_code
                    failure = {semconv.ERROR_TYPE: code, semconv.RPC_RESPONSE_STATUS_CODE: code} if code else {}
                    self._end(request, exchange.started, failure)
            self._drop_if_empty(session)

    def ended(self, session: str | None, call: Call | None) -> None:
        """Give up what a call has asked, or what no call is known for: nobody waits for it any longer."""
        if session is not None and (of_session := self.waiting.get(session)) is not None:
            self._give_up(of_session, [key for key, request in list(of_session.items()) if request.call is call])
            self._drop_if_empty(session)

    def closed(self, session: str) -> None:
        """Give up what a session has been asked that is over."""
        if (of_session := self.waiting.pop(session, None)) is not None:
            self._give_up(of_session, list(of_session))

    def expire(self) -> None:
        """Give up what has waited too long. From any thread: it drops no table that `sent` may be about to fill."""
        limit = perf_counter() - PATIENCE
        for of_session in list(self.waiting.values()):
            self._give_up(of_session, [key for key, request in list(of_session.items()) if request.sent <= limit])

    def clear(self) -> None:
        """Start again in a forked child: the answers come to the parent."""
        self.waiting.clear()

    def close(self) -> None:
        """Give up everything: the process is about to end."""
        for session in list(self.waiting):
            self.closed(session)

    def _drop_if_empty(self, session: str) -> None:
        if not self.waiting.get(session, True):
            del self.waiting[session]

    def _give_up(self, of_session: dict[JsonId, _Request], ids: list[JsonId]) -> None:
        with _GUARD:
            for request_id in ids:
                if (request := of_session.pop(request_id, None)) is not None:
                    self._end(request, perf_counter(), {semconv.ERROR_TYPE: UNANSWERED})

    def _end(self, request: _Request, at: float, failure: Mapping[str, str]) -> None:
        seconds = max(at - request.sent, 0.0)
        self._metrics.inputs.asked(request.method, request.version, failure, seconds)
        if request.call is not None and not request.has_span:
            self._spans.asked(request.call, request.method, request.id, request.sent_ns, seconds, failure)
