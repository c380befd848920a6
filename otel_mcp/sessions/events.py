"""What the rest of the package hears from sessions."""

from __future__ import annotations

from typing import Protocol

from otel_mcp.model.delta import EndedSession, SessionFacts


class SessionEvents(Protocol):
    """Callbacks from the flusher, in the thread of the event loop; what they raise stops there."""

    def started(self, facts: SessionFacts) -> None:
        """A session has begun."""
        ...

    def resumed(self, facts: SessionFacts) -> None:
        """A session goes on that was last active before this process, and those of its age, began."""
        ...

    def ended(self, session: EndedSession) -> None:
        """A session has ended; no other process hears of it."""
        ...

    def dropped(self, count: int, reason: str) -> None:
        """So many tool calls will not be in the store: ``full``, ``foreign``, ``error``, ``shutdown``."""
        ...

    def store_operation(self, operation: str, outcome: str, seconds: float) -> None:
        """The store was asked: ``flush``, ``recall``... with ``ok``, ``error``, ``denied`` or ``timeout``."""
        ...
