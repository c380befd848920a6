"""What identity asks of the shared store, and what it asks later, in the background."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol
from weakref import WeakKeyDictionary, ref

from otel_mcp import loops
from otel_mcp.guard import guarded
from otel_mcp.model.delta import Known
from otel_mcp.types import Asker


class Directory(Protocol):
    """The part of the shared store that identity asks, for an `asker` that waits within its patience."""

    async def describe(self, session_id: str, asker: Asker | None = None) -> Known | None: ...
    async def bind(self, session_id: str, user: str | None, asker: Asker | None = None) -> None: ...
    async def get(self, key: str, asker: Asker | None = None) -> str | None: ...
    async def get_or_set(self, key: str, candidate: str, ttl: float, asker: Asker | None = None) -> str: ...
    async def get_or_set_successor(
        self, old_id: str, candidate: str, user: str | None = None, asker: Asker | None = None
    ) -> str: ...


class Later:
    """Runs questions in the background; their failures are counted and harm nobody."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        # Neither the timers nor their loops are held: a loop may be thrown away at any time.
        self._timers: WeakKeyDictionary[asyncio.TimerHandle, ref[asyncio.AbstractEventLoop]] = WeakKeyDictionary()

    def close(self) -> None:
        """Ask nothing more of what is due: the running loop is about to end, and a task that begins then never does."""
        ending = asyncio.get_running_loop()
        for timer in [timer for timer, loop in self._timers.items() if loop() is ending]:
            timer.cancel()
            del self._timers[timer]
        for task in list(self._tasks):
            if task.get_loop() is ending:
                task.cancel()

    def run(self, what: Callable[[], Awaitable[None]], delay: float = 0.0) -> None:
        """Run `what` in `delay` seconds. Without a running loop there is nobody to wait for the answer."""

        def start(loop: asyncio.AbstractEventLoop) -> None:
            task = loop.create_task(run())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        async def run() -> None:
            with guarded("session facts"):
                await what()

        with guarded("session facts"):
            if (loop := loops.home()) is None:
                return
            timer = loops.call_later(loop, delay, partial(start, loop))
            if not isinstance(timer, loops.Timer):  # Other event loops have handles of their own kind.
                self._timers[timer] = ref(loop)
