"""What finished calls add to their sessions, and what observers get of them."""

from __future__ import annotations

from collections import deque
from typing import Any, Final

from opentelemetry.trace import SpanContext
from pydantic_core import to_json

from otel_mcp.guard import guarded
from otel_mcp.hashing import KeyedHashes
from otel_mcp.model.call import Call
from otel_mcp.model.delta import CallRecord, SessionDelta
from otel_mcp.model.outcomes import CALLERS_FAULT, was_taken
from otel_mcp.model.session import Session
from otel_mcp.model.state import ToolCall
from otel_mcp.observers.queue import Observers
from otel_mcp.settings import Settings
from otel_mcp.telemetry.content import redactor

_GUARD: Final = guarded("record")
_MAX_LINKS: Final = 100
"""Calls that the span of a session leads to."""
_MAX_DIGESTED: Final = 64 * 1024


class Deltas:
    """One delta for each session of a batch of calls."""

    def __init__(self, settings: Settings, keys: KeyedHashes, observers: Observers) -> None:
        self._keys = keys
        self._observers = observers
        self._content = settings.store_content
        self._links = settings.session_span
        self._redact = redactor(settings.redaction_hook)
        self._idle_gap = min(settings.session_idle_gap, settings.session_ttl)
        self._deltas: dict[Session, SessionDelta] = {}

    def take(self) -> list[SessionDelta]:
        """What the calls of this batch have added up to; the next batch begins."""
        deltas, self._deltas = self._deltas, {}
        return list(deltas.values())

    def add(self, call: Call) -> None:
        """Take up a finished call. The oldest first."""
        with _GUARD:
            if call.session is None or not was_taken(call):
                return
            session = call.session.conversation or call.session
            delta = self._deltas.get(session)
            if delta is None:
                self._deltas[session] = delta = SessionDelta(session.facts, session.last_activity)
            # Its own end: by now the session may have said goodbye.
            ended = call.exchange.started_ns / 1e9 + call.duration
            if ended - session.last_activity >= session.facts.limit:
                session.ended = True  # Before this call did: what names it next is to be asked about.
            if ended > session.last_activity:
                session.last_activity = delta.last_activity = ended
            if self._links and call.method == "tools/call" and call.span_context is not None:
                _link(session, call.span_context)
            if call.id is not None:
                self._count(call, session, delta)

    def _count(self, call: Call, session: Session, delta: SessionDelta) -> None:
        delta.requests += 1
        if call.outcome is not None and call.outcome.error_type is not None and call.failure not in CALLERS_FAULT:
            delta.errors += 1
        if session.agreement is not None and delta.touch_key is None:
            delta.touch_key = (session.agreement, self._idle_gap)
        if call.method != "tools/call":
            return
        if call.target is None:
            return
        session.has_tool_calls = True
        delta.call_count += 1
        record = self._call_record(call)
        delta.calls.append(record)
        if self._observers:
            self._observers.deliver(lambda: (tool_call(record), session.state()), record)

    def _call_record(self, call: Call) -> CallRecord:
        context = call.span_context
        traced = context is not None and context.is_valid
        arguments = call.arguments if call.arguments is not None else call.params.get("arguments")
        record = CallRecord(
            call.target or "",
            call.id,
            call.exchange.started_ns / 1e9,
            call.duration,
            call.outcome.error_type if call.outcome else None,
            call.failure,
            call.result_bytes,
            self._digest(arguments) if arguments else None,
            f"{context.trace_id:032x}" if context is not None and traced else None,
            f"{context.span_id:016x}" if context is not None and traced else None,
        )
        if self._content:
            record.arguments = self._redact(arguments)
            record.result = self._redact(call.result)
        return record

    def _digest(self, arguments: Any) -> str | None:
        try:
            encoded = to_json(arguments)
        except ValueError:
            return None  # Half a surrogate pair, or too deep: a server may take what cannot be written again.
        return self._keys.digest_bytes(encoded) if len(encoded) <= _MAX_DIGESTED else None


def _link(session: Session, context: SpanContext) -> None:
    if context.trace_flags.sampled:
        session.sampled = session.sampled if session.sampled is not None else deque(maxlen=_MAX_LINKS)
        session.sampled.append(context)


def tool_call(record: CallRecord) -> ToolCall:
    """The public form of a finished call."""
    return ToolCall.model_validate({name: getattr(record, name) for name in CallRecord.__slots__})
