"""One session in memory: the rules that ``lua/`` has for Redis, in Python."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Final

from otel_mcp.model.delta import FACTS, CallRecord, EndedSession, Flush, SessionDelta, SessionFacts
from otel_mcp.model.state import EndReason, SessionState
from otel_mcp.settings import Settings
from otel_mcp.store import document as text
from otel_mcp.store.base import GRACE

_VARIANTS: Final = 7
"""Sets of facts that are remembered as merged."""


@dataclass(slots=True)
class Record:
    """What is kept of one session. Instants are Unix seconds."""

    facts: SessionFacts
    service: str
    ttl: float
    cap: int
    last_activity: float = 0.0
    calls_total: int = 0
    errors: int = 0
    requests: int = 0
    calls: list[CallRecord] = field(default_factory=list[CallRecord])
    head: str = ',"attributes":{}'
    """JSON text of attributes and extras."""
    ended: tuple[float, str] | None = None
    document_until: float = 0.0
    until: float = 0.0
    """When an ended session is forgotten."""
    sequences: dict[str, tuple[int, dict[str, Any]]] = field(default_factory=dict[str, "tuple[int, dict[str, Any]]"])
    """The last flush of each process, and what it was answered."""
    not_before: float = 0.0
    """The end of an earlier session under the id."""
    merged: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    opened: bool = False
    """Its user is that of `initialize`."""

    @classmethod
    def begun(cls, delta: SessionDelta, settings: Settings, former: Record | None) -> Record:
        """A session that begins with `delta`."""
        facts = replace(delta.facts)
        record = cls(facts, settings.service_name, settings.session_ttl, settings.max_tool_calls)
        record.opened = facts.opened
        if former is not None and former.ended is not None:
            record.not_before = max(former.last_activity, former.ended[0])
            if facts.created_at <= record.not_before:
                # The process met the id in its former life.
                facts.created_at = _first(delta)
        return record

    @classmethod
    def given(cls, state: SessionState, settings: Settings, now: float) -> Record:
        """A session that begins with a document of the user's."""
        created = text.seconds(state.created_at) if state.created_at else now
        facts = SessionFacts(state.session_id, created, settings.session_ttl)
        record = cls(facts, settings.service_name, settings.session_ttl, settings.max_tool_calls)
        record.calls = [text.record(call) for call in state.tool_calls[-2 * record.cap :]]
        record.calls_total = max(state.tool_call_count, len(state.tool_calls))
        record.errors, record.requests = state.error_count, state.request_count
        record.last_activity = text.seconds(state.last_activity) if state.last_activity else now
        return record

    @property
    def deadline(self) -> float:
        return self.last_activity + self.facts.limit

    def has_document(self, now: float) -> bool:
        return self.document_until > now

    def is_over(self, delta: SessionDelta) -> bool:
        return self.ended is None and _first(delta) > self.deadline

    def begins_anew(self, delta: SessionDelta) -> bool:
        """Whether `delta` is of another session under the id of this ended one."""
        assert self.ended is not None
        if self.ended[1] == "expired":
            # Not by the last activity, which whatever was in flight has moved.
            return _first(delta) > self.ended[0] + self.facts.limit
        if self.ended[1] == "deleted" and _first(delta) > self.ended[0]:
            return True  # The process goes on with the session that it knows.
        return delta.facts.created_at > self.ended[0] + 1.0

    def is_bound_to_another(self, delta: SessionDelta) -> bool:
        """Whether `delta` is of another user. Whose it is `initialize` says, which may be written late."""
        bound = self.facts.principal
        return bound is not None and bound != delta.facts.principal and (self.opened or not delta.facts.opened)

    def late(self, flush: Flush, now: float) -> bool:
        """Count what was in flight when the session ended, where its document still stands."""
        if not self.has_document(now):
            return False
        limit = self.facts.limit
        self._count(flush.delta)
        self.facts.limit = limit
        self.note(flush, late=True)
        return True

    def add(self, delta: SessionDelta, now: float) -> None:
        self._count(delta)
        self.facts.limit = delta.facts.limit
        self.document_until = now + self.ttl

    def _count(self, delta: SessionDelta) -> None:
        news = delta.facts.known()
        if not self.merged and not self.opened and self.facts.principal is None:
            self.facts.principal = delta.facts.principal  # Of a session of the user's API it is the first message.
        if news not in self.merged:
            created = self.facts.created_at
            self.facts = replace(self.facts.with_news(delta.facts), created_at=created)
            self.merged = [news, *self.merged[: _VARIANTS - 1]]
        if delta.facts.opened and not self.opened:
            self.facts.principal, self.opened = delta.facts.principal, True
        if delta.facts.created_at > self.not_before:
            self.facts.created_at = min(self.facts.created_at, delta.facts.created_at)
        self.last_activity = max(self.last_activity, delta.last_activity)
        self.calls_total += delta.call_count
        self.errors += delta.errors
        self.requests += delta.requests
        newest = delta.calls[-self.cap :]
        self.calls += newest
        if len(self.calls) > 2 * self.cap or (len(newest) == self.cap and delta.call_count > self.cap):
            del self.calls[: -self.cap]

    def end(self, delta: SessionDelta, now: float) -> EndedSession:
        assert delta.ended is not None
        at, reason = delta.ended
        self.last_activity = max(self.last_activity, at)
        self._close(at, reason, now)
        return self.report(reason)

    def expire(self, now: float) -> EndedSession:
        self._close(self.last_activity, "expired", now)
        return self.report("expired")

    def _close(self, at: float, reason: EndReason, now: float) -> None:
        self.ended = (at, reason)
        if self.has_document(now):
            self.document_until = now + GRACE
        self.until = now + GRACE

    def delete(self, now: float) -> None:
        """Leave nothing but the memory that it was deleted."""
        self.ended = (now, "deleted")
        self.document_until, self.until = 0.0, now + GRACE
        self.calls, self.sequences, self.head = [], {}, ""
        self.calls_total = self.errors = self.requests = 0
        bound = self.facts.principal
        self.facts = SessionFacts(self.facts.session_id, self.facts.created_at, self.facts.limit, principal=bound)

    def note(
        self, flush: Flush, *, created: bool = False, ended: EndedSession | None = None, late: bool = False
    ) -> None:
        """Remember what this flush was answered, for when it comes again."""
        self.sequences[flush.token] = (flush.sequence, {"created": created, "ended": ended, "after_end": late})

    def report(self, reason: EndReason) -> EndedSession:
        counts = (self.calls_total, self.errors, self.requests)
        return EndedSession(self.known_facts().at_end(), reason, self.last_activity, *counts)

    def replace_head(self, state: SessionState, now: float) -> None:
        """Take facts, attributes and extras from a document of the user's."""
        facts = SessionFacts.of(state, self.facts.created_at, self.facts.limit)
        self.facts = self.facts.with_news(facts)
        self.head = text.attributes(state.attributes, state.model_extra)
        given = now if state.last_activity is None else text.seconds(state.last_activity)
        self.last_activity = max(self.last_activity, given)
        if self.ended is None:
            self.document_until = now + self.ttl

    def known_facts(self) -> SessionFacts:
        """The facts as they stand in the document: clipped, in UTF-8."""
        known = SessionState.model_validate_json(text.utf8(text.facts(self.facts, self.service)))
        return replace(self.facts, **{fact.name: getattr(known, fact.name) for fact in FACTS})

    def state(self) -> SessionState:
        """The document, by way of the text that Redis would hold."""
        end = None if self.ended is None else (text.micros(self.ended[0]), self.ended[1])
        written = text.document(
            text.facts(self.facts, self.service),
            self.head,
            text.micros(self.facts.created_at),
            text.calls(self.calls),
            text.micros(self.last_activity),
            (self.calls_total, self.errors, self.requests),
            end,
        )
        return SessionState.model_validate_json(text.utf8(written))


def _first(delta: SessionDelta) -> float:
    if delta.first_activity is None:
        return delta.last_activity
    return min(delta.first_activity, delta.last_activity)
