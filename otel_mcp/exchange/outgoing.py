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

from otel_mcp.guard import guarded
from otel_mcp.model.call import Call, Exchange
from otel_mcp.telemetry.metrics import Metrics
from otel_mcp.telemetry.spans import Spans
from otel_mcp.wire.jsonrpc import JsonId, field_of, json_id, outcome_of, parse_replies

_GUARD: Final = guarded("requests to clients")
METHODS: Final = frozenset({"elicitation/create", "sampling/createMessage", "roots/list"})
UNANSWERED: Final = "unanswered"
"""Value of ``error.type`` where the call ended, or very many others were asked, before an answer came."""
_MOST: Final = 1000
_MOST_OF_ONE: Final = 100
"""Transport sessions whose clients are asked something, and requests of one of them."""


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
        """By transport session; while it is empty nothing here runs."""

    def sent(self, exchange: Exchange, call: Call | None, message: Mapping[str, Any]) -> None:
        """Take up a message of the server on a stream of `exchange`, which serves `call` alone."""
        with _GUARD:
            method, request_id, session = message.get("method"), json_id(message.get("id")), exchange.transport_id
            if method not in METHODS or request_id is None or session is None:
                return
            if session not in self.waiting and len(self.waiting) >= _MOST:
                self._give_up(next(iter(self.waiting)), None)
            of_session = self.waiting.setdefault(session, {})
            if len(of_session) >= _MOST_OF_ONE:
                self._end(of_session.pop(next(iter(of_session))), perf_counter(), UNANSWERED)
            params = message.get("params")
            meta = field_of(params, "_meta")
            has_span = any(field_of(meta, name) is not None for name in propagate.get_global_textmap().fields)
            version = exchange.protocol_version
            of_session[request_id] = _Request(
                str(method), request_id, call, version, perf_counter(), time_ns(), has_span
            )

    def read(self, exchange: Exchange, body: bytes | bytearray) -> None:
        """Take the client's answers out of the body of a POST."""
        of_session = self.waiting.get(exchange.transport_id or "")
        if not of_session:
            return
        with _GUARD:
            try:
                messages = parse_replies(body)
            except ValueError:
                return  # Not JSON, as the server will say.
            for message in messages:
                outcome = outcome_of(message) if "method" not in message else None
                request = of_session.pop(json_id(message.get("id")) or 0, None) if outcome is not None else None
                if outcome is not None and request is not None:
                    self._end(request, exchange.started, outcome.status_code)
            if not of_session:
                self.waiting.pop(exchange.transport_id or "", None)

    def ended(self, call: Call) -> None:
        """Give up what a call has asked: nobody waits for it any longer."""
        if (session := call.exchange.transport_id) in self.waiting:
            self._give_up(session, call)

    def _give_up(self, session: str, call: Call | None) -> None:
        """End the requests of a call, or of a whole session, without an answer."""
        with _GUARD:
            of_session = self.waiting[session]
            for key in [key for key, request in of_session.items() if call is None or request.call is call]:
                self._end(of_session.pop(key), perf_counter(), UNANSWERED)
            if not of_session:
                del self.waiting[session]

    def _end(self, request: _Request, at: float, error: str | None) -> None:
        seconds = max(at - request.sent, 0.0)
        self._metrics.inputs.asked(request.method, request.version, error, seconds)
        if request.call is not None and not request.has_span:
            self._spans.asked(request.call, request.method, request.id, request.sent_ns, seconds, error)
