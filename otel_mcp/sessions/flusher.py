"""Writing what waits, once each, whatever the store does meanwhile.

What was sent and not answered is frozen and sent again unchanged, since the
store may have written it; a session with a frozen flush sends no other.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import weakref
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from time import thread_time
from typing import Final

from otel_mcp.guard import guarded
from otel_mcp.model.delta import EndedSession, Flush, SessionDelta, WriteResult
from otel_mcp.sessions.buffer import Coalescer
from otel_mcp.sessions.events import SessionEvents
from otel_mcp.sessions.health import StoreHealth
from otel_mcp.store.base import ProducerId, SessionStore, StoreDown

logger = logging.getLogger("otel_mcp")

BATCH: Final = 32
"""Sessions in one round trip: some ms of work, for which the requests of the loop wait."""
RECORDS: Final = 200
"""Call records from which on a round trip takes no further session."""
_LONGEST_PAUSE: Final = 0.05
"""Seconds between two round trips, at most."""


class Flusher:
    """Takes from the coalescer, gives to the store, tells what happened."""

    def __init__(
        self, coalescer: Coalescer, store: SessionStore, events: SessionEvents, process: ProducerId, health: StoreHealth
    ) -> None:
        self._coalescer = coalescer
        self._store = store
        self._events = events
        self._process = process
        self._health = health
        self.on_overruled: Callable[[SessionDelta, WriteResult], None] = lambda _delta, _answer: None
        """Called where other processes have decided otherwise: the session has ended, or is not the agreed one."""
        self.on_refused: Callable[[SessionDelta, str], SessionDelta | None] = lambda _delta, _owner: None
        """Called with what came under a session of another user, and that one; returns what to write instead."""
        self.dropped: Counter[str] = Counter()
        """Tool calls that will not be in the store, by reason."""
        self.clear()

    def clear(self) -> None:
        """Start again: after a fork."""
        self.frozen: dict[str, Flush] = {}
        self._turn = threading.Lock()
        self._holder: Callable[[], asyncio.AbstractEventLoop | None] = lambda: None
        self._warned: set[str] = set()
        self.has_news = False
        """Sessions have begun or ended since this was looked at."""
        self._moved = False
        self._through = 0
        self._down: StoreDown | None = None

    @property
    def calls(self) -> int:
        """Tool calls that are not known to be in the store."""
        return self._coalescer.calls + sum(flush.delta.call_count for flush in list(self.frozen.values()))

    @property
    def is_idle(self) -> bool:
        return not self.frozen and not len(self._coalescer)

    async def flush(self, *, yielding: bool = False) -> None:
        """Write everything that waits, or as much as the store takes.

        `yielding` leaves the loop to requests for at least half of the time, where an outage has left much to write.
        """
        async with self._exclusive():
            self._count_dropped()
            self._through, self._down = 0, None
            try:
                await self._send_all(yielding=yielding)
                if self._moved:
                    await self._send_all(yielding=yielding)
            finally:
                self._judge()

    async def _send_all(self, *, yielding: bool) -> None:
        self._moved = False
        await self._resend()
        # What comes in meanwhile waits for the next flush: it may well be of the same sessions.
        left = len(self._coalescer)
        while left > 0 and (batch := self._coalescer.take(min(BATCH, left), self.frozen, records=RECORDS)):
            left -= len(batch)
            busy = thread_time()
            flushes = [Flush(delta, self._process.token, self._process.next_sequence()) for delta in batch]
            self.frozen.update((flush.delta.facts.session_id, flush) for flush in flushes)
            if not await self._send(flushes):
                return
            if yielding and left > 0:
                await asyncio.sleep(min(thread_time() - busy, _LONGEST_PAUSE))

    async def _resend(self) -> None:
        frozen = list(self.frozen.values())
        for at in range(0, len(frozen), BATCH):
            batch = frozen[at : at + BATCH]
            if not await self._send(batch):
                # The next time the others come first.
                for flush in batch:
                    self.frozen[flush.delta.facts.session_id] = self.frozen.pop(flush.delta.facts.session_id)
                return

    def _judge(self) -> None:
        """What this flush has shown of the store."""
        health, down = self._health, self._down
        if down is None:
            if not self.frozen:
                health.all_written()
        elif health.divided and self._through:
            health.partly(down)
        elif health.divided:
            health.failed(down)

    def _failed(self, down: StoreDown) -> None:
        self._down = down
        if not self._health.divided:
            self._health.failed(down)  # At once: requests must not wait for it any longer.

    async def _send(self, flushes: list[Flush]) -> bool:
        """Whether the store took any of them."""
        answers: list[WriteResult] = []
        with self._health.timed("flush", self._failed):
            answers = await self._store.apply(flushes)
            for answer in answers:
                if answer.retry:
                    raise StoreDown(answer.retry)
            if self._down is None:
                self._health.succeeded()  # Not only when all is written: after an outage that takes its time.
        self._through += sum(not answer.retry for answer in answers)
        for flush, answer in zip(flushes, answers, strict=False):
            self._answered(flush, answer)
        return any(not answer.retry for answer in answers)

    def _answered(self, flush: Flush, answer: WriteResult) -> None:
        delta, events = flush.delta, self._events
        if answer.expired is not None:
            self.report_end(answer.expired)
        if answer.retry or self.frozen.pop(answer.session_id, None) is not flush:
            return
        if answer.owner is not None:
            self._move(delta, answer.owner)
            return
        with guarded("session events"):
            if (
                answer.agreed_session is not None
                or answer.agreed_successor is not None
                or (answer.after_end and delta.ended is None)
            ):
                self.on_overruled(delta, answer)
        if answer.refused is not None:
            self.drop(delta.call_count, answer.refused)
            return
        with guarded("session events"):
            if answer.created:
                self.has_news = True
                events.started(delta.facts)
            if answer.resumed:
                events.resumed(delta.facts)
        if answer.ended is not None:
            self.report_end(answer.ended)

    def _move(self, delta: SessionDelta, owner: str) -> None:
        """The session is another user's: write it under one of the caller's own, or count it as lost."""
        moved: SessionDelta | None = None
        with guarded("session events"):
            moved = self.on_refused(delta, owner)
        if moved is not None:
            self._moved = True
            self._coalescer.add(moved)
        elif delta.call_count:
            self.drop(delta.call_count, "principal")

    def report_end(self, ended: EndedSession) -> None:
        """Tell of an end."""
        self.has_news = True
        with guarded("session events"):
            self._events.ended(ended)

    def drop(self, calls: int, reason: str) -> None:
        """Count calls that will not be written."""
        if reason not in self._warned:
            self._warned.add(reason)
            logger.warning(
                "otel_mcp: %d tool calls cannot be stored: %s; these and others to come are counted as dropped",
                calls,
                _WHY[reason],
            )
        if calls:
            self.dropped[reason] += calls
            with guarded("session events"):
                self._events.dropped(calls, reason)

    def abandon(self) -> None:
        """Count what is not known to be written as lost: nobody comes after to write it."""
        calls = self.calls
        self.frozen.clear()
        self._coalescer.take(len(self._coalescer))
        self._count_dropped()
        if calls:
            self.drop(calls, "shutdown")

    def _count_dropped(self) -> None:
        if calls := self._coalescer.take_dropped():
            self.drop(calls, "full")

    @asynccontextmanager
    async def _exclusive(self) -> AsyncGenerator[None]:
        """One flush at a time, also where two loops of this process share sessions."""
        loop = asyncio.get_running_loop()
        while not self._turn.acquire(blocking=False):
            holder = self._holder()
            if holder is None or not holder.is_running():
                # Its loop was stopped in the middle of a flush; what it sent is frozen.
                self._turn = threading.Lock()
                continue
            await asyncio.sleep(0.002)
        turn, self._holder = self._turn, weakref.ref(loop)
        try:
            yield
        finally:
            turn.release()


_WHY: Final = {
    "full": "too many sessions wait for the store",
    "foreign": "a key of ours holds a value that is not ours, which is left alone",
    "error": "the store refuses what we send",
    "ended": "their session had ended, and its document is gone",
    "principal": "their session is another user's, and there is no room for one of their own",
    "shutdown": "the process ends before the store is back",
}
