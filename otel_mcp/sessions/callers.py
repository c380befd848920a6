"""Counts today's distinct callers of tools in the whole service, without their names.

A caller that this process has already counted today costs one lookup in a set; a new one waits for the worker.
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
"""Maximum number of counted callers in memory, and of waiting ones. A forgotten caller is added again, which is
idempotent; one that finds no room is added with a later call."""
_BATCH: Final = 1000
_ESTIMATED: Final = 1.03
"""Tolerance: the standard error of a HyperLogLog of Redis is 0.81 %."""


class Callers:
    """Adds keyed hashes of callers to the store's count of a UTC day. `clock` returns Unix seconds."""

    def __init__(self, store: SessionStore, health: StoreHealth, *, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._health = health
        self._clock = clock
        self.counted = {""}
        """Callers that need not be added again, and "" (no caller)."""
        self.until = 0.0
        """When the next UTC day begins (Unix seconds)."""
        self.waiting: deque[tuple[str, str]] = deque()
        """Day and hash of each caller to add."""
        self._key = b""
        self._recoveries = self._health.recoveries
        self.number: int | None = None
        """Today's callers in all processes at the last count."""

    def add(self, names: set[str], key: bytes) -> None:
        """Queue callers for counting, as hashes with the shared key. Thread-safe."""
        today, self._key = self._today(), key
        if len(self.counted) >= _MOST:
            self.counted = {""}
        for name in names - self.counted:
            if len(self.waiting) < _MOST:
                self.counted.add(name)
                self.waiting.append((today, self._hashed(name)))

    def _today(self) -> str:
        now = self._clock()
        if now >= self.until:
            self.counted, self.number, self.until = {""}, None, (now // _DAY + 1) * _DAY
        return time.strftime("%Y-%m-%d", time.gmtime(now))

    async def count(self) -> None:
        """Add the waiting callers, and read the count. A failure opens the breaker."""
        today, is_whole = self._today(), False
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
            if day == today and not self.waiting:
                counted = list(self.counted - {""})
                is_lost = number < (self.number or 0) or number * _ESTIMATED < len(counted)
                self.number = number
                if is_whole or not (is_lost or self._recoveries != self._health.recoveries):
                    return
                # The store has lost the count, or may have: add all known callers again, not only those who call again.
                is_whole, self._recoveries = True, self._health.recoveries
                self.waiting.extend((today, self._hashed(name)) for name in counted)

    def _hashed(self, name: str) -> str:
        return blake2b(name.encode(), key=blake2b(self._key, digest_size=32).digest(), digest_size=16).hexdigest()
