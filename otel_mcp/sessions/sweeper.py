"""Reporting the ends of sessions that nobody closed, and counting those that live."""

from __future__ import annotations

import time
from typing import Final

from otel_mcp.sessions.flusher import Flusher
from otel_mcp.sessions.health import StoreHealth
from otel_mcp.settings import Settings
from otel_mcp.store.base import SessionStore
from otel_mcp.store.memory import MemoryStore

_BATCH: Final = 100
_TURN: Final = 1.0
"""Seconds of one sweep; a backlog must not occupy the loop."""
_AFTER_OUTAGE: Final = 5.0
"""Seconds in which all processes write what they kept; ends seen sooner may be none."""


class Sweeper:
    """Asks the store for ends and for the number of live sessions."""

    def __init__(self, settings: Settings, flusher: Flusher, store: SessionStore, health: StoreHealth) -> None:
        self._flusher = flusher
        self._store = store
        self._health = health
        # Activity that other processes have not written yet.
        self._grace = 0.0 if isinstance(store, MemoryStore) else settings.flush_interval + 1.0
        self._not_before = 0.0
        self.active: int | None = None
        """Live sessions of the service, as of the last refresh."""
        health.on_recovery.append(self._recovered)

    def _recovered(self) -> None:
        self._not_before = time.monotonic() + _AFTER_OUTAGE

    async def sweep(self) -> None:
        """Report ends, then count."""
        if self._health.is_away:
            return
        await self._flusher.flush()
        if time.monotonic() >= self._not_before and not self._health.is_away:
            with self._health.operation("sweep"):
                await self._ends()
        await self.refresh_safely()

    async def _ends(self) -> None:
        until = time.monotonic() + _TURN
        while time.monotonic() < until:
            ended = await self._store.claim_expired(time.time() - self._grace, _BATCH)
            for end in ended:
                self._flusher.report_end(end)
            await self._store.ack_ends(ended)
            if not ended:
                return

    async def refresh(self) -> None:
        """Count live sessions."""
        self.active = await self._store.active()

    async def refresh_safely(self) -> None:
        """Count live sessions; a failure opens the breaker."""
        if not self._health.is_away:
            with self._health.operation("count"):
                await self.refresh()
