"""Implements the public API of session documents: ``save``, ``load``, ``get_or_create``, ``delete``.

These wait for the store, since the author of a tool called them. During an
outage they work on what this process knows, and the store is updated afterwards.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import NamedTuple

from otel_mcp.guard import guarded
from otel_mcp.model.delta import Flush, Known, SessionDelta, SessionFacts
from otel_mcp.model.state import SessionState
from otel_mcp.sessions.flusher import Flusher
from otel_mcp.sessions.health import StoreHealth
from otel_mcp.settings import Settings
from otel_mcp.store.base import SessionStore
from otel_mcp.store.memory import MemoryStore


class _Unwritten(NamedTuple):
    """A document to save."""

    state: SessionState
    only_new: bool
    """Do not overwrite a document in the store."""


class SessionDocuments:
    """Reads and writes documents in the store; during an outage, in bounded memory."""

    def __init__(self, settings: Settings, store: SessionStore, flusher: Flusher, health: StoreHealth) -> None:
        self._settings = settings
        self._store = store
        self._flusher = flusher
        self._health = health
        self.unwritten: OrderedDict[str, _Unwritten | float] = OrderedDict()
        """Changes not yet in the store: a document to save, or when (Unix seconds) one was deleted."""

    async def save(self, state: SessionState, *, only_new: bool = False) -> None:
        """Write the user's document after this process's buffered calls; `only_new`: unless there is one."""
        if not self._health.wait:
            with guarded("session flush"):
                await self._flusher.flush()
        if self._is_deleted(state.session_id):
            await self.catch_up()  # Delete first: the deletion must not remove the new document.
        wanted = await self._over_kept(_Unwritten(state, only_new))
        if not self._health.is_away and await self._save(wanted):
            self.unwritten.pop(state.session_id, None)
        else:
            self._keep(state.session_id, wanted._replace(state=wanted.state.model_copy(deep=True)))

    async def load(self, session_id: str) -> SessionState | None:
        """Read the document, with this process's calls."""
        if not self._health.is_away and self._flusher.waiting(session_id):
            await self._flusher.flush()
        if self._is_deleted(session_id):
            return None
        if not self._health.is_away:
            with self._health.operation("load"):
                return await self._store.load(session_id)
        return await self._load_here(session_id)

    async def get_or_create(self, session_id: str, *, user_agent: str | None = None) -> SessionState:
        """Read the document, or create it."""
        state = await self.load(session_id)
        if state is None:
            await self.save(SessionState(session_id=session_id, user_agent=user_agent), only_new=True)
            state = await self.load(session_id)
        return state or SessionState(session_id=session_id, user_agent=user_agent)

    async def delete(self, session_id: str) -> bool:
        """End a session and delete its document; return whether it existed."""
        known = await self.load(session_id)
        self._flusher.buffer.discard(session_id)
        self._keep(session_id, time.time())
        await self.catch_up()
        return known is not None

    async def catch_up(self) -> None:
        """Write the changes that the store does not have yet."""
        while self.unwritten and not self._health.is_away:
            session_id, wanted = next(iter(self.unwritten.items()))
            done = await (self._save(wanted) if isinstance(wanted, _Unwritten) else self._delete(session_id, wanted))
            if not done:
                return
            self.unwritten.pop(session_id, None)

    def _is_deleted(self, session_id: str) -> bool:
        return isinstance(self.unwritten.get(session_id), float)

    async def _over_kept(self, wanted: _Unwritten) -> _Unwritten:
        """Merge a document into the unwritten one, as the store would."""
        kept = self.unwritten.get(wanted.state.session_id)
        if not isinstance(kept, _Unwritten):
            # A document that was to be deleted must be overwritten.
            return wanted if kept is None else wanted._replace(only_new=False)
        if wanted.only_new:
            return kept
        memory = MemoryStore(self._settings)
        for state in (kept.state, wanted.state):
            await memory.save(state)
        return _Unwritten(await memory.load(wanted.state.session_id) or wanted.state, only_new=False)

    def _keep(self, session_id: str, wanted: _Unwritten | float) -> None:
        self.unwritten[session_id] = wanted
        self.unwritten.move_to_end(session_id)
        while len(self.unwritten) > self._settings.max_sessions:
            self.unwritten.popitem(last=False)

    async def _load_here(self, session_id: str) -> SessionState | None:
        """Return the document as this process knows it: the unwritten one, with the buffered deltas."""
        memory = MemoryStore(self._settings)
        saved = self.unwritten.get(session_id)
        if isinstance(saved, _Unwritten):
            await memory.save(saved.state)
        waiting = self._flusher.waiting(session_id)
        await memory.apply([Flush(delta, "", sequence) for sequence, delta in enumerate(waiting)])
        return await memory.load(session_id)

    async def _save(self, wanted: _Unwritten) -> bool:
        """Write the document; return whether the store has answered."""
        with self._health.operation("save"):
            result = await self._store.save(wanted.state, only_new=wanted.only_new)
            created = wanted.state.created_at
            at = time.time() if created is None else created.timestamp()
            facts = SessionFacts.of(wanted.state, at, self._settings.session_ttl)
            self._flusher.apply(SessionDelta(facts, facts.created_at), result)
            return True
        return False

    async def _delete(self, session_id: str, at: float) -> bool:
        """Delete the document; return whether it is gone. End the session first, so that its end is reported."""
        known = Known(exists=False)
        with self._health.operation("recall") as use:
            known = await self._store.describe(session_id)
        if use.down is not None:
            return False
        if known.exists or known.ended:
            # The session may have expired and its document be gone, while its end is not reported yet.
            facts = known.facts or SessionFacts(session_id, at, self._settings.session_ttl, principal=known.principal)
            self._flusher.buffer.add(SessionDelta(facts, at, ended=(at, "server_closed")))
            await self._flusher.flush()
            await self._flusher.endings.conclude(session_id)
            if self._health.is_away or any(delta.ended for delta in self._flusher.waiting(session_id)):
                return False
        with self._health.operation("delete"):
            await self._store.delete(session_id)
            self._flusher.has_news = True
            return True
        return False
