"""Choose the event loop for our background work: the server's, or our own in a thread if the server has no lasting one.

Under WSGI, the loop of a request ends with the request. Under trio, there is no asyncio loop.
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
"""Closed loops of the server, after which we start our own."""
_STOP: Final = 5.0
"""Seconds to wait for the end of the thread."""
_LOOK: Final = 0.05
"""Seconds between two checks whether the loop is late."""
_LATE: Final = 0.1
"""Seconds: if the loop was this late, a timeout is not the store's fault."""


class _Own:
    """A loop in a daemon thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="otel_mcp", daemon=True)
        Context().run(self._thread.start)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
            # Cancel tasks as servers do: the worker then writes what is pending.
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
"""Returns the running asyncio loop of this thread or ``None``. Exported by `asyncio.events` for event loops."""


def own() -> AbstractEventLoop:
    """Return our own loop, started if needed; from now on all our work runs there."""
    global _own
    with _lock:
        if _own is None:
            _own = _Own()
        return _own.loop


def stop() -> None:
    """Stop our own loop, if there is one. Must not run on that loop."""
    global _own
    with _lock:
        ending, _own = _own, None
    if ending is not None:
        ending.stop()


def home() -> AbstractEventLoop | None:
    """Return the loop for our work: our own, or else the running one; ``None`` = neither."""
    return _own.loop if _own is not None else running()


def elsewhere() -> AbstractEventLoop | None:
    """Return our own loop unless the caller runs on it."""
    return _own.loop if _own is not None and running() is not _own.loop else None


class Turnover:
    """Counts loops that closed while the server went on, as the loops of single requests do."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Reset the count after a normal shutdown of the server."""
        self._last: Callable[[], AbstractEventLoop | None] | None = None
        self._gone = 0

    def is_high(self, loop: AbstractEventLoop) -> bool:
        """Return whether earlier loops closed so often that `loop` is unlikely to last."""
        last = self._last() if self._last is not None else loop
        self._gone += last is None or last.is_closed()
        self._last = weakref.ref(loop)
        return self._gone >= _MANY


class Timer:
    """A timer on a loop of another thread."""

    def __init__(self, loop: AbstractEventLoop, delay: float, callback: Callable[[], object]) -> None:
        self._callback: Callable[[], object] | None = callback
        loop.call_soon_threadsafe(loop.call_later, delay, self._due, context=Context())

    def _due(self) -> None:
        if self._callback is not None:
            self._callback()

    def cancel(self) -> None:
        self._callback = None


def call_later(loop: AbstractEventLoop, delay: float, callback: Callable[[], object]) -> asyncio.TimerHandle | Timer:
    """Call `callback` on `loop` after `delay` seconds, in an empty context. Thread-safe."""
    if running() is loop:
        return Context().run(loop.call_later, delay, callback)
    return Timer(loop, delay, callback)


async def once_more_if_late(
    attempt: Callable[[], Awaitable[T]], timeouts: tuple[type[Exception], ...] = (TimeoutError,)
) -> T:
    """Await `attempt`, and repeat it once if it timed out while the loop was blocked.

    A blocked loop could not read the answer, so the timeout does not show that the other side is silent.
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
    """Run `work` on the loop of our other work, and wait for it."""
    loop = elsewhere() or (own() if running() is None else None)
    if loop is None:
        return await work()
    done = asyncio.run_coroutine_threadsafe(work(), loop)
    if running() is not None:
        return await asyncio.wrap_future(done)
    # A caller outside asyncio runs on trio, so trio is imported.
    wait: Callable[..., Awaitable[T]] = sys.modules["trio"].to_thread.run_sync
    return await wait(done.result)


def as_coroutine_function(function: F) -> F:
    """Mark a function that returns an awaitable, because asgiref and others warn about unmarked ones.

    Compared with a coroutine function, it saves a coroutine that every suspension would pass through.
    """
    if sys.version_info >= (3, 12):
        return inspect.markcoroutinefunction(function)
    function._is_coroutine = asyncio.coroutines._is_coroutine  # pyright: ignore
    return function


def current_task() -> object:
    """Return the current task of asyncio or trio."""
    if running() is not None:
        return asyncio.current_task()
    trio = sys.modules.get("trio")
    if trio is not None:
        with guarded("task"):
            return trio.lowlevel.current_task()
    return None


def is_cancellation(error: BaseException) -> bool:
    """Return whether an exception is a cancellation of asyncio or trio."""
    kind = type(error)
    return isinstance(error, asyncio.CancelledError) or (kind.__name__ == "Cancelled" and kind.__module__ == "trio")


class _Clears(Protocol):
    def clear(self) -> None: ...


_inherited: weakref.WeakSet[_Clears] = weakref.WeakSet()


def leave_to_parent(holder: _Clears) -> None:
    """Call `clear` of `holder` in a forked child, since its content belongs to the parent."""
    _inherited.add(holder)


def _after_fork() -> None:
    """Forget thread and loop, which exist only in the parent, and clear all holders."""
    global _lock, _own
    _lock, _own = threading.Lock(), None
    for holder in list(_inherited):
        with guarded("fork"):
            holder.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
