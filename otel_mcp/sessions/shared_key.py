"""The key of our hashes, the same on all replicas of a service."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable

from otel_mcp.guard import guarded
from otel_mcp.sessions.health import StoreHealth
from otel_mcp.store.base import SessionStore

_NAME = "hash-key"


class SharedKey:
    """Configured, else what the first process left in the store, else this process's own until it can be asked."""

    def __init__(self, configured: str | None, store: SessionStore, health: StoreHealth) -> None:
        self._store = store
        self._health = health
        self._configured = configured is not None
        self._key = configured if configured is not None else secrets.token_hex(32)
        self._agreed = False
        self.on_agreed: list[Callable[[bytes], None]] = []
        """Called with the key that all replicas have, as soon as it is known."""
        health.on_recovery.append(self._recovered)

    @property
    def is_agreed(self) -> bool:
        """Whether it stays as it is."""
        return self._configured or self._agreed

    async def get(self, agree: Callable[[str, str], Awaitable[str | None]]) -> bytes:
        """The key; `agree` asks on behalf of a request, and tells nothing where the store does not answer in time."""
        if not self.is_agreed:
            agreed = await agree(_NAME, self._key)
            if agreed is not None:
                self._is(agreed)
        return self._key.encode()

    async def agree(self, *, again: bool = False) -> None:
        """Learn it without the haste of a request; `again` also where it is known, since the store may have lost it."""
        if not self._configured and (again or not self._agreed):
            with self._health.operation("agree"):
                self._is(await self._store.get_or_set(_NAME, self._key, 0))

    def _is(self, agreed: str) -> None:
        self._key, self._agreed = agreed, True
        for tell in self.on_agreed:
            with guarded("session hash key"):
                tell(agreed.encode())

    def _recovered(self) -> None:
        # The store may have come back empty: the key has to be there for replicas to come.
        self._agreed = False
