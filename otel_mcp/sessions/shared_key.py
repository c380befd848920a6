"""The key of our hashes, the same on all replicas of a service."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable

from otel_mcp.guard import guarded
from otel_mcp.sessions.health import SessionEvents, StoreHealth
from otel_mcp.store.base import SessionStore


class SharedKey:
    """Configured, else what the first process left in the store, else this process's own until it can be asked."""

    name = "hash-key"

    def __init__(self, configured: str | None, store: SessionStore, events: SessionEvents, health: StoreHealth) -> None:
        self._store = store
        self._events = events
        self._health = health
        self._configured = configured is not None
        self._key = configured if configured is not None else secrets.token_hex(32)
        self.is_agreed = self._configured
        """Whether all replicas have it, as far as is known."""

    @property
    def secret(self) -> bytes:
        """The key as it is known at present."""
        return self._key.encode()

    def ask(self) -> Awaitable[str]:
        """Ask the store for the key, and offer ours."""
        return self._store.get_or_set(self.name, self._key, 0)

    def learn(self, agreed: str) -> None:
        """Take over what the replicas have agreed on."""
        self._key, self.is_agreed = agreed, True
        with guarded("session hash key"):
            self._events.hash_key(agreed.encode())

    async def agree(self) -> None:
        """Learn it without the haste of a request; also where it is known, since the store may have lost it."""
        if not self._configured:
            with self._health.operation("agree"):
                self.learn(await self.ask())
