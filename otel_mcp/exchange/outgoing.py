"""Measure requests of the server to its client, up to 2025-11-25: elicitation, sampling, roots.

The server sends them on an event stream, usually that of the call that needs the answer. The client answers by a POST.
By the semantic conventions, the side that sends a request reports it as a client.
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
"""Value of ``error.type`` if no answer came in time, or before the call or session ended."""
PATIENCE: Final = 600.0
"""Seconds that an answer may take."""
_MOST: Final = 1000
"""Transport sessions with waiting requests."""
_MOST_OF_ONE: Final = 100
"""Waiting requests of one transport session."""


@dataclass(slots=True, eq=False)
class _Request:
    """A request that waits for its answer."""

    method: str
    id: JsonId
    call: Call | None
    """The call that needs the answer, if the stream shows it."""
    version: str | None
    sent: float
    """Seconds of `perf_counter`."""
    sent_ns: int
    """Unix nanoseconds."""
    has_span: bool
    """A library has opened its span: the message carries a trace context."""


class Outgoing:
    """Requests of this process to clients that wait for an answer."""

    def __init__(self, metrics: Metrics, spans: Spans) -> None:
        self._metrics = metrics
        self._spans = spans
        self.waiting: dict[str, dict[JsonId, _Request]] = {}
        """By transport id, oldest first. The path skips this module for ids that it does not contain."""
        loops.leave_to_parent(self)

    def sent(self, exchange: Exchange, call: Call | None, message: Mapping[str, Any]) -> None:
        """Add a request that the server sent on a stream of `exchange`; `call` is the only call waiting there."""
        with _GUARD:
            method, request_id, session = message.get("method"), json_id(message.get("id")), exchange.transport_id
            if method not in METHODS or request_id is None or session is None:
                return
            if session not in self.waiting and len(self.waiting) >= _MOST:
                self.closed(next(iter(self.waiting)))
            of_session = self.waiting.setdefault(session, {})
            if request_id in of_session:
                return  # Sent again because the client lost the stream.
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
        """Find the client's answers in the body of a POST."""
        session = exchange.transport_id or ""
        if not (of_session := self.waiting.get(session)):
            self.waiting.pop(session, None)
            return
        with _GUARD:
            try:
                messages = parse_replies(body)
            except ValueError:
                return  # Not JSON: the server will refuse it.
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
        """Give up the requests of a call that has ended; ``None`` = those of no known call."""
        if session is not None and (of_session := self.waiting.get(session)) is not None:
            self._give_up(of_session, [key for key, request in list(of_session.items()) if request.call is call])
            self._drop_if_empty(session)

    def closed(self, session: str) -> None:
        """Give up the requests of a session that has ended."""
        if (of_session := self.waiting.pop(session, None)) is not None:
            self._give_up(of_session, list(of_session))

    def expire(self) -> None:
        """Give up what has waited longer than `PATIENCE`. Thread-safe: it keeps the tables that `sent` fills."""
        limit = perf_counter() - PATIENCE
        for of_session in list(self.waiting.values()):
            self._give_up(of_session, [key for key, request in list(of_session.items()) if request.sent <= limit])

    def clear(self) -> None:
        """Start empty in a forked child: the parent gets the answers."""
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
