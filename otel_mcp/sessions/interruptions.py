"""Asks the store which refused requests have cut a session, and which new sessions belong to clients that are back.

It asks in the background and in batches: an invented id costs one short question, of which each turn asks a limited
number, and is not counted anywhere.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from math import inf
from typing import Final

from otel_mcp.bounded import remember
from otel_mcp.guard import guarded
from otel_mcp.model.delta import SessionDelta, SessionFacts
from otel_mcp.model.session import Refusal
from otel_mcp.sessions.buffer import Buffer
from otel_mcp.sessions.health import SessionEvents, StoreHealth
from otel_mcp.sessions.tables import gone
from otel_mcp.settings import Settings
from otel_mcp.store.base import SessionStore, StoreDown
from otel_mcp.store.memory import MemoryStore

BATCH: Final = 50
"""Questions in one round trip."""
MOST: Final = 500
"""Questions in one turn."""
KEPT: Final = 10_000
"""Maximum number of waiting questions: as many sessions as one process may have served."""
_AGAIN: Final = 5.0
"""Seconds before the same refused id is asked about again: clients repeat requests."""
_TRAVEL: Final = 1.0
"""Seconds that another process's batch may take, beyond its flush interval."""

_Key = tuple[str, str | None]


class Interruptions:
    """Queues questions about refused requests, and about clients that may be back."""

    def __init__(
        self, settings: Settings, store: SessionStore, buffer: Buffer, events: SessionEvents, health: StoreHealth
    ) -> None:
        self._store = store
        self._buffer = buffer
        self._events = events
        self._health = health
        # After `_settle`, a process that ends has written its last flush; after `_settle_back`, the cut is marked.
        shared = not isinstance(store, MemoryStore)
        self._settle = settings.flush_interval if shared else 0.0
        self._settle_back = 3 * settings.flush_interval + _TRAVEL if shared else 0.0
        self.refusals: OrderedDict[_Key, tuple[float, Refusal]] = OrderedDict()
        """Refusals, and when to ask about each (monotonic seconds)."""
        self._asked: OrderedDict[_Key, float] = OrderedDict()
        """Refusals that were asked about, and when (monotonic seconds)."""
        self.begun: OrderedDict[str, tuple[float, SessionFacts]] = OrderedDict()
        """Sessions whose clients may be back, and when to ask about each (monotonic seconds)."""
        self.due = inf
        """When the next question is due (monotonic seconds)."""

    def refused(self, refusal: Refusal) -> bool:
        """Queue a question about a refused request; return whether it was queued. Thread-safe."""
        key, now = _key(refusal), time.monotonic()
        if key in self.refusals or now - self._asked.get(key, -_AGAIN) < _AGAIN:
            return False
        if len(self.refusals) >= KEPT:
            self._drop()
            return False
        self.refusals[key] = now + self._settle, refusal
        self.due = min(self.due, now + self._settle)
        return True

    def began(self, facts: SessionFacts) -> None:
        """Queue a question about a session that began with a handshake here: its client may have been cut before."""
        if facts.opened and facts.visitor is not None:
            at = time.monotonic() + self._settle_back
            if len(self.begun) >= KEPT:
                self._drop()
            remember(self.begun, facts.session_id, (at, facts), KEPT)
            self.due = min(self.due, at)

    def _drop(self) -> None:
        """Count a question that is not asked: one cut or return stays unnoticed."""
        with guarded("session events"):
            self._events.dropped(1, "interruptions")

    async def ask(self, *, everything: bool = False) -> None:
        """Ask the questions that are due; with `everything`, all (the process ends)."""
        now = time.monotonic()
        refused = [refusal for at, refusal in list(self.refusals.values()) if everything or at <= now]
        begun = [facts for at, facts in list(self.begun.values()) if everything or at <= now]
        for first in range(0, len(refused[:MOST]), BATCH):
            if not self._health.is_away:
                await self._ask_cut(refused[first : min(first + BATCH, MOST)])
        for facts in begun[:MOST]:
            if not self._health.is_away and self.begun.pop(facts.session_id, None) is not None:
                await self._ask_back(facts)
        left = (*self.refusals.values(), *self.begun.values())
        self.due = min((at for at, _ in left), default=inf)

    async def _ask_cut(self, refused: list[Refusal]) -> None:
        # `pop` again: at the end of the process, another turn may still be asking.
        batch = [refusal for refusal in refused if self.refusals.pop(_key(refusal), None) is not None]
        for refusal in batch:
            remember(self._asked, _key(refusal), time.monotonic(), KEPT)
        with self._health.operation("cut"):
            try:
                found = await self._store.cut(batch, await gone(self._store))
            except (StoreDown, asyncio.CancelledError):
                # Asked again, the store answers alike.
                self.refusals |= {_key(refusal): (0.0, refusal) for refusal in batch}
                raise
            for cut in found:
                with guarded("session events"):
                    self._events.interrupted(cut)

    async def _ask_back(self, facts: SessionFacts) -> None:
        if facts.visitor is None:
            return
        with self._health.operation("back"):
            try:
                back = await self._store.back(facts.visitor, facts.created_at, facts.session_id)
            except (StoreDown, asyncio.CancelledError):
                # Asked again, the store answers alike.
                self.begun[facts.session_id] = 0.0, facts
                raise
            if back is None:
                return
            facts.previous_id = facts.previous_id or back.facts.session_id
            self._buffer.add(SessionDelta(facts, facts.created_at))
            if not back.ended:
                cut = facts.created_at - back.after
                self._buffer.add(SessionDelta(back.facts, cut, ended=(cut, "replaced")))
            with guarded("session events"):
                self._events.returned(facts, back.after)


def _key(refusal: Refusal) -> _Key:
    """Return the key of a question. It has the user, so that no user can suppress the question of another."""
    return refusal.session_id, refusal.user
