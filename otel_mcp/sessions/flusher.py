"""Writes buffered deltas to the store, each exactly once.

A flush without an answer is frozen: it is sent again unchanged, since the store
may have written it. A session with a frozen flush sends no other.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable
from operator import attrgetter
from typing import Final

from otel_mcp.guard import guarded
from otel_mcp.model.delta import EndedSession, Flush, SessionDelta, WriteResult
from otel_mcp.sessions.buffer import Buffer
from otel_mcp.sessions.callers import Callers
from otel_mcp.sessions.endings import Endings
from otel_mcp.sessions.findings import Findings
from otel_mcp.sessions.health import SessionEvents, StoreHealth
from otel_mcp.sessions.interruptions import Interruptions
from otel_mcp.sessions.tables import put_in_flight
from otel_mcp.sessions.tasks import Tasks
from otel_mcp.settings import Settings
from otel_mcp.store.base import ProducerId, SessionStore, StoreDown

logger = logging.getLogger("otel_mcp")

BATCH: Final = 32
"""Sessions in one round trip: this takes some ms, during which the loop serves no request."""
RECORDS: Final = 200
"""Call records after which a round trip takes no more sessions."""
_LONGEST_PAUSE: Final = 0.05
"""Maximum seconds between two round trips."""
_SESSIONS: Final = 2000
_CALLS: Final = 16
"""Sessions whose newest calls are remembered, and how many calls: an agent in a loop repeats itself within a minute."""
_CALLED: Final = attrgetter("tool_name", "arguments_digest")
_FAILURE: Final = attrgetter("failure")
_WENT_ON: Final = frozenset({None, "cancelled"})
"""Failures after which `Findings` need not read the session."""
_AFTER_OUTAGE: Final = 5.0
"""Seconds after an outage until all processes have written their buffers; before that, a session may look expired."""


class Flusher:
    """Takes deltas from the buffer, writes them to the store and reports the results."""

    def __init__(
        self,
        settings: Settings,
        buffer: Buffer,
        store: SessionStore,
        events: SessionEvents,
        producer: ProducerId,
        health: StoreHealth,
    ) -> None:
        self.buffer = buffer
        self._store = store
        self._events = events
        self.producer = producer
        self._health = health
        self.endings = Endings(settings, store, events, health)
        self.findings = Findings(store, events, health)
        self.tasks = Tasks(store, events, health, producer)
        self.callers = Callers(store, health)
        self.interruptions = Interruptions(settings, store, buffer, events, health)
        self.active: int | None = None
        """Live sessions of the service at the last count."""
        self.frozen: dict[str, Flush] = {}
        self._recent: OrderedDict[str, tuple[int, ...]] = OrderedDict()
        """Hashes of the newest calls of the sessions that were written last."""
        self._turn = threading.Lock()
        self._holder: Callable[[], asyncio.AbstractEventLoop | None] = lambda: None
        self._warned: set[str] = set()
        self.has_news = False
        """Whether sessions have begun or ended since the last count."""
        self.shows_calls = False
        """Whether the store lists calls in flight of this process."""
        self._moved = False
        self._through = 0
        self._down: StoreDown | None = None

    @property
    def calls(self) -> int:
        """Number of tool calls that the store has not confirmed."""
        return self.buffer.calls + sum(flush.delta.call_count for flush in list(self.frozen.values()))

    def waiting(self, session_id: str) -> list[SessionDelta]:
        """Return the deltas of a session that the store has not confirmed."""
        frozen, waiting = self.frozen.get(session_id), self.buffer.pending.get(session_id)
        return [delta for delta in (frozen.delta if frozen is not None else None, waiting) if delta is not None]

    async def flush(self, *, yielding: bool = False) -> None:
        """Write everything in the buffer, or as much as the store accepts.

        `yielding` pauses between batches, so that requests get at least half of the loop's time after an outage.
        """
        if not self._turn.acquire(blocking=False):
            await self._slow_acquire()
        turn, self._holder = self._turn, weakref.ref(asyncio.get_running_loop())
        try:
            if self.buffer.dropped:
                self._count_dropped()
            self._through, self._down = 0, None
            for _ in range(2):
                self._moved = False
                if self.frozen:
                    await self._resend()
                # Deltas that arrive meanwhile wait for the next flush: they often belong to the same sessions.
                left = len(self.buffer.pending)
                while left > 0 and (batch := self.buffer.take(min(BATCH, left), self.frozen, RECORDS)):
                    left -= len(batch)
                    busy = time.thread_time()
                    flushes: list[Flush] = []
                    for delta in batch:
                        flush = Flush(delta, self.producer.token, self.producer.next_sequence())
                        self.frozen[delta.facts.session_id] = flush
                        flushes.append(flush)
                    if not await self._send(flushes):
                        break
                    if yielding and left > 0:
                        await asyncio.sleep(min(time.thread_time() - busy, _LONGEST_PAUSE))
                if not self._moved:
                    break  # Otherwise once more: `apply` has moved a delta to another session.
            if self.endings.held:
                await self.endings.conclude()
        finally:
            if self._down is not None or self._health.is_partial:
                self._judge()
            turn.release()

    async def _resend(self) -> None:
        frozen = list(self.frozen.values())
        for at in range(0, len(frozen), BATCH):
            batch = frozen[at : at + BATCH]
            if not await self._send(batch):
                # Moved to the end, so that the others are sent first the next time.
                for flush in batch:
                    self.frozen[flush.delta.facts.session_id] = self.frozen.pop(flush.delta.facts.session_id)
                return

    async def _send(self, flushes: list[Flush]) -> bool:
        """Send flushes; return whether the store accepted any of them."""
        results: list[WriteResult] = []
        # `_judge` judges a divided store after the whole flush; another one fails at once: no request may wait for it.
        with self._health.operation("flush", deferred=self._health.divided) as use:
            results = await self._store.apply(flushes)
            for result in results:
                if result.retry:
                    raise StoreDown(result.retry)
            if self._down is None and self._health.is_away:
                self._health.succeeded()  # Now, not when all is written: after an outage that takes long.
        self._down = use.down or self._down
        before, expired = self._through, list[EndedSession]()
        for flush, result in zip(flushes, results, strict=False):
            self._through += not result.retry
            if result.expired is not None:
                expired.append(result.expired)
            if not result.retry and self.frozen.pop(result.session_id, None) is flush:
                self.apply(flush.delta, result)
                if (calls := flush.delta.calls) and flush.delta.ended is None:
                    held, made = self._recent.pop(result.session_id, ()), list(map(hash, map(_CALLED, calls)))
                    self._recent[result.session_id] = (*held, *made)[-_CALLS:]
                    if len(self._recent) > _SESSIONS:
                        self._recent.popitem(last=False)
                    again = len(made) > len(set(made)) or not set(made).isdisjoint(held)
                    suspicious = again or not _WENT_ON.issuperset(map(_FAILURE, calls))
                    if suspicious and result.session_id not in self.findings.due:
                        self.findings.want(result.session_id)
        if expired:
            self.has_news = True
            await self.endings.report(expired)
        return self._through > before

    def _judge(self) -> None:
        """Update the health of a divided store after a flush."""
        health, down = self._health, self._down
        if down is None:
            if not self.frozen:
                health.all_written()
        elif health.divided and self._through:
            health.partly(down)
        elif health.divided:
            health.failed(down)

    def apply(self, delta: SessionDelta, result: WriteResult) -> None:
        """Act on the store's result for a session."""
        instead: SessionDelta | None = None
        more = result.agreed_session is not None or result.agreed_successor is not None or result.waits
        if result.created or result.resumed or result.after_end or more or result.owner or result.back_after:
            with guarded("session events"):
                instead = self._events.written(delta, result)
        if result.created:
            self.interruptions.began(delta.facts)
        if instead is not None:
            self._moved = True
            self.buffer.add(instead)
        elif result.refused is not None:
            self.drop(delta.call_count, result.refused)
        elif result.owner is not None and delta.call_count:
            self.drop(delta.call_count, "principal")
        self.has_news = self.has_news or result.created or result.ended
        if result.ended:
            self.endings.hold(result.session_id, brief=result.brief)

    def drop(self, calls: int, reason: str) -> None:
        """Count calls that will not be written, and log the first of each reason."""
        if reason not in self._warned:
            self._warned.add(reason)
            logger.warning(
                "otel_mcp: %d tool calls cannot be stored: %s; these and later ones are counted as dropped",
                calls,
                _WHY[reason],
            )
        if calls:
            with guarded("session events"):
                self._events.dropped(calls, reason)

    def abandon(self) -> None:
        """Count everything unconfirmed as dropped: the process ends."""
        calls = self.calls
        self.frozen.clear()
        self.buffer.release()
        self.buffer.take(len(self.buffer.pending))
        self._count_dropped()
        if calls:
            self.drop(calls, "shutdown")
        self.tasks.abandon()
        with guarded("session events"):
            self._events.tasks_abandoned()

    def _count_dropped(self) -> None:
        if calls := self.buffer.take_dropped():
            self.drop(calls, "full")

    async def sweep(self) -> None:
        """Report expired sessions that no process has reported, then count live sessions."""
        if self._health.is_away:
            return
        await self.flush()
        if not self._health.is_away and time.monotonic() - self._health.recovered_at >= _AFTER_OUTAGE:
            with self._health.operation("sweep"):
                await self.endings.sweep()
        await self.count()

    async def report_in_flight(self) -> None:
        """Write the calls that have been in flight for long; once more after the last one ended."""
        if self._health.is_away:
            return
        calls = self._events.in_flight()
        if calls or self.shows_calls:
            with self._health.operation("in_flight"):
                await put_in_flight(self._store, self.producer, calls, again=self.shows_calls)
                self.shows_calls = bool(calls)

    async def count(self) -> None:
        """Count live sessions and today's callers. A failure opens the breaker."""
        if not self._health.is_away:
            with self._health.operation("count"):
                self.active = await self._store.active()
        await self.callers.count()

    async def _slow_acquire(self) -> None:
        """Wait for the running flush, which may be on another loop of this process."""
        while not self._turn.acquire(blocking=False):
            holder = self._holder()
            if holder is not None and holder.is_running():
                await asyncio.sleep(0.002)
            else:
                # Its loop was stopped in the middle of a flush; the flushes that it sent are frozen.
                self._turn = threading.Lock()


_WHY: Final = {
    "full": "too many sessions are waiting for the store",
    "foreign": "another program has written to a key of otel_mcp, and its value is kept",
    "error": "the store rejects the write",
    "ended": "their session had ended, and its document is gone",
    "principal": "their session belongs to another user, and there is no room for a new one",
    "shutdown": "the process ended before the store was available again",
}
