"""How late the running loop was itself: what it had no time to read is no silence of the store.

Time limits of redis-py go by the clock. A loop that works, or a machine that is
overloaded, lets them pass with the answer unread; so what ran into one is tried
once more before the store is taken for away. Everything that we send may be sent
twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from redis.exceptions import TimeoutError as RedisTimeout

from otel_mcp.guard import quietly

T = TypeVar("T")

TIMEOUTS: Final = (asyncio.TimeoutError, RedisTimeout)
_STEP: Final = 0.05
"""Seconds between two looks at the clock."""
_MUCH: Final = 0.1
"""Seconds of lateness from which a time limit says nothing of the store."""


class Lateness:
    """Adds up by how much the loop is late, while the block lasts."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.seconds = 0.0

    def __enter__(self) -> Lateness:
        self._next()
        return self

    def _next(self) -> None:
        self._due = self._loop.time() + _STEP
        self._timer = self._loop.call_later(_STEP, quietly, "session lateness", self._look)

    def _look(self) -> None:
        self._add()
        self._next()

    def _add(self) -> None:
        self.seconds += max(self._loop.time() - self._due, 0.0)

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self._add()

    @property
    def is_much(self) -> bool:
        return self.seconds >= _MUCH


async def once_more_if_late(attempt: Callable[[], Awaitable[T]]) -> T:
    """Wait for `attempt`, which may be made twice; a second time where it ran into a time limit on a late loop."""
    lateness = Lateness()
    try:
        with lateness:
            return await attempt()
    except TIMEOUTS:
        if not lateness.is_much:
            raise
    return await attempt()
