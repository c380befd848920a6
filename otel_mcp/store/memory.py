"""Sessions in the memory of this process, where no Redis is configured.

Behaves as the Redis store does, within one process; bounded, and never waits.
The session that nobody used for longest goes first, and counts as expired.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence

from otel_mcp.model.delta import EndedSession, Flush, Known, SessionDelta, WriteResult
from otel_mcp.model.state import SessionState
from otel_mcp.settings import Settings
from otel_mcp.store.memory_record import Record


class MemoryStore:
    """A `SessionStore` of one process. `clock` tells Unix seconds."""

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._clock = clock
        self.clear()

    def clear(self) -> None:
        """Forget everything: after a fork it is the parent's."""
        self._records: OrderedDict[str, Record] = OrderedDict()
        """By last use."""
        self._agreed: OrderedDict[str, tuple[str, float]] = OrderedDict()
        self._evicted: deque[EndedSession] = deque(maxlen=self._settings.max_sessions)

    def __len__(self) -> int:
        return len(self._records)

    async def apply(self, deltas: Sequence[Flush]) -> list[WriteResult]:
        """Write each flush once."""
        return [self.write(flush) for flush in deltas]

    def write(self, flush: Flush) -> WriteResult:
        """Write one flush, once."""
        now = self._clock()
        answer = self._write(flush, now)
        self._keep_alive(flush.delta, answer, now)
        return answer

    def _write(self, flush: Flush, now: float) -> WriteResult:
        delta = flush.delta
        session_id = delta.facts.session_id
        record = self._record(session_id, now)
        expired: EndedSession | None = None
        if record is not None:
            seen = record.sequences.get(flush.token)
            if seen is not None and seen[0] >= flush.sequence:
                return WriteResult(session_id, duplicate=True, total_calls=record.calls_total, **seen[1])
            if record.is_bound_to_another(delta):
                return WriteResult(session_id, owner=record.facts.principal, total_calls=record.calls_total)
            if record.is_over(delta):
                expired = record.expire(now)
            if record.ended is not None and not record.begins_anew(delta):
                counted = record.late(flush, now) or not delta.call_count
                refused = None if counted else "ended"
                return WriteResult(session_id, after_end=True, total_calls=record.calls_total, refused=refused)
        created = record is None or record.ended is not None
        if created and delta.ended is not None and not delta.requests and not delta.call_count:
            # The mere end of a session that is not there begins none.
            return WriteResult(session_id, after_end=True, expired=expired)
        if created:
            record = Record.begun(delta, self._settings, record)
            self._put(record)
        assert record is not None
        record.add(delta, now)
        ended = record.end(delta, now) if delta.ended is not None else None
        record.note(flush, created=created, ended=ended)
        return WriteResult(session_id, created=created, total_calls=record.calls_total, ended=ended, expired=expired)

    def _record(self, session_id: str, now: float) -> Record | None:
        record = self._records.get(session_id)
        if record is None:
            return None
        if record.until <= now and record.ended is not None:
            del self._records[session_id]
            return None
        self._records.move_to_end(session_id)
        return record

    def _put(self, record: Record) -> None:
        self._records[record.facts.session_id] = record
        self._records.move_to_end(record.facts.session_id)
        while len(self._records) > self._settings.max_sessions:
            _, oldest = self._records.popitem(last=False)
            if oldest.ended is None:
                self._evicted.append(oldest.report("expired"))

    def _keep_alive(self, delta: SessionDelta, answer: WriteResult, now: float) -> None:
        if delta.touch_key is not None:
            answer.agreed_session = self._touch(delta.touch_key[0], delta.facts.session_id, now + delta.touch_key[1])
        if delta.facts.previous_id:
            until = now + self._settings.session_ttl
            key, bound = _next(delta.facts.previous_id), self._bound(delta.facts.previous_id, now)
            if bound in (None, delta.facts.principal) or self._value(key, now) is not None:
                answer.agreed_successor = self._touch(key, delta.facts.session_id, until)

    async def load(self, session_id: str) -> SessionState | None:
        """The document."""
        return self.read(session_id)

    def read(self, session_id: str) -> SessionState | None:
        """The document."""
        now = self._clock()
        record = self._record(session_id, now)
        return record.state() if record is not None and record.has_document(now) else None

    async def save(self, state: SessionState) -> WriteResult:
        """Write a document of the user's."""
        return self.put(state)

    def put(self, state: SessionState) -> WriteResult:
        """Write a document of the user's."""
        now = self._clock()
        record = self._record(state.session_id, now)
        created = record is None or (record.ended is not None and not record.has_document(now))
        if record is None or created:
            former, record = record, Record.given(state, self._settings, now)
            if former is not None:
                record.facts.principal, record.opened = former.facts.principal, former.opened
            self._put(record)
        record.replace_head(state, now)
        return WriteResult(state.session_id, created=created)

    async def delete(self, session_id: str) -> bool:
        """Remove a session at once."""
        now = self._clock()
        record = self._record(session_id, now)
        if record is None:
            return False
        existed = record.has_document(now)
        record.delete(now)
        return existed

    async def describe(self, session_id: str) -> Known:
        """What is known of an id."""
        now = self._clock()
        record = self._record(session_id, now)
        successor = self._value(_next(session_id), now)
        if record is None:
            return Known(exists=False, successor=successor)
        if record.ended is not None or record.deadline <= now or not record.has_document(now):
            over = record.ended is not None or record.deadline <= now
            return Known(
                exists=False, ended=over, successor=successor, principal=record.facts.principal, opened=record.opened
            )
        facts, worked = record.known_facts(), record.calls_total > 0
        return Known(
            exists=True,
            successor=successor,
            facts=facts,
            worked=worked,
            principal=facts.principal,
            opened=record.opened,
        )

    async def bind(self, session_id: str, user: str | None) -> None:
        """Nothing to do: the one process that could ask has opened it."""

    async def get(self, key: str) -> str | None:
        """The value under `key`."""
        return self._value(key, self._clock())

    async def get_or_set(self, key: str, candidate: str, ttl: float) -> str:
        """The value under `key`."""
        now = self._clock()
        value = self._value(key, now)
        if value is not None:
            return value
        self._agree(key, candidate, now + ttl if ttl else float("inf"))
        return candidate

    def _value(self, key: str, now: float) -> str | None:
        value, until = self._agreed.get(key, (None, 0.0))
        return value if until > now else None

    def _touch(self, key: str, value: str, until: float) -> str | None:
        """Keep an agreed value alive; another one, where that stands."""
        standing = self._value(key, self._clock())
        if standing is not None and standing != value:
            return standing
        self._agree(key, value, until)
        return None

    def _agree(self, key: str, value: str, until: float) -> None:
        self._agreed[key] = (value, until)
        self._agreed.move_to_end(key)
        while len(self._agreed) > 2 * self._settings.max_sessions:
            self._agreed.popitem(last=False)

    async def get_or_set_successor(self, old_id: str, candidate: str, user: str | None = None) -> str:
        """The id of the one session that continues `old_id`."""
        now = self._clock()
        standing = self._value(_next(old_id), now)
        if standing is None and self._bound(old_id, now) not in (None, user):
            return candidate
        return await self.get_or_set(_next(old_id), candidate, self._settings.session_ttl)

    def _bound(self, session_id: str, now: float) -> str | None:
        record = self._record(session_id, now)
        return record.facts.principal if record is not None else None

    async def claim_expired(self, now: float, limit: int) -> list[EndedSession]:
        """Sessions whose time was over at `now`."""
        ended: list[EndedSession] = []
        while self._evicted and len(ended) < limit:
            ended.append(self._evicted.popleft())
        for session_id, record in list(self._records.items()):
            if len(ended) >= limit:
                break
            if record.ended is None and record.deadline <= now:
                ended.append(record.expire(now))
            elif record.ended is not None and record.until <= now:
                del self._records[session_id]
        return ended

    async def ack_ends(self, ended: Sequence[EndedSession]) -> None:
        """Nothing to do: nobody else could report them."""

    async def active(self) -> int:
        """Live sessions."""
        now = self._clock()
        return sum(1 for record in self._records.values() if record.ended is None and record.deadline > now)

    async def aclose(self) -> None:
        """Nothing to release."""


def _next(session_id: str) -> str:
    return f"{session_id}:next"
