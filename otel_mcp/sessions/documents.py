"""The public API of session documents: ``save``, ``load``, ``get_or_create``, ``delete``.

These wait for the store, since a tool's author asked for them. While it is
away they work on what this process knows, and the store is updated afterwards.
"""

from __future__ import annotations

import time

from otel_mcp.guard import guarded
from otel_mcp.model.delta import Known, SessionDelta, SessionFacts
from otel_mcp.model.state import SessionState
from otel_mcp.sessions.buffer import Coalescer
from otel_mcp.sessions.events import SessionEvents
from otel_mcp.sessions.flusher import Flusher
from otel_mcp.sessions.health import StoreHealth
from otel_mcp.sessions.local import LocalDocuments
from otel_mcp.settings import Settings
from otel_mcp.store.base import SessionStore


class SessionDocuments:
    """Documents in the store, and in memory while it is away."""

    def __init__(
        self,
        settings: Settings,
        store: SessionStore,
        coalescer: Coalescer,
        flusher: Flusher,
        events: SessionEvents,
        health: StoreHealth,
    ) -> None:
        self._limit = settings.session_ttl
        self._store = store
        self._coalescer = coalescer
        self._flusher = flusher
        self._events = events
        self._health = health
        self.kept = LocalDocuments(settings)

    async def save(self, state: SessionState) -> None:
        """Write the user's document."""
        if self.kept.is_doomed(state.session_id):
            await self.fulfil()  # What is written now is not what was to be deleted.
        if not self._health.is_away and await self._save(state):
            self.kept.fulfilled(state.session_id)
        else:
            self.kept.keep(state)

    async def load(self, session_id: str) -> SessionState | None:
        """The document, this process's calls included."""
        if not self._health.is_away and (session_id in self._coalescer or session_id in self._flusher.frozen):
            await self._flusher.flush()
        if self.kept.is_doomed(session_id):
            return None
        if not self._health.is_away:
            with self._health.operation("load"):
                return await self._store.load(session_id)
        frozen, waiting = self._flusher.frozen.get(session_id), self._coalescer.waiting(session_id)
        deltas = (frozen.delta if frozen else None, waiting)
        return self.kept.load(session_id, [delta for delta in deltas if delta is not None])

    async def get_or_create(self, session_id: str, *, user_agent: str | None = None) -> SessionState:
        """The document; a new one where there is none."""
        state = await self.load(session_id)
        if state is None:
            await self.save(SessionState(session_id=session_id, user_agent=user_agent))
            state = await self.load(session_id)
        return state or SessionState(session_id=session_id, user_agent=user_agent)

    async def delete(self, session_id: str) -> bool:
        """End a session and remove it; `False` where there was none."""
        known = await self.load(session_id)
        self._coalescer.discard(session_id)
        self.kept.doom(session_id, time.time())
        await self.fulfil()
        return known is not None

    async def fulfil(self) -> None:
        """Tell the store what it missed."""
        while not self._health.is_away and (wish := self.kept.oldest()) is not None:
            session_id, wanted = wish
            done = await (self._save(wanted) if isinstance(wanted, SessionState) else self._delete(session_id, wanted))
            if not done:
                return
            self.kept.fulfilled(session_id)

    async def _save(self, state: SessionState) -> bool:
        """Whether the store has decided about the document."""
        with self._health.operation("save"):
            applied = await self._store.save(state)
            if applied.created:
                self._flusher.has_news = True
                with guarded("session events"):
                    self._events.started(_facts(state, self._limit))
            if applied.refused is not None:
                self._flusher.drop(0, applied.refused)
            return True
        return False

    async def _delete(self, session_id: str, at: float) -> bool:
        """Whether it is gone. Its end comes first, so that it is reported."""
        answered, known = False, Known(exists=False)
        with self._health.operation("recall"):
            known, answered = await self._store.describe(session_id), True
        if not answered:
            return False
        if known.exists or known.ended:
            # Its time may be over, its document gone, and its end not reported yet.
            facts = known.facts or SessionFacts(session_id, at, self._limit, principal=known.principal)
            self._coalescer.add(SessionDelta(facts, at, ended=(at, "server_closed")))
            await self._flusher.flush()
            frozen, waiting = self._flusher.frozen.get(session_id), self._coalescer.waiting(session_id)
            sent = frozen.delta.ended if frozen is not None else None
            if self._health.is_away or sent or (waiting is not None and waiting.ended):
                return False
        with self._health.operation("delete"):
            await self._store.delete(session_id)
            self._flusher.has_news = True
            return True
        return False


def _facts(state: SessionState, limit: float) -> SessionFacts:
    return SessionFacts.of(state, time.time() if state.created_at is None else state.created_at.timestamp(), limit)
