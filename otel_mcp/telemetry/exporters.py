"""Flush exporters at the end of the process, and count the records that they lose."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from sys import maxsize
from threading import Lock, Thread
from typing import Any

from opentelemetry._logs import LoggerProvider

from otel_mcp.guard import guarded
from otel_mcp.telemetry.logs import SessionLogProcessor

_Numbers = Callable[[Iterable[Any]], Iterable[int]]
_Lost = Callable[[int, str], None]


def flushed(seconds: float, *providers: object) -> list[object]:
    """Flush the providers in parallel; return those that finish within `seconds`.

    Each runs in a daemon thread, since an exporter that hangs may ignore its time limit.
    """
    done: list[object] = []

    def flush(provider: object) -> None:
        force_flush = getattr(provider, "force_flush", None)
        with guarded("flush"):
            if force_flush is None or force_flush(int(seconds * 1000)) is not False:
                done.append(provider)

    deadline = time.monotonic() + seconds
    threads = [Thread(target=flush, args=(provider,), name="otel_mcp flush", daemon=True) for provider in providers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(deadline - time.monotonic(), 0.0))
    return done


def watch_exports(provider: LoggerProvider, numbers: _Numbers, first: int, lost: _Lost) -> list[Watch] | None:
    """Call `lost` with the number of numbered records that an exporter loses, and the reason.

    Args:
        provider: the provider of the exporters.
        numbers: returns the numbers of our records in a batch.
        first: the number of the next record. Batches are in order, so a number that is skipped was in no batch.
        lost: gets ``export``: an exporter failed; ``full``: its queue was full; or ``shutdown``: the records were
            still waiting when the process ended.

    Returns:
        The watched exporters, empty if they cannot be watched; ``None`` = there is no exporter.
    """
    if type(provider).__module__.startswith("opentelemetry._logs"):
        return None  # The API's own provider: there is no SDK.
    several = getattr(provider, "_multi_log_record_processor", None)
    processors = getattr(several, "_log_record_processors", None)
    if processors is None:
        return []  # Another provider or SDK, which may export.
    watches: list[Watch] = []
    others = [processor for processor in processors if not isinstance(processor, SessionLogProcessor)]
    for processor in others:
        batches: Any = getattr(processor, "_batch_processor", processor)
        exporter: Any = getattr(batches, "_exporter", None)
        if callable(getattr(exporter, "export", None)):
            with guarded("audit"):
                if not isinstance(exporter.export, Watch):
                    exporter.export = Watch(exporter, batches, numbers)
                watch: Watch = exporter.export
                # Records of an earlier runtime may still be waiting.
                watch.next, watch.lost = min(watch.next, first), lost
                watches.append(watch)
    return watches if others else None


class Watch:
    """Replaces the `export` of an exporter, to account for numbered records. Thread-safe."""

    def __init__(self, exporter: Any, batches: object, numbers: _Numbers) -> None:
        """Wrap `export`; `batches` calls it, and in the SDK has a queue, newest first, and a lock while it exports."""
        self._export = exporter.export
        self._batches = batches
        queue: object = getattr(batches, "_queue", None)
        self._queue: deque[Any] | None = queue if isinstance(queue, deque) else None
        self._numbers = numbers
        self._process = os.getpid()
        self._lock = Lock()
        self._busy: object = None
        """The batch that is being exported."""
        self._held: list[int] = []
        """Numbers of the records in that batch that are not accounted for."""
        self.next = maxsize
        """The next number that the exporter should get."""
        self.lost: _Lost = lambda count, reason: None

    def __call__(self, batch: Any) -> Any:
        held: list[int] = []
        taken = False
        with guarded("audit"):
            held = self._begin(batch)
        try:
            result = self._export(batch)
            taken = getattr(result, "name", "SUCCESS") == "SUCCESS"
            return result
        finally:
            with guarded("audit"):
                self._busy = None
                with self._own_lock():
                    failed = 0 if taken else len(held)
                    held.clear()
                if failed:
                    self.lost(failed, "export")

    def _begin(self, batch: Any) -> list[int]:
        passed = 0
        with self._own_lock():
            self._busy = batch
            held = [number for number in self._numbers(batch) if number >= self.next]
            if held:
                passed = held[-1] + 1 - self.next - len(held)
                self._held, self.next = held, held[-1] + 1
        if passed > 0:
            self.lost(passed, "full")
        return held

    def look(self, last: int) -> None:
        """Count the records up to `last` that other records have pushed out of the queue.

        Otherwise they would be counted only when a later record of ours is exported.
        """
        busy, queue, idle = self._busy, self._queue, None
        if queue is None or self.next > last:
            return
        if busy is None:  # Hold the lock, so that no batch is on its way from the queue to here.
            idle = getattr(self._batches, "_export_lock", None)
            if idle is None or not idle.acquire(blocking=False):
                return
        try:
            waiting = queue.copy()
            with self._own_lock():
                if self._busy is not busy:
                    return  # A batch was taken meanwhile.
                oldest = next(iter(self._numbers(reversed(waiting))), last + 1)
                passed, self.next = oldest - self.next, max(oldest, self.next)
        finally:
            if idle is not None:
                idle.release()
        if passed > 0:
            self.lost(passed, "full")

    def give_up(self, last: int) -> None:
        """Count the records up to `last` that are not exported when the process ends."""
        self.look(last)
        with self._own_lock():
            left = len(self._held) + max(last + 1 - self.next, 0)
            self._held.clear()
            self.next = max(last + 1, self.next)
        if left:
            self.lost(left, "shutdown")

    def _own_lock(self) -> Lock:
        if self._process != os.getpid():  # A forked child begins a new sequence.
            self._process, self._lock, self._busy, self._held, self.next = os.getpid(), Lock(), None, [], 1
        return self._lock
