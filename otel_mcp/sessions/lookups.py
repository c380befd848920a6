"""Short questions to the store on the path of a request: answered within 50 ms, or not waited for any longer.

The same question is asked once at a time (single-flight). A question whose
answer is late goes on by itself: nothing that was sent is cancelled, so no
connection is lost by it. Once a request has waited in vain, none waits until
the background task has found the store fast again (see `StoreHealth.is_slow`).
"""

from __future__ import annotations

import asyncio
import contextvars
import secrets
import time
import weakref
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar, cast

from otel_mcp.guard import guarded, report
from otel_mcp.sessions.health import PATIENCE, SessionEvents, StoreHealth
from otel_mcp.store.base import SessionStore, StoreDown
from otel_mcp.types import Asker

T = TypeVar("T")

_AT_ONCE: Final = 8
"""Questions under way in one loop; the others wait for their turn."""
_STEP: Final = 0.0025
"""Seconds between two looks at the clock while a request waits."""


class Lookups:
    """Asks the store on behalf of requests."""

    def __init__(self, health: StoreHealth) -> None:
        self._health = health
        self._asked: dict[tuple[int, str, str], asyncio.Task[object]] = {}
        self._turns: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = (
            weakref.WeakKeyDictionary()
        )

    async def ask(
        self,
        operation: str,
        key: str,
        question: Callable[[], Awaitable[T]],
        otherwise: T,
        asker: Asker | None = None,
    ) -> T:
        """Return the store's answer, or `otherwise` where it does not come in time.

        Args:
            operation: its name, for metrics.
            key: what is asked about; the same question is asked once at a time.
            question: asks.
            otherwise: the answer from here.
            asker: the request that waits. One that has waited enough for others does not wait, but asks all the same.
        """
        if self._health.is_slow:
            return otherwise
        started = time.perf_counter()
        task = self._task(operation, key, question)
        patience = PATIENCE - (asker.waited if asker is not None else 0.0)
        if patience <= 0.0:
            return otherwise
        waited = await wait(task, patience)
        if asker is not None:
            asker.waited += waited
        outcome, answer = "ok", otherwise
        if not task.done():
            outcome = "timeout"
            self._health.is_slow = self._health.is_slow or waited >= PATIENCE
        elif (error := asyncio.CancelledError() if task.cancelled() else task.exception()) is not None:
            outcome = "denied" if isinstance(error, StoreDown) and error.denied else "error"
            if isinstance(error, StoreDown):
                self._health.failed(error)
        else:
            answer = cast(T, task.result())
        with guarded("session events"):
            self._health.events.store_operation(operation, outcome, time.perf_counter() - started)
        return answer

    async def aclose(self) -> None:
        """Cancel what is under way on the running loop: its connections are about to go."""
        ending = asyncio.get_running_loop()
        tasks = [task for task in self._asked.values() if task.get_loop() is ending]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _task(self, operation: str, key: str, question: Callable[[], Awaitable[object]]) -> asyncio.Task[object]:
        loop = asyncio.get_running_loop()
        name = (id(loop), operation, key)
        task = self._asked.get(name)
        if task is None or task.get_loop() is not loop:
            # Without the context of the request: others may wait for the same answer.
            task = contextvars.Context().run(loop.create_task, self._in_turn(loop, question))
            self._asked[name] = task
            task.add_done_callback(lambda done: self._asked.pop(name, None) and _retrieved(done))
        return task

    async def _in_turn(self, loop: asyncio.AbstractEventLoop, question: Callable[[], Awaitable[object]]) -> object:
        turns = self._turns.get(loop)
        if turns is None:
            turns = self._turns[loop] = asyncio.Semaphore(_AT_ONCE)
        async with turns:
            return await question()


class SharedKey:
    """The key of our hashes, the same on all replicas of a service.

    Configured, else what the first process left in the store, else this process's own until it can be asked.
    """

    name = "hash-key"

    def __init__(self, configured: str | None, store: SessionStore, events: SessionEvents, health: StoreHealth) -> None:
        self._store = store
        self._events = events
        self._health = health
        self._configured = configured is not None
        self._key = configured if configured is not None else secrets.token_hex(32)
        self.is_agreed = self._configured
        """Whether all replicas have it, as far as is known."""

    @property
    def secret(self) -> bytes:
        """The key as it is known at present."""
        return self._key.encode()

    def take_over(self, parent: SharedKey) -> None:
        """Go on with what the process had that this one was forked from."""
        self._key, self.is_agreed = parent._key, parent.is_agreed

    def ask(self) -> Awaitable[str]:
        """Ask the store for the key, and offer ours."""
        return self._store.get_or_set(self.name, self._key, 0)

    def learn(self, agreed: str) -> None:
        """Take over what the replicas have agreed on."""
        self._key, self.is_agreed = agreed, True
        with guarded("session hash key"):
            self._events.hash_key(agreed.encode())

    async def agree(self) -> None:
        """Learn it without the haste of a request; also where it is known, since the store may have lost it."""
        if not self._configured:
            with self._health.operation("agree"):
                self.learn(await self.ask())


async def wait(task: asyncio.Future[Any], patience: float = PATIENCE) -> float:
    """Wait until the answer is there or patience is over; returns the seconds that count as waited.

    A step that took longer counts little more than one: a loop that is late itself (it works, the machine is busy)
    has given the answer no chance to be read.
    """
    loop = asyncio.get_running_loop()
    waited = 0.0
    while waited < patience and not task.done():
        step, began = min(_STEP, patience - waited), loop.time()
        await asyncio.wait((task,), timeout=step)
        waited += min(loop.time() - began, 2 * step)
    return waited


def _retrieved(task: asyncio.Task[object]) -> None:
    """Take notice of an error, also of one that nobody waited for any more."""
    error = None if task.cancelled() else task.exception()
    if error is not None and not isinstance(error, StoreDown):
        report("session lookup", error)
