"""Asks the store on the path of a request, which waits for at most 50 ms.

Equal lookups share one answer (single-flight). A lookup that times out is not
cancelled, since that would cost its connection: it continues in the background.
After a timeout no request waits until a probe of the background task is answered
in time (see `StoreHealth.is_slow`).
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
"""Maximum number of concurrent lookups in one loop; the others wait."""
_STEP: Final = 0.0025
"""Seconds of one step of waiting, see `wait`."""


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
        """Return the store's answer, or `otherwise` if it does not arrive in time.

        Args:
            operation: name in metrics.
            key: subject; lookups with the same operation and key share one answer.
            question: performs the lookup.
            otherwise: local answer.
            asker: the waiting request. If its time is used up, the lookup starts all the same, but nobody waits for it.
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
        """Cancel the lookups of the running loop before its connections are closed."""
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
            # In an empty context: several requests may wait for the same answer.
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
    """Holds the key of our hashes, which all replicas of a service share.

    It is configured, or agreed in the store, or this process's own until the store answers.
    """

    name = "hash-key"

    def __init__(self, configured: str | None, store: SessionStore, events: SessionEvents, health: StoreHealth) -> None:
        self._store = store
        self._events = events
        self._health = health
        self._configured = configured is not None
        self._key = configured if configured is not None else secrets.token_hex(32)
        self.is_agreed = self._configured
        """Whether the key is configured or agreed in the store."""

    @property
    def secret(self) -> bytes:
        """The current key."""
        return self._key.encode()

    def take_over(self, parent: SharedKey) -> None:
        """Take the key of the parent process after a fork."""
        self._key, self.is_agreed = parent._key, parent.is_agreed

    def ask(self) -> Awaitable[str]:
        """Return the key in the store; ours is stored if there is none."""
        return self._store.get_or_set(self.name, self._key, 0)

    def learn(self, agreed: str) -> None:
        """Use the key that the replicas have agreed on."""
        self._key, self.is_agreed = agreed, True
        with guarded("session hash key"):
            self._events.hash_key(agreed.encode())

    async def agree(self) -> None:
        """Agree on the key in the background. Repeated when it is known, since the store may have lost it."""
        if not self._configured:
            with self._health.operation("agree"):
                self.learn(await self.ask())


async def wait(task: asyncio.Future[Any], patience: float = PATIENCE) -> float:
    """Wait for `task` up to `patience` seconds; return the seconds that count as waited.

    One step counts as two at most, however long it took: a busy loop could not have read the answer meanwhile.
    """
    loop = asyncio.get_running_loop()
    waited = 0.0
    while waited < patience and not task.done():
        step, began = min(_STEP, patience - waited), loop.time()
        await asyncio.wait((task,), timeout=step)
        waited += min(loop.time() - began, 2 * step)
    return waited


def _retrieved(task: asyncio.Task[object]) -> None:
    """Retrieve the error of a lookup, also of one that timed out."""
    error = None if task.cancelled() else task.exception()
    if error is not None and not isinstance(error, StoreDown):
        report("session lookup", error)
