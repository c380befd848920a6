"""The one task that writes and sweeps while the host serves.

It belongs to the running loop and never outlives it: a cancelled task (that
is how servers end their loops) writes what waits, closes the client and goes.
The loop holds the task, and we hold neither, so that a loop which is thrown
away takes the task with it.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
import sys
import time
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

from otel_mcp.guard import guarded

FINAL: Final = 1.5
"""Seconds for the last flush of a loop that ends."""


def _nothing() -> None:
    return None


class Background:
    """Wakes for work, at the interval of flushes, and to sweep.

    `flush` writes what waits and tells in how many seconds it wants to be
    called again (`None`: when something new waits), `flush_last` writes what
    waits when the loop ends, `sweep` looks for ends,
    `close` lets go of the loop's client.
    """

    def __init__(
        self,
        *,
        interval: float,
        sweep_interval: float,
        flush: Callable[[], Awaitable[float | None]],
        flush_last: Callable[[], Awaitable[None]],
        sweep: Callable[[], Awaitable[None]],
        close: Callable[[], Awaitable[None]],
    ) -> None:
        self._interval = interval
        self._sweep_interval = sweep_interval
        self._flush = flush
        self._flush_last = flush_last
        self._sweep = sweep
        self._close = close
        self.clear()

    def clear(self) -> None:
        """Forget the task, which ends at its next turn (or lives in the parent, after a fork)."""
        self.loop: Callable[[], asyncio.AbstractEventLoop | None] = _nothing
        self._event: Callable[[], asyncio.Event | None] = _nothing
        self.woken = False
        """Something waits, and the task knows."""
        self.asked = False
        """A flush was asked for without waiting for the interval."""

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run on `loop`, unless the task lives on another one that runs."""
        current = self.loop()
        if current is not None and not current.is_closed() and current.is_running():
            return
        event = asyncio.Event()
        self.clear()
        self.loop, self._event = weakref.ref(loop), weakref.ref(event)
        # Without the context of the request that happens to be the first.
        work = self._run(event)
        try:
            contextvars.Context().run(_task, loop, work)
        except BaseException:
            work.close()
            self.clear()  # Nothing runs there: the next request tries again.
            raise

    def stop(self) -> None:
        """Have the task end at once; the one that stops it writes what waits."""
        self.notify(now=False)
        self.clear()

    def notify(self, *, now: bool) -> None:
        """Tell the task that something waits; from any thread."""
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
        try:
            with guarded("session background"):
                await self._serve(event)
        except asyncio.CancelledError:
            if self._event() is event:
                await self._finish()
            raise
        finally:
            if self._event() is event:
                self.clear()

    async def _serve(self, event: asyncio.Event) -> None:
        now = time.monotonic()
        flush_at: float | None = now + self._interval
        sweep_at = now + self._sweep_interval * random.uniform(0.1, 0.5)
        while self._event() is event:
            if self.woken and flush_at is None:
                flush_at = now + self._interval
            if self.asked or (flush_at is not None and now >= flush_at):
                self.woken = self.asked = False
                flush_at = await self._flushed()
            if now >= sweep_at:
                with guarded("session sweep"):
                    await self._sweep()
                sweep_at = time.monotonic() + self._sweep_interval * random.uniform(0.8, 1.2)
            _stop_if_cancelled()
            if not self.asked:
                await _sleep(event, sweep_at if flush_at is None else min(flush_at, sweep_at))
            now = time.monotonic()

    async def _flushed(self) -> float | None:
        again: float | None = self._interval
        with guarded("session flush"):
            again = await self._flush()
        return None if again is None else time.monotonic() + again

    async def _finish(self) -> None:
        with guarded("last session flush"):
            await asyncio.wait_for(self._flush_last(), FINAL)
        with guarded("session store close"):
            await asyncio.wait_for(self._close(), FINAL)


class _Task(asyncio.Task[None]):
    """Counts its cancellations, as every task does from Python 3.11 on."""

    _cancelled = 0

    def cancel(self, msg: Any = None) -> bool:
        caller = sys._getframe(1).f_globals.get("__name__")  # pyright: ignore[reportPrivateUsage]
        # Time limits of redis-py are cancellations there, which it turns into errors itself.
        if caller != "async_timeout":
            self._cancelled += 1
        return super().cancel(msg)

    def cancelling(self) -> int:
        return self._cancelled


def _task(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, None]) -> object:
    return loop.create_task(work) if sys.version_info >= (3, 11) else _Task(work, loop=loop)


def _stop_if_cancelled() -> None:
    """Raise a cancellation that an awaited call swallowed: whatever ends the loop waits for this task for ever."""
    task: Any = asyncio.current_task()
    if task.cancelling():
        raise asyncio.CancelledError


async def _sleep(event: asyncio.Event, until: float) -> None:
    # Not `wait_for`: before Python 3.12 it swallows a cancellation that comes together with the event.
    timer = asyncio.get_running_loop().call_later(max(until - time.monotonic(), 0.0), event.set)
    try:
        await event.wait()
    finally:
        timer.cancel()
    event.clear()
