"""How far the clock of the server is from ours, so that replicas with wrong clocks agree."""

from __future__ import annotations

import time
from typing import Final

from otel_mcp.store.redis import codec as redis_wire
from otel_mcp.store.redis import scripts
from otel_mcp.store.redis.client import RedisLink, Run
from otel_mcp.store.redis.keys import Keys

_SKEW: Final = 2.0
"""Seconds of difference that are left alone: within what NTP keeps, and documents show our own time."""
_AGAIN: Final = 60.0
"""Seconds between two looks."""


class ServerClock:
    """Keeps the offset of a writer right."""

    def __init__(self, link: RedisLink, keys: Keys, writer: redis_wire.Writer) -> None:
        self._link = link
        self._keys = keys
        self._writer = writer
        self._measured = -_AGAIN

    async def compare(self) -> None:
        """Look at the server's clock, once a minute."""
        before = time.monotonic()
        if before - self._measured < _AGAIN:
            return
        wall = time.time()
        seconds, micros = await self._link.run(Run(scripts.TIME, (self._keys.deadlines,)))
        after = time.monotonic()
        offset = int(seconds) + int(micros) / 1e6 - (wall + (after - before) / 2)
        self._writer.offset = offset if abs(offset) > _SKEW else 0.0
        self._measured = after
