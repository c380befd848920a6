"""Where our own work runs: on the server's event loop, or on one of ours where there is none that lasts.

Under WSGI each request has a loop of its own, which ends with it; under trio there
is none of asyncio at all. Then a thread keeps one: it writes, sweeps and asks.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import sys
import threading
import weakref
from asyncio import AbstractEventLoop
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context
from typing import Any, Final, Protocol, TypeVar

from otel_mcp.guard import guarded

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Awaitable[Any]])

_MANY: Final = 2
"""Loops gone, after which we keep one of our own."""
_STOP: Final = 5.0
"""Seconds that the thread may take to end."""
_LOOK: Final = 0.05
"""Seconds between two looks at the clock."""
_LATE: Final = 0.1
"""Seconds of lateness from which a time limit says nothing of the store."""


class _Own:
    """A loop in a thread, which ends with the process."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="otel_mcp", daemon=True)
        Context().run(self._thread.start)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
            # As servers do: the task that is cancelled here writes what waits.
            tasks = asyncio.all_tasks(self.loop)
            for task in tasks:
                task.cancel()
            if tasks:
                self.loop.run_until_complete(asyncio.wait(tasks))
        finally:
            self.loop.close()

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(_STOP)


_lock = threading.Lock()
_own: _Own | None = None


running: Final = asyncio._get_running_loop  # pyright: ignore[reportPrivateUsage]
"""The loop of asyncio that runs in this thread, if any. (In `__all__` of its module, for such as keep a loop.)"""


def own() -> AbstractEventLoop:
    """Our own loop, started where there is none yet: from now on all our work runs there."""
    global _own
    with _lock:
        if _own is None:
            _own = _Own()
        return _own.loop


def stop() -> None:
    """End our own loop, if there is one; not from itself."""
    global _own
    with _lock:
        ending, _own = _own, None
    if ending is not None:
        ending.stop()


def home() -> AbstractEventLoop | None:
    """Return the loop for our work: our own one if there is any, else the running one."""
    return _own.loop if _own is not None else running()


def elsewhere() -> AbstractEventLoop | None:
    """Our own loop, where the caller does not run on it."""
    return _own.loop if _own is not None and running() is not _own.loop else None


class Turnover:
    """Counts loops that end by themselves, without any end of the server: those of single requests do."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Start counting again: the server has ended in order, and its loop with it."""
        self._last: Callable[[], AbstractEventLoop | None] | None = None
        self._gone = 0

    def is_high(self, loop: AbstractEventLoop) -> bool:
        """Return whether `loop` comes after others that ended by themselves, so that it will not last either."""
        last = self._last() if self._last is not None else loop
        self._gone += last is None or last.is_closed()
        self._last = weakref.ref(loop)
        return self._gone >= _MANY


class Timer:
    """A timer on the loop of another thread."""

    def __init__(self, loop: AbstractEventLoop, delay: float, callback: Callable[[], object]) -> None:
        self._callback: Callable[[], object] | None = callback
        loop.call_soon_threadsafe(loop.call_later, delay, self._due, context=Context())

    def _due(self) -> None:
        if self._callback is not None:
            self._callback()

    def cancel(self) -> None:
        self._callback = None


def call_later(loop: AbstractEventLoop, delay: float, callback: Callable[[], object]) -> asyncio.TimerHandle | Timer:
    """Call on `loop`, from whatever thread, and in no request's context."""
    if running() is loop:
        return Context().run(loop.call_later, delay, callback)
    return Timer(loop, delay, callback)


async def once_more_if_late(
    attempt: Callable[[], Awaitable[T]], timeouts: tuple[type[Exception], ...] = (TimeoutError,)
) -> T:
    """Wait for `attempt`, which may be made twice: again where it ran into a time limit on a late loop.

    A loop that is kept from running has given the answer no chance to be read: that is no silence of the other side.
    """
    loop = asyncio.get_running_loop()
    due, late = loop.time() + _LOOK, 0.0

    def look() -> None:
        nonlocal due, late, timer
        late += max(loop.time() - due, 0.0)
        due = loop.time() + _LOOK
        timer = loop.call_at(due, look)

    timer = loop.call_at(due, look)
    try:
        return await attempt()
    except timeouts:
        timer.cancel()
        look()
        if late < _LATE:
            raise
    finally:
        timer.cancel()
    return await attempt()


async def at_home(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Wait for work that has to be done where our other work is done."""
    loop = elsewhere() or (own() if running() is None else None)
    if loop is None:
        return await work()
    done = asyncio.run_coroutine_threadsafe(work(), loop)
    if running() is not None:
        return await asyncio.wrap_future(done)
    # A caller that awaits without asyncio runs on trio, which has been imported for that.
    wait: Callable[..., Awaitable[T]] = sys.modules["trio"].to_thread.run_sync
    return await wait(done.result)


def as_coroutine_function(function: F) -> F:
    """Mark a function that returns an awaitable, since some callers, such as asgiref, warn of what is not marked.

    It saves a coroutine of our own, which every suspension would pass through.
    """
    if sys.version_info >= (3, 12):
        return inspect.markcoroutinefunction(function)
    function._is_coroutine = asyncio.coroutines._is_coroutine  # pyright: ignore
    return function


def current_task() -> object:
    """Return the task that runs, of asyncio or of trio."""
    if running() is not None:
        return asyncio.current_task()
    trio = sys.modules.get("trio")
    if trio is not None:
        with guarded("task"):
            return trio.lowlevel.current_task()
    return None


def is_cancellation(error: BaseException) -> bool:
    """Return whether a task is cancelled, of asyncio or of trio."""
    kind = type(error)
    return isinstance(error, asyncio.CancelledError) or (kind.__name__ == "Cancelled" and kind.__module__ == "trio")


class _Clears(Protocol):
    def clear(self) -> None: ...


_inherited: weakref.WeakSet[_Clears] = weakref.WeakSet()


def leave_to_parent(holder: _Clears) -> None:
    """Have a forked child forget what is the parent's."""
    _inherited.add(holder)


def _after_fork() -> None:
    """Forget thread and loop after a fork as well: they are the parent's."""
    global _lock, _own
    _lock, _own = threading.Lock(), None
    for holder in list(_inherited):
        with guarded("fork"):
            holder.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
