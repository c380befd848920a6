"""Keeps up in the store which tasks tool calls have begun, and what has become of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from otel_mcp.model.task import TaskNews
from otel_mcp.sessions.health import SessionEvents, StoreHealth
from otel_mcp.store.base import ProducerId, SessionStore

_BATCH: Final = 100
"""News in one round trip."""


class Tasks:
    """News on their way to the store; those that are not answered are sent again as they are."""

    def __init__(self, store: SessionStore, events: SessionEvents, health: StoreHealth, producer: ProducerId) -> None:
        self._store = store
        self._events = events
        self._health = health
        self._producer = producer
        self.clear()

    def clear(self) -> None:
        """Start again: after a fork."""
        self.due = False
        """News wait, or have been sent and not answered."""
        self._batch = ""
        self._sent: Sequence[TaskNews] = ()
        self._count = ""
        """Names the count that is not answered: what it has claimed is claimed again."""

    async def follow(self) -> None:
        """Send what waits, and report what has ended."""
        while self.due and not self._health.is_away:
            if not self._sent:
                self.due = False
                if not (news := self._events.tasks_seen(_BATCH)):
                    return
                self.due = True
                self._sent, self._batch = news, self._name()
            with self._health.operation("tasks"):
                answer = await self._store.follow(self._batch, self._sent)
                self._sent = ()
                self._events.tasks_followed(answer)
            if self._sent:  # The store has failed, which is noted: the next time sends the same again.
                return

    async def count(self) -> None:
        """Count the tasks that have not ended, and report those whose time is over."""
        census = None
        if not self._health.is_away:
            with self._health.operation("tasks"):
                self._count = self._count or self._name()
                census = await self._store.tasks(self._count)
                self._count = ""
        self._events.tasks_counted(census)

    def _name(self) -> str:
        return f"{self._producer.token}:{self._producer.next_sequence()}"
