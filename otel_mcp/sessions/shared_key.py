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
        self._agreed_in: int | None = None

    @property
    def is_agreed(self) -> bool:
        """Whether it stays as it is. After an outage the store may be empty, and the key has to be put back."""
        return self._configured or self._agreed_in == self._health.recoveries

    @property
    def secret(self) -> bytes:
        """The key as it is known at present."""
        return self._key.encode()

    def ask(self) -> Awaitable[str]:
        """Ask the store for the key, and offer ours."""
        return self._store.get_or_set(self.name, self._key, 0)

    def learn(self, agreed: str) -> None:
        """Take over what the replicas have agreed on."""
        self._key, self._agreed_in = agreed, self._health.recoveries
        with guarded("session hash key"):
            self._events.hash_key(agreed.encode())

    async def agree(self, *, again: bool = False) -> None:
        """Learn it without the haste of a request; `again` also where it is known, since the store may have lost it."""
        if not self._configured and (again or not self.is_agreed):
            with self._health.operation("agree"):
                self.learn(await self.ask())
