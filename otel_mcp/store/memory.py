"""Sessions in the memory of this process, if no Redis is configured.

Meets the contract of the Redis store within one process; bounded, and never waits.
The session unused for longest is removed first, and counts as expired.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from otel_mcp.bounded import remember
from otel_mcp.model.delta import EndedSession, Flush, Known, SessionDelta, SessionFacts, WriteResult
from otel_mcp.model.state import SessionState
from otel_mcp.settings import Settings
from otel_mcp.store import document as text
from otel_mcp.store.base import GRACE, Change
from otel_mcp.store.memory_record import Alone, CutSessions, Record, Visits, first_activity


class MemoryStore(CutSessions, Alone):
    """A `SessionStore` (its methods are described there) of one process. `clock` returns Unix seconds."""

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._clock = clock
        super().__init__()
        self._records: OrderedDict[str, Record] = OrderedDict()
        """By last use."""
        self._agreed: OrderedDict[str, tuple[str, float]] = OrderedDict()
        self._tables: dict[str, dict[str, str]] = {}
        self._evicted: deque[EndedSession] = deque(maxlen=self._settings.max_sessions)
        self._visits = Visits(self._settings.max_sessions)

    @property
    def ahead(self) -> float:
        return 0.0 if self._clock is time.time else self._clock() - time.time()

    def __len__(self) -> int:
        return len(self._records)

    async def apply(self, deltas: Sequence[Flush]) -> list[WriteResult]:
        return [self._apply(flush) for flush in deltas]

    def _apply(self, flush: Flush) -> WriteResult:
        now, delta = self._clock(), flush.delta
        answer = self._write(flush, now)
        if delta.call_count:
            self._visits.forget(delta.facts.visitor)
        if delta.touch_key is not None:
            key, kept = delta.touch_key
            answer.agreed_session = self._keep_alive(key, delta.facts.session_id, now + kept)
        if previous := delta.facts.previous_id:
            key = f"{previous}:next"
            if self._value(key, now) is not None or self._bound(previous, now) in (None, delta.facts.principal):
                until = now + self._settings.session_ttl
                answer.agreed_successor = self._keep_alive(key, delta.facts.session_id, until)
        return answer

    def _write(self, flush: Flush, now: float) -> WriteResult:
        delta, session_id = flush.delta, flush.delta.facts.session_id
        record = self._record(session_id, now)
        expired: EndedSession | None = None
        is_goodbye = delta.ended is not None and delta.ended[1] == "client_delete"
        is_mere = delta.is_mere_end and not (is_goodbye and delta.facts.lasting)
        if record is not None:
            sequence, answered = record.answers.get(flush.token, (-1, None))
            if answered is not None and sequence >= flush.sequence:
                return replace(answered, duplicate=True, total_calls=record.calls_total)
            if record.is_bound_to_another(delta.facts):
                return WriteResult(session_id, owner=record.facts.principal, total_calls=record.calls_total)
            if delta.facts.lasting and record.is_brief:
                record.ended, record.unreported = None, False
            is_overdue = record.ended is None and first_activity(delta) > record.deadline
            if is_overdue:
                record.end(record.last_activity, "expired", now)
            if record.ended is not None and is_mere:
                return WriteResult(session_id, after_end=True, total_calls=record.calls_total, ended=is_overdue)
            if record.ended is not None and not record.is_succeeded_by(delta):
                return self._write_late(flush, record, now)
            if record.unreported:
                expired = record.report()
        created = record is None or record.ended is not None
        lasts = delta.facts.lasting or (record is not None and not created and record.facts.lasting)
        ended = None if lasts and is_goodbye else delta.ended
        if created and is_mere:
            return WriteResult(session_id, after_end=True)
        if record is None or created:
            record = self._begin(delta, record)
        back = record.come_back(first_activity(delta), delta.began or delta.last_activity) if delta.requests else None
        waits = record.add(delta, self._settings.max_tool_calls, late=False)
        record.document_until = now + self._settings.session_ttl
        answer = WriteResult(session_id, created=created, total_calls=record.calls_total, back_after=back, waits=waits)
        if ended is not None:
            record.end(*ended, now)
            answer.ended, answer.brief = True, record.is_brief
        record.answers[flush.token] = (flush.sequence, answer)
        return replace(answer, expired=expired)

    def _write_late(self, flush: Flush, record: Record, now: float) -> WriteResult:
        """Count requests that were in flight when the session ended, if its document still exists."""
        answer = WriteResult(record.facts.session_id, after_end=True)
        if record.has_document(now):
            answer.waits = record.add(flush.delta, self._settings.max_tool_calls, late=True)
            record.answers[flush.token] = (flush.sequence, answer)
        elif flush.delta.call_count:
            answer.refused = "ended"
        return replace(answer, total_calls=record.calls_total)

    def _begin(self, delta: SessionDelta, former: Record | None) -> Record:
        facts = delta.facts
        record = Record(SessionFacts(facts.session_id, facts.created_at, facts.limit, principal=facts.principal))
        record.opened = facts.opened
        if former is not None and former.ended is not None:
            record.answers = former.answers
            record.not_before = max(former.last_activity, former.ended[0])
            if facts.created_at <= record.not_before:
                # The process knew the id from the earlier session.
                record.facts.created_at = first_activity(delta)
        self._put(record)
        return record

    def _record(self, session_id: str, now: float) -> Record | None:
        record = self._records.pop(session_id, None)
        if record is None or (record.until <= now and record.ended is not None):
            return None
        self._records[session_id] = record
        return record

    def _put(self, record: Record) -> None:
        self._records[record.facts.session_id] = record
        self._records.move_to_end(record.facts.session_id)
        while len(self._records) > self._settings.max_sessions:
            _, oldest = self._records.popitem(last=False)
            if oldest.ended is None or oldest.unreported:
                self._evicted.append(oldest.report())

    async def load(self, session_id: str) -> SessionState | None:
        now = self._clock()
        record = self._record(session_id, now)
        return record.state(self._settings.service_name) if record is not None and record.has_document(now) else None

    async def save(self, state: SessionState, *, only_new: bool = False) -> WriteResult:
        now = self._clock()
        record = self._record(state.session_id, now)
        if only_new and record is not None and record.has_document(now):
            return WriteResult(state.session_id)
        last = now if state.last_activity is None else text.seconds(state.last_activity)
        created = record is None or (record.ended is not None and not record.has_document(now))
        if record is None or created:
            former = record
            began = now if state.created_at is None else text.seconds(state.created_at)
            record = Record(SessionFacts(state.session_id, began, self._settings.session_ttl), last)
            record.calls = [text.record(call) for call in state.tool_calls[-2 * self._settings.max_tool_calls :]]
            record.calls_total = max(state.tool_call_count, len(state.tool_calls))
            record.errors, record.requests = state.error_count, state.request_count
            record.context, record.listed = state.context_bytes, state.catalogue_bytes
            if former is not None:
                record.facts.principal, record.opened = former.facts.principal, former.opened
            self._put(record)
        record.merge(SessionFacts.of(state, 0.0, 0.0))
        record.attributes = text.attributes(state.attributes, state.model_extra)
        record.last_activity = max(record.last_activity, last)
        if record.ended is None:
            record.document_until = now + self._settings.session_ttl
        return WriteResult(state.session_id, created=created)

    async def delete(self, session_id: str) -> bool:
        now = self._clock()
        record = self._record(session_id, now)
        if record is None:
            return False
        whose = SessionFacts(session_id, now, record.facts.limit, principal=record.facts.principal)
        self._records[session_id] = Record(whose, ended=(now, "deleted"), until=now + GRACE, opened=record.opened)
        return record.has_document(now)

    async def describe(self, session_id: str) -> Known:
        now = self._clock()
        record, successor = self._record(session_id, now), self._value(f"{session_id}:next", now)
        if record is None:
            return Known(exists=False, successor=successor)
        known = Known(False, successor=successor, principal=record.facts.principal, opened=record.opened)
        known.ended = record.ended is not None or record.deadline <= now
        may_go_on = record.is_brief or (not known.ended and (record.facts.lasting or record.calls_total <= 1))
        if (not known.ended or may_go_on) and record.has_document(now):
            known.exists, known.facts, known.has_tool_calls = True, replace(record.facts), record.calls_total > 0
            known.may_go_on = may_go_on
        return known

    async def bind(self, facts: SessionFacts) -> None:
        """Do nothing: the only process that could ask has opened it."""

    async def get(self, key: str) -> str | None:
        return self._value(key, self._clock())

    async def get_or_set(self, key: str, candidate: str, ttl: float) -> str:
        now = self._clock()
        if (value := self._value(key, now)) is None:
            self._set(key, candidate, now + ttl if ttl else float("inf"))
        return candidate if value is None else value

    async def set_value(self, key: str, value: str, ttl: float) -> None:
        self._set(key, value, self._clock() + ttl)

    async def get_or_set_successor(self, old_id: str, candidate: str, user: str | None = None) -> str:
        now = self._clock()
        if self._value(f"{old_id}:next", now) is None and self._bound(old_id, now) not in (None, user):
            return candidate
        return await self.get_or_set(f"{old_id}:next", candidate, self._settings.session_ttl)

    def _value(self, key: str, now: float) -> str | None:
        value, until = self._agreed.get(key, (None, 0.0))
        return value if until > now else None

    def _set(self, key: str, value: str, until: float) -> None:
        self._agreed.pop(key, None)
        remember(self._agreed, key, (value, until), 2 * self._settings.max_sessions)

    def _keep_alive(self, key: str, value: str, until: float) -> str | None:
        """Prolong an agreed value, or set it; another one, where that stands."""
        agreed = self._value(key, self._clock())
        if agreed not in (None, value):
            return agreed
        self._set(key, value, until)
        return None

    def _bound(self, session_id: str, now: float) -> str | None:
        return record.facts.principal if (record := self._record(session_id, now)) is not None else None

    async def entries(self, table: str, names: Sequence[str] | None = None) -> dict[str, str]:
        held = self._tables.get(table, {})
        return dict(held) if names is None else {name: held[name] for name in names if name in held}

    async def swap(self, table: str, changes: Mapping[str, Change], most: int, kept: float) -> set[str]:
        held, missed = self._tables.setdefault(table, {}), set[str]()
        for name, (former, new, place) in changes.items():
            other, text = place or ("", None)
            is_full = former is None and place is None and len(held) >= most
            if held.get(name) != former or held.get(other) != text or is_full:
                missed.add(name)
                continue
            held.pop(name if new is None else other, None)
            if new is not None:
                held[name] = new
        return missed

    async def claim_expired(self, now: float, limit: int) -> list[EndedSession]:
        ended: list[EndedSession] = []
        while self._evicted and len(ended) < limit:
            ended.append(self._evicted.popleft())
        for session_id, record in list(self._records.items()):
            if len(ended) >= limit:
                break
            if record.ended is None and record.deadline <= now:
                record.end(record.last_activity, "expired", now)
                ended.append(record.report())
            elif record.ended is not None and record.until <= now:
                del self._records[session_id]
        return ended

    async def claim_held(self, session_ids: Sequence[str], now: float) -> list[EndedSession]:
        found = [self._records.get(session_id) for session_id in session_ids]
        return [record.report() for record in found if record is not None and record.unreported]

    async def ack_ends(self, ended: Sequence[EndedSession]) -> None:
        for end in ended:
            record = self._records.get(end.session_id)
            if record is not None and record.ended is not None:
                record.outcome = end.outcome

    async def visits(self, ended: Sequence[EndedSession]) -> list[list[float]]:
        return [self._visits.add(end) for end in ended]

    async def mark(self, session_id: str, finding: str) -> bool:
        record = self._record(session_id, now := self._clock())
        return record is not None and record.has_document(now) and record.mark(finding)

    async def active(self) -> int:
        now = self._clock()
        return sum(1 for record in self._records.values() if record.ended is None and record.deadline > now)

    async def aclose(self) -> None:
        """Do nothing: nothing is held."""
