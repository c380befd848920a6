"""Short questions to the store from the path of a request: answered within 50 ms or not at all, however many it has.

The same question is asked once at a time, and a question that is late goes on
by itself: nothing that was sent is cancelled, so no connection is lost by it.
While the store says nothing (see `pulse`), and after a late answer, questions
are answered locally at once, and now and then one is asked for which nobody
waits: while the store is slow, no request pays for it.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
import weakref
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, TypeVar, cast

from opentelemetry.instrumentation.utils import suppress_instrumentation

from otel_mcp.guard import guarded, report
from otel_mcp.sessions.breaker import Breaker
from otel_mcp.sessions.events import SessionEvents
from otel_mcp.sessions.pulse import PATIENCE, Asker, Pace, Pulse
from otel_mcp.store.base import StoreDown

T = TypeVar("T")

_AT_ONCE: Final = 8
"""Questions under way in one loop; the others wait for their turn."""
_SILENCE: Final = 5.0
"""Seconds at most without a question after late answers."""


class Lookups:
    """Asks the store on behalf of requests."""

    def __init__(self, events: SessionEvents, failed: Callable[[StoreDown], None]) -> None:
        self._events = events
        self._failed = failed
        self.clear()

    def clear(self) -> None:
        """Start again: after a fork."""
        self.breaker = Breaker(longest=_SILENCE)
        self._asked: dict[tuple[int, str, str], asyncio.Task[object]] = {}
        self._turns: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = (
            weakref.WeakKeyDictionary()
        )
        self.pace = Pace()
        """How fast questions have been answered."""
        self._untraced = _untraced()
        self._pulses: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Pulse] = weakref.WeakKeyDictionary()

    @property
    def is_silent(self) -> bool:
        """Whether questions are answered locally at present."""
        return self.breaker.wait > 0.0 or any(
            pulse.is_quiet and loop.is_running() for loop, pulse in list(self._pulses.items())
        )

    def _pulse(self, loop: asyncio.AbstractEventLoop) -> Pulse:
        pulse = self._pulses.get(loop)
        if pulse is None:
            pulse = self._pulses[loop] = Pulse(self.pace, self._late)
        return pulse

    def _late(self) -> None:
        """A question was not answered within patience."""
        if self.breaker.wait <= 0.0:
            self.breaker.failed()

    async def ask(
        self,
        operation: str,
        key: str,
        question: Callable[[], Awaitable[T]],
        otherwise: T,
        *,
        brief: bool = True,
        asker: Asker | None = None,
    ) -> T:
        """The store's answer, or `otherwise` where it does not come in time.

        Args:
            operation: its name, for metrics.
            key: what is asked about; the same question is asked once at a time.
            question: asks.
            otherwise: the answer from here.
            brief: it takes no longer than others; else that it is late tells nothing of the store.
            asker: the request that waits. One that has waited enough for others does not wait, but asks all the same.
        """
        if self.is_silent:
            return otherwise
        started = time.perf_counter()
        loop = asyncio.get_running_loop()
        is_trial = self.breaker.is_open
        name = (id(loop), operation, key)
        task = self._asked.get(name)
        if task is None or task.get_loop() is not loop:
            # Without the context of the request: others may wait for the same answer. What is not brief may tell of
            # sessions, which is not ours to hide. A copy, since two threads cannot be in one context at once.
            context = self._untraced.copy() if brief else contextvars.Context()
            task = context.run(loop.create_task, self._question(loop, question, brief=brief))
            self._asked[name] = task
            task.add_done_callback(lambda done: self._asked.pop(name, None) and _retrieved(done))
        if is_trial:
            self.breaker.failed()  # Until it turns out otherwise.
            contextvars.Context().run(loop.call_later, PATIENCE, self._tried, operation, task, started)
            return otherwise
        if asker is not None and asker.waited >= PATIENCE:
            return otherwise
        await self._pulse(loop).wait(loop, task, asker)
        outcome, answer = self._answer(task, otherwise)
        with guarded("session events"):
            self._events.store_operation(operation, outcome, time.perf_counter() - started)
        return answer

    async def aclose(self) -> None:
        """Ask nothing more of what is under way on the running loop: its connections are about to go."""
        ending = asyncio.get_running_loop()
        tasks = [task for task in self._asked.values() if task.get_loop() is ending]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _tried(self, operation: str, task: asyncio.Task[object], started: float, *, again: bool = True) -> None:
        """Whether the question that nobody waited for was answered in time."""
        taken = time.perf_counter() - started
        if not task.done() and again and taken > 2 * PATIENCE:
            # The loop was late: the answer has had no chance to be read.
            retry = partial(self._tried, operation, task, started, again=False)
            task.get_loop().call_later(PATIENCE, retry)
            return
        with guarded("session lookup"):
            if not task.done():
                self._late()
            outcome, _ = self._answer(task, None)
            self._events.store_operation(operation, outcome, taken)

    def _answer(self, task: asyncio.Task[object], otherwise: T) -> tuple[str, T]:
        if not task.done():
            return "timeout", otherwise
        error = None if task.cancelled() else task.exception()
        if error is None and not task.cancelled():
            self.breaker.succeeded()
            return "ok", cast(T, task.result())
        if isinstance(error, StoreDown):
            self._failed(error)
            return "denied" if error.denied else "error", otherwise
        return "error", otherwise

    async def _question(
        self, loop: asyncio.AbstractEventLoop, question: Callable[[], Awaitable[object]], *, brief: bool
    ) -> object:
        turns = self._turns.get(loop)
        if turns is None:
            turns = self._turns[loop] = asyncio.Semaphore(_AT_ONCE)
        async with turns:
            if not brief:
                return await question()
            pulse = self._pulse(loop)
            sent, started = pulse.sent(loop), loop.time()
            try:
                answer = await question()
            except BaseException:
                pulse.failed(sent)
                raise
            pulse.heard(sent, loop.time() - started)
            return answer


def _untraced() -> contextvars.Context:
    """A context in which nobody traces what a client of the store does."""

    def copied() -> contextvars.Context:
        with suppress_instrumentation():
            return contextvars.copy_context()

    return contextvars.Context().run(copied)


def _retrieved(task: asyncio.Task[object]) -> None:
    """Take notice of an error, also of one that nobody waited for any more."""
    error = None if task.cancelled() else task.exception()
    if error is not None and not isinstance(error, StoreDown):
        report("session lookup", error)
