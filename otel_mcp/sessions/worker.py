"""Runs the background task that flushes and sweeps, and the last flush when a loop or the process ends.

The task belongs to the running loop and never outlives it: when it is cancelled (this
is how servers end their loops), it flushes once more and closes the client.
We hold only weak references to the loop and the task, so a discarded loop is freed
together with its task.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
import socket
import time
import weakref
from collections.abc import Callable
from math import inf
from typing import Any, Final

from otel_mcp import loops
from otel_mcp.guard import guarded, report
from otel_mcp.sessions.documents import SessionDocuments
from otel_mcp.sessions.flusher import Flusher
from otel_mcp.sessions.health import PATIENCE, SessionEvents, StoreHealth
from otel_mcp.sessions.lookups import Lookups, SharedKey, wait
from otel_mcp.sessions.tables import leave, meet
from otel_mcp.settings import Settings
from otel_mcp.store.base import SessionStore, StoreDown

_FINAL: Final = 1.5
"""Maximum seconds of the last flush of a loop."""
_EXIT: Final = 2.0
"""Maximum seconds that the exit of the process waits for the store."""
_PROBE: Final = "probe"
_PROBE_KEPT: Final = 0.001
"""Seconds: it expires before the next probe, so that each probe writes."""


def _nothing() -> None:
    return None


class Worker:
    """Owns the background task: it flushes while there is work, and sweeps periodically."""

    def __init__(
        self,
        settings: Settings,
        store: SessionStore,
        events: SessionEvents,
        health: StoreHealth,
        flusher: Flusher,
        documents: SessionDocuments,
        lookups: Lookups,
        shared_key: SharedKey,
    ) -> None:
        self._interval = settings.flush_interval
        self._sweep_interval = settings.sweep_interval
        self._store = store
        self._events = events
        self._health = health
        self._flusher = flusher
        self._documents = documents
        self._lookups = lookups
        self._shared_key = shared_key
        self._recoveries = 0
        self._listed = False
        """Whether a catalogue has to be written to the store."""
        self.clear()

    def clear(self) -> None:
        """Drop the references to the task. It ends when it wakes next; after a fork, it runs in the parent."""
        self.loop: Callable[[], asyncio.AbstractEventLoop | None] = _nothing
        self._event: Callable[[], asyncio.Event | None] = _nothing
        self._task: Callable[[], asyncio.Task[None] | None] = _nothing
        self.woken = False
        """Whether the task has been notified of work."""
        self.asked = False
        """Whether to flush now, without waiting for the interval."""

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the task on `loop`, unless it already runs on a running loop."""
        current = self.loop()
        if current is not None and not current.is_closed() and current.is_running():
            return
        event = asyncio.Event()
        self.clear()
        self.loop, self._event = weakref.ref(loop), weakref.ref(event)
        work = self._run(event)
        try:
            # In an empty context, not in that of the request that came first.
            task = contextvars.Context().run(loop.create_task, work)
            self._task = weakref.ref(task)
        except BaseException:
            work.close()
            self.clear()  # The next request tries again.
            raise

    def stop(self) -> None:
        """Make the task end without its last flush, which is left to the caller."""
        self.notify()
        self.clear()

    def notify(self, *, now: bool = False) -> None:
        """Wake the task because there is work; `now` skips the flush interval. Thread-safe."""
        loop, event = self.loop(), self._event()
        if loop is None or event is None:
            return
        self.woken = True
        self.asked = self.asked or now
        try:
            loop.call_soon_threadsafe(event.set)
        except RuntimeError:
            self.clear()

    async def _run(self, event: asyncio.Event) -> None:
        task: Any = asyncio.current_task()
        now = time.monotonic()
        flush_at: float | None = now + self._interval
        sweep_at = now + self._sweep_interval * random.uniform(0.1, 0.5)
        try:
            while self._event() is event:
                if self.asked or (flush_at is not None and now >= flush_at):
                    self.woken = self.asked = False
                    again: float | None = self._interval
                    try:
                        again = await self.turn()
                    except Exception as error:
                        report("session flush", error)
                    flush_at = None if again is None else time.monotonic() + again
                if now >= sweep_at:
                    with guarded("session sweep"):
                        await self._sweep()
                    sweep_at = time.monotonic() + self._sweep_interval * random.uniform(0.8, 1.2)
                if task.cancelling():
                    # An awaited call has swallowed the cancellation; the code that ends the loop would wait for ever.
                    raise asyncio.CancelledError
                now = time.monotonic()
                if flush_at is None and (self.woken or self._health.is_away or self._flusher.shows_calls):
                    flush_at = now + self._interval
                if not self.asked:
                    # Not `wait_for`: before Python 3.12 it swallows a cancellation that comes together with the event.
                    due = sweep_at if flush_at is None else min(flush_at, sweep_at)
                    timer = asyncio.get_running_loop().call_later(max(due - now, 0.0), event.set)
                    try:
                        await event.wait()
                    finally:
                        timer.cancel()
                    event.clear()
                    now = time.monotonic()
        except asyncio.CancelledError:
            if self._event() is event:
                await self._finish(_FINAL)
            raise
        finally:
            if self._event() is event:
                self.clear()

    async def turn(self) -> float | None:
        """Do all pending work once. Return the seconds until the next turn, or ``None`` if nothing is left."""
        health, flusher, key, interruptions = self._health, self._flusher, self._shared_key, self._flusher.interruptions
        if health.is_away and health.wait:
            return health.wait
        await flusher.flush(yielding=True)
        if (health.is_away and not health.wait) or health.is_partial or health.is_slow:
            await self._probe()
        if self._documents.unwritten:
            await self._documents.catch_up()
        if not health.is_away and (not key.is_agreed or self._recoveries != health.recoveries):
            # After an outage the store may be empty: new replicas need the key.
            self._recoveries = health.recoveries
            await key.agree()
        if interruptions.due <= time.monotonic():
            await interruptions.ask()
        if self._listed:
            await self._meet()
        if flusher.tasks.due and key.is_agreed:
            await flusher.tasks.follow()
        if flusher.has_news:
            flusher.has_news = False
            await flusher.count()
        if flusher.shows_calls:
            await flusher.report_in_flight()
        if time.monotonic() >= flusher.findings.next_at:
            await flusher.findings.look()
        if health.is_away:
            return max(health.wait, 0.01)
        waits = flusher.frozen or flusher.buffer.pending or flusher.endings.held or flusher.findings.due
        waits = waits or interruptions.due < inf or self._listed or health.is_partial or health.is_slow
        waits = waits or flusher.shows_calls or flusher.tasks.due
        return self._interval if waits else None

    def listed(self) -> None:
        """Make the task write a newly listed catalogue to the store. Thread-safe."""
        self._listed = True
        self.notify()

    async def _meet(self) -> None:
        """Write listed catalogues to the store. The first process to write a new one reports the change."""
        if not self._shared_key.is_agreed or self._health.is_away:
            return
        self._listed = False
        for digest, summary in self._events.listed():
            with self._health.operation("meet") as use:
                self._events.met(digest, summary, await meet(self._store, digest, summary))
            self._listed = self._listed or use.down is not None

    async def _probe(self) -> None:
        """Test whether the store works, since a flush with nothing to write does not show it."""
        health = self._health
        with health.operation("probe", proof=True):
            # A write: a server that is full or read-only still answers reads.
            probe = asyncio.ensure_future(self._store.get_or_set(_PROBE, _PROBE, _PROBE_KEPT))
            try:
                health.is_slow = await wait(probe) >= PATIENCE
                await probe
            finally:
                probe.cancel()
            self._flusher.has_news = self._flusher.has_news or health.is_away
            health.answered()

    async def _sweep(self) -> None:
        await self._flusher.sweep()
        await self._flusher.report_in_flight()
        await self._flusher.tasks.count()
        if not self._health.is_away:
            # The store may have lost the key (emptied, evicted); then the next new process would make another one.
            await self._shared_key.agree()

    async def aclose(self, timeout: float) -> None:
        """Flush within `timeout` seconds, and stop."""
        task, until = self._task(), time.monotonic() + timeout
        self.stop()
        if task is not None and task is not asyncio.current_task() and task.get_loop() is asyncio.get_running_loop():
            # Let the task finish its operation: closed connections would look like an outage to it.
            await asyncio.wait((task,), timeout=timeout / 2)
        # At least half of the time, even if the loop was blocked meanwhile.
        await self._finish(max(until - time.monotonic(), timeout / 2))

    async def _finish(self, timeout: float) -> None:
        with guarded("last session flush"):
            try:
                await loops.once_more_if_late(lambda: asyncio.wait_for(self._write_last(), timeout))
            except TimeoutError:
                self._health.failed(StoreDown("TimeoutError"))
        with guarded("session store close"):
            await asyncio.wait_for(self._close(), timeout)

    async def _write_last(self) -> None:
        with guarded("session end"):
            self._events.closing()
        self._flusher.buffer.release()
        await self._flusher.flush()
        await self._flusher.interruptions.ask(everything=True)
        await self._flusher.flush()
        if self._listed:
            await self._meet()
        if self._flusher.tasks.due and self._shared_key.is_agreed:
            await self._flusher.tasks.follow(inf)
        await self._flusher.endings.conclude(everything=True)
        if self._flusher.callers.waiting:
            await self._flusher.callers.count()
        await self._documents.catch_up()
        if not self._health.is_away:
            with self._health.operation("leave"):
                await leave(self._store, self._flusher.producer)

    async def _close(self) -> None:
        await self._lookups.aclose()
        await self._store.aclose()

    def write_at_exit(self) -> None:
        """Flush within two seconds after the last loop has stopped; count the rest as dropped."""
        if loops.running() is not None:
            self.notify(now=True)
            return
        self._flusher.buffer.release()
        try:
            flusher = self._flusher
            waits = flusher.frozen or flusher.buffer.pending or self._documents.unwritten or flusher.tasks.due
            if waits or flusher.endings.held or flusher.interruptions.due < inf or flusher.callers.waiting:
                loop = _ExitLoop()
                try:
                    loop.run_until_complete(asyncio.wait_for(self.aclose(_EXIT / 2), _EXIT))
                finally:
                    loop.close()
        finally:
            self._flusher.abandon()


class _ExitLoop(asyncio.SelectorEventLoop):
    """Resolves host names without the thread pool, which is shut down before exit handlers run."""

    async def getaddrinfo(self, *args: Any, **options: Any) -> Any:
        """Call the resolver in this thread."""
        return socket.getaddrinfo(*args, **options)
