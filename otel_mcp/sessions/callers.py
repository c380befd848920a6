"""How many callers have called tools today: a number of the service, no names.

A caller that this process has counted today costs a look into a set; who is new waits for the next turn of the worker.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from hashlib import blake2b
from typing import Final

from otel_mcp.sessions.health import StoreHealth
from otel_mcp.store.base import SessionStore

_DAY: Final = 86_400.0
_MOST: Final = 10_000
"""Callers that are known to be counted, and such as wait for that. Who is forgotten is counted again, which changes
nothing; for whom there is no room, with a later call."""
_BATCH: Final = 1000


class Callers:
    """Keyed hashes on their way into the store's count of a UTC day. `clock` returns Unix seconds."""

    def __init__(self, store: SessionStore, health: StoreHealth, *, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._health = health
        self._clock = clock
        self.clear()

    def clear(self) -> None:
        """Start again: after a fork."""
        self.counted = {""}
        """Who need not be added any more, and nobody."""
        self.until = 0.0
        """Unix seconds at which they have to be: the next day."""
        self.waiting: deque[tuple[str, str]] = deque()
        """The day, and the hash."""
        self.number: int | None = None
        """Callers of today in all processes, as of the last look."""

    def add(self, names: set[str], key: bytes) -> None:
        """Have callers counted; what waits is a hash of the name with the key of all replicas. From any thread."""
        now = self._clock()
        if now >= self.until or len(self.counted) >= _MOST:
            self.counted, self.until = {""}, (now // _DAY + 1) * _DAY
        for name in names - self.counted:
            if len(self.waiting) < _MOST:
                self.counted.add(name)
                hashed = blake2b(name.encode(), key=blake2b(key, digest_size=32).digest(), digest_size=16)
                self.waiting.append((_day(now), hashed.hexdigest()))

    async def count(self) -> None:
        """Add those that wait, and ask how many there are; a failure opens the breaker."""
        today = _day(self._clock())
        while not self._health.is_away:
            batch = [self.waiting[at] for at in range(min(len(self.waiting), _BATCH))]
            day = batch[0][0] if batch else today
            hashes = [made for of, made in batch if of == day]
            number = 0
            with self._health.operation("callers") as use:
                number = await self._store.callers(day, hashes)
            if use.down is not None:
                return
            for _ in hashes:
                self.waiting.popleft()
            if day == today:
                self.number = number
                if number < len(self.counted) // 2:
                    self.until = 0.0  # The store has lost the count: everybody is new to it.
            if not self.waiting and day == today:
                return


def _day(now: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(now))
