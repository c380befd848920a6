"""Whether the store is silent at present, judged by the questions that are under way in one loop.

A store that works answers in about a millisecond, so one that says nothing for
several times as long is silent, well before patience with it ends. Then those
who wait are told together and nobody else begins to wait: the start of an
outage costs those about ten milliseconds that have asked within as many.

Time is counted in small steps of the loop and not by the clock alone. A loop
that is late itself (it works, the machine is busy, memory is collected) has
given the answer no chance to be read: that is not the store's silence.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from math import inf
from typing import Any, Final, Protocol

PATIENCE: Final = 0.05
"""Seconds that a request may wait for the store, and after which silence is an outage."""
_LEAST: Final = 0.01
"""Seconds of silence that say nothing, however fast the store has been."""
_TIMES: Final = 2.0
"""Times the slowest of the last answers that an answer may take."""
_LAST: Final = 32
"""Answers that are remembered: on a busy machine some of them are slow."""
_ENOUGH: Final = 8
"""Answers from which on they tell anything: connections have been opened by then."""
_STEP: Final = 0.0025
"""Seconds between two looks at what is under way."""
_AT_MOST: Final = 0.1
"""Seconds without a look after which waiting requests go on: the look itself may fail."""


class Loop(Protocol):
    """What is needed of an event loop."""

    def time(self) -> float: ...
    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> object: ...


class Asker(Protocol):
    """A request, which has one patience for all that it asks."""

    waited: float
    """Seconds that it has waited for the store."""


class Pace:
    """How fast the store has been."""

    def __init__(self) -> None:
        self._last: deque[float] = deque(maxlen=_LAST)

    def note(self, seconds: float) -> None:
        """An answer has taken so long."""
        self._last.append(seconds)

    @property
    def limit(self) -> float:
        """Seconds after which silence is none of the usual; never longer than patience."""
        if len(self._last) < _ENOUGH:
            return PATIENCE
        return min(max(_TIMES * max(self._last), _LEAST), PATIENCE)


class _Waiting:
    """Seconds without an answer, as far as they were the store's."""

    __slots__ = ("is_over", "is_seen", "is_tired", "left", "seconds", "woken")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.left = inf
        """Seconds that are left of the patience of a request which has waited for other answers before."""
        self.is_tired = False
        self.is_over = False
        self.is_seen = False
        self.woken: asyncio.Future[None] | None = None

    def wake(self) -> None:
        """Have waiting requests go on without an answer."""
        if self.woken is not None and not self.woken.done():
            self.woken.set_result(None)


class Pulse:
    """The questions of one loop; `silent` is called when one was not answered within patience.

    It does not hold the loop, which may be thrown away at any time.
    """

    def __init__(self, pace: Pace, silent: Callable[[], None]) -> None:
        self._pace = pace
        self._silent = silent
        self._sent: set[_Waiting] = set()
        self._waiters: set[_Waiting] = set()
        self._looks = False
        self._was_late = False
        self.is_quiet = False
        """Something is under way, and nothing was heard for longer than usual."""

    def sent(self, loop: Loop) -> _Waiting:
        """A question goes out; what is returned is for `heard` or `failed`."""
        return self._add(self._sent, loop)

    def heard(self, question: _Waiting, seconds: float) -> None:
        """It was answered: whatever else is under way, the store is there."""
        self._pace.note(seconds)
        self._sent.discard(question)
        self.is_quiet = False
        for other in self._sent:
            other.seconds = -_STEP  # The step under way has begun before.

    def failed(self, question: _Waiting) -> None:
        """It ended without an answer."""
        self._sent.discard(question)
        self.is_quiet = self.is_quiet and bool(self._sent)

    async def wait(self, loop: Loop, task: asyncio.Task[object], asker: Asker | None = None) -> None:
        """Until the answer is there, patience is over, or the store is known to be silent."""
        waiter = self._add(self._waiters, loop)
        if asker is not None and asker.waited:
            waiter.left = PATIENCE - asker.waited
        try:
            # Quiet may have ended in the very turn of the loop in which it woke this.
            while not (task.done() or waiter.is_over or waiter.is_tired or self.is_quiet):
                waiter.woken = asyncio.get_running_loop().create_future()
                if not await _first(task, waiter.woken) and not waiter.is_seen:
                    break
                waiter.is_seen = False
        finally:
            self._waiters.discard(waiter)
            if asker is not None:
                asker.waited += max(waiter.seconds, 0.0)

    def _add(self, to: set[_Waiting], loop: Loop) -> _Waiting:
        added = _Waiting(-_STEP if self._looks else 0.0)
        to.add(added)
        self._look_later(loop)
        return added

    def _look_later(self, loop: Loop) -> None:
        if not self._looks:
            self._looks = True
            loop.call_later(_STEP, self._look, loop, loop.time() + _STEP)

    def _look(self, loop: Loop, due: float) -> None:
        self._looks = False
        try:
            self._count(loop.time() - due)
        finally:
            if self._sent or self._waiters:
                self._look_later(loop)

    def _count(self, late: float) -> None:
        """Another step has passed, so much late."""
        is_late = late > _STEP
        # After a pause of the loop an answer that has come meanwhile is read first. A loop that is always late goes on
        # counting, but little at a time: an answer takes some turns of it.
        step = 0.0 if is_late and not self._was_late else min(_STEP + late, 2 * _STEP)
        self._was_late = is_late
        limit = self._pace.limit
        is_over = False
        for question in list(self._sent):
            question.seconds += step
            if question.seconds >= PATIENCE:
                is_over = True
                self.failed(question)
            elif question.seconds >= limit:
                self.is_quiet = True
        for waiter in self._waiters:
            waiter.is_seen = True
            waiter.seconds += step
            waiter.is_over = waiter.is_over or is_over or waiter.seconds >= PATIENCE
            # The next look would be too late. That tells nothing of the store.
            waiter.is_tired = waiter.seconds > waiter.left - _STEP
            if self.is_quiet or waiter.is_over or waiter.is_tired:
                waiter.wake()
        if any(waiter.is_over for waiter in self._waiters) or is_over:
            self._silent()


async def _first(task: asyncio.Task[object], woken: asyncio.Future[None]) -> bool:
    """Wait for whichever comes first, or for `_AT_MOST`; returns False where neither has come.

    What ``asyncio.wait`` does for any number, without its sets and its future for
    each call: a request waits meanwhile.
    """
    came = True

    def done(_: object) -> None:
        if not woken.done():
            woken.set_result(None)

    def late() -> None:
        nonlocal came
        if not woken.done():
            came = False
            woken.set_result(None)

    timer = asyncio.get_running_loop().call_later(_AT_MOST, late)
    task.add_done_callback(done)
    try:
        await woken
    finally:
        task.remove_done_callback(done)
        timer.cancel()
    return came
