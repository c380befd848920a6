"""What exporters do with what they get: how long the end of the process waits for them, and what they do not take."""

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
    """Have the providers' exporters send what they have, side by side; return those that are done within that time.

    An exporter that hangs keeps to no time limit: it holds up no other one, nor, in a daemon thread, the end.
    """
    done: list[object] = []

    def flush(provider: object) -> None:
        force_flush = getattr(provider, "force_flush", None)
        with guarded("flush"):
            if force_flush is None or force_flush(int(seconds * 1000)) is not False:
                done.append(provider)

    until = time.monotonic() + seconds
    threads = [Thread(target=flush, args=(provider,), name="otel_mcp flush", daemon=True) for provider in providers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(until - time.monotonic(), 0.0))
    return done


def watch_exports(provider: LoggerProvider, numbers: _Numbers, first: int, lost: _Lost) -> list[Watch] | None:
    """Have `lost` called with how many numbered records an exporter does not take, and why; ``None`` = nobody exports.

    Args:
        provider: whose exporters they are.
        numbers: returns the numbers of the records among those of one batch.
        first: the number of the next record. Batches keep the order, so one that is passed over was in no batch.
        lost: gets ``export``, where an exporter has failed; ``full``, where the queue before it had no room; or
            ``shutdown``, where it has them still.
    """
    if type(provider).__module__.startswith("opentelemetry._logs"):
        return None  # What the API has where there is no SDK.
    several = getattr(provider, "_multi_log_record_processor", None)
    processors = getattr(several, "_log_record_processors", None)
    if processors is None:
        return []  # Some other provider, or another SDK: it may export, unseen.
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
                # Where there was another runtime, its records may still wait.
                watch.next, watch.lost = min(watch.next, first), lost
                watches.append(watch)
    return watches if others else None


class Watch:
    """Stands before the `export` of an exporter. From any thread."""

    def __init__(self, exporter: Any, batches: object, numbers: _Numbers) -> None:
        """`batches` is what calls `export`: the SDK's has a queue, the newest first, and a lock while it exports."""
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
        """Numbers of the records in it that have not been accounted for."""
        self.next = maxsize
        """Number of the record that the exporter gets next."""
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
        """Count which records, up to the one numbered `last`, have fallen off the queue, as far as it shows that.

        That may be all of them: other records push them out, and no later one need follow.
        """
        busy, queue, idle = self._busy, self._queue, None
        if queue is None or self.next > last:
            return
        if busy is None:  # Only while nobody exports is no batch on its way from the queue to here.
            idle = getattr(self._batches, "_export_lock", None)
            if idle is None or not idle.acquire(blocking=False):
                return
        try:
            waiting = queue.copy()
            with self._own_lock():
                if self._busy is not busy:
                    return  # It has taken some of them meanwhile.
                oldest = next(iter(self._numbers(reversed(waiting))), last + 1)
                passed, self.next = oldest - self.next, max(oldest, self.next)
        finally:
            if idle is not None:
                idle.release()
        if passed > 0:
            self.lost(passed, "full")

    def give_up(self, last: int) -> None:
        """Count the records up to the one numbered `last` that the exporter has not done with: the process ends."""
        self.look(last)
        with self._own_lock():
            left = len(self._held) + max(last + 1 - self.next, 0)
            self._held.clear()
            self.next = max(last + 1, self.next)
        if left:
            self.lost(left, "shutdown")

    def _own_lock(self) -> Lock:
        if self._process != os.getpid():  # In a forked child numbers begin again.
            self._process, self._lock, self._busy, self._held, self.next = os.getpid(), Lock(), None, [], 1
        return self._lock
