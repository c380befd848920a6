"""From finished calls to measurements, session deltas and observers. The only consumer of the queue."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Final

from otel_mcp import loops
from otel_mcp.guard import guarded, quietly
from otel_mcp.hashing import KeyedHashes
from otel_mcp.model.call import Call
from otel_mcp.model.delta import SessionDelta
from otel_mcp.observers.queue import Observers
from otel_mcp.settings import Settings
from otel_mcp.telemetry.deltas import Deltas
from otel_mcp.telemetry.metrics import Batch, Metrics
from otel_mcp.telemetry.spans import Spans

_GUARD: Final = guarded("record")
_MAX_QUEUE: Final = 10_000
_MAX_WAITING: Final = 1000
"""Calls that wait for turns of the loop; more are drained where they end."""
_DRAIN_SHARE: Final = 0.25
"""Part of the flush interval after which the queue is drained: the rest is the store's."""
_SLICE: Final = 4
"""Calls that are drained in one turn of the loop: a fraction of a millisecond."""
_MEANWHILE: Final = 0.01
"""Seconds until the loop looks again for what another thread is recording."""


class Recorder:
    """The queue of finished calls, and what becomes of them."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        spans: Spans,
        keys: KeyedHashes,
        observers: Observers,
        submit: Callable[[SessionDelta], None],
    ) -> None:
        self._metrics = metrics
        self._spans = spans
        self._observers = observers
        self._submit = submit
        self._batch = settings.flush_calls
        self._delay = settings.flush_interval * _DRAIN_SHARE
        self._deltas = Deltas(settings, keys, observers)
        # Waiting calls hold their content, where it is kept: then fewer may wait.
        self._most = settings.flush_calls if settings.store_content else _MAX_WAITING
        self.clear()
        _instances.add(self)

    def clear(self) -> None:
        """Start again: after a fork the calls are the parent's, and a thread of its may have held the lock."""
        self._timer_loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | loops.Timer | None = None
        self._hurries = False
        """That timer is due at once."""
        self._queue: deque[Call] = deque(maxlen=_MAX_QUEUE)
        self._lock = threading.Lock()
        self._wanted = False
        """The recording thread goes on until nothing waits."""
        self._open = 0
        """Calls of the batch that is being recorded; with what is known of it, only touched under the lock."""
        self._measured = Batch()
        self._metrics.forget()
        self._deltas.take()

    def add(self, call: Call) -> None:
        """Take a finished call. A full batch is drained from the next turn of the loop on, else a timer drains."""
        self._queue.append(call)
        if len(self._queue) >= self._most:
            # Very many have ended within one turn, as where a process stops: none may fall off the end.
            self.drain()
            if len(self._queue) >= _MAX_QUEUE:
                self._lose_oldest()
        elif (
            self._timer is None
            or self._timer_loop is None
            or not self._timer_loop.is_running()
            or (len(self._queue) >= self._batch and not self._hurries)
        ):
            self._schedule(0.0 if len(self._queue) >= self._batch else self._delay)

    def refused(self, status: int, client: str | None) -> None:
        """Count a request that HTTP answered with a refusal, of the client with this name."""
        with _GUARD:
            self._metrics.failures.refuse(status, client)

    def _lose_oldest(self) -> None:
        """Another thread has been recording for very long, and there is no room left."""
        with _GUARD:
            if self._queue.popleft().method == "tools/call":
                self._metrics.store_dropped(1, "full")

    def _schedule(self, delay: float) -> None:
        if (loop := loops.home()) is None:
            if len(self._queue) >= self._batch:
                self.drain()
            return  # The process is ending: the one that ends it drains.
        if self._timer is not None and self._timer_loop is loop:
            self._timer.cancel()  # It would come later.
        self._timer_loop, self._hurries = loop, delay < self._delay
        self._timer = loops.call_later(loop, delay, self._drain_quietly)

    def _drain_quietly(self) -> None:
        quietly("record", self._on_timer)

    def _on_timer(self) -> None:
        """Drain a part, so that requests under way do not wait for all of it; the rest in the turns that follow."""
        self._timer, self._hurries = None, False
        drained = self._drain(max(_SLICE, len(self._queue) // 8))
        self._observers.ensure_running()
        if self._queue:
            self._schedule(0.0 if drained else _MEANWHILE)

    def drain(self) -> None:
        """Record everything that has finished. From any thread; a second caller leaves it to the first."""
        if self._queue or self._open:
            self._wanted = True
            self._drain(0)
        with _GUARD:
            self._metrics.settle()
            self._metrics.failures.settle()

    def _drain(self, most: int) -> bool:
        """Record so many calls, oldest first, or all where that is wanted. Returns whether this caller did it."""
        drained = False
        # Once more where it was wanted while the lock was held, but after the last look.
        while not drained or (self._wanted and (self._queue or self._open)):
            if not self._lock.acquire(blocking=False):
                break
            try:
                while self._queue and (most > 0 or self._wanted):
                    most -= 1
                    self._record(self._queue.popleft())
                    if self._open >= self._batch:
                        self._close()
                if not self._queue:
                    self._wanted = False
                    self._close()
            finally:
                self._lock.release()
            drained = True
        return drained

    def _record(self, call: Call) -> None:
        self._open += 1
        if call.outcome is not None and call.outcome.failed:
            with _GUARD:
                self._metrics.failures.classify(call, call.outcome)
        else:
            call.failure = None  # Whatever a seam has seen, it was mended.
        if call.open_span is not None or not call.dispatched:
            self._end_span(call)
        self._metrics.record(call, self._measured)
        self._deltas.add(call)

    def _close(self) -> None:
        """A batch is complete: one delta for each session that its calls belong to."""
        measured = self._measured
        self._open, self._measured = 0, Batch()
        with _GUARD:
            self._metrics.close(measured)
        for delta in self._deltas.take():
            self._submit(delta)

    def _end_span(self, call: Call) -> None:
        with _GUARD:
            if call.span_context is None and not call.dispatched:
                self._spans.write(call)
            elif call.open_span is not None:
                self._spans.close(call, call.open_span)


_instances: weakref.WeakSet[Recorder] = weakref.WeakSet()


def _after_fork() -> None:
    for recorder in list(_instances):
        recorder.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
