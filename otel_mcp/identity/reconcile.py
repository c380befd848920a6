"""What another replica knew of a session, and had not written yet when it was asked for."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from otel_mcp.bounded import remember
from otel_mcp.identity.directory import Directory, Later
from otel_mcp.model.delta import SessionFacts
from otel_mcp.model.session import Session

_MAX_BLIND: Final = 1000
_PAUSE: Final = 0.01
"""Seconds between two questions about them: after an outage requests come first."""


class Learning:
    """Asks once more, in the background."""

    def __init__(
        self, directory: Directory, later: Later, delay: float, continued: Callable[[Session, str], None]
    ) -> None:
        """Begin with nothing to ask.

        Args:
            directory: whom to ask.
            later: asks in the background.
            delay: seconds; by then every replica has written what it knew.
            continued: called with a session that has begun under an id which others continue, and as what.
        """
        self._directory = directory
        self._later = later
        self._delay = delay
        self._continued = continued
        self._blind: OrderedDict[str, Session] = OrderedDict()
        self._look_at = 0.0

    def later(self, session: Session) -> None:
        """Ask about a session that has just been met."""

        async def look() -> None:
            known = await self._directory.describe(session.id)
            if known is not None and known.live is not None:
                learn(session, known.live)

        self._later.run(look, self._delay)

    def at_last(self, session: Session) -> None:
        """Ask about a session that has begun while nobody could be asked, as soon as somebody can."""
        remember(self._blind, session.id, session, _MAX_BLIND)
        if time.monotonic() >= self._look_at:
            self._look_again()

    def _look_again(self) -> None:
        self._look_at = time.monotonic() + self._delay
        self._later.run(self._look_at_blind, self._delay)

    async def _look_at_blind(self) -> None:
        while self._blind:
            session_id, session = next(iter(self._blind.items()))
            known = await self._directory.describe(session_id)
            if known is None:
                self._look_again()
                return
            self._blind.pop(session_id, None)
            if known.successor is not None:
                self._continued(session, known.successor)
            elif known.live is not None:
                learn(session, known.live)
            await asyncio.sleep(_PAUSE)


def learn(session: Session, facts: SessionFacts) -> None:
    """Complete a session by what the store has of it; the users that they are bound to may differ."""
    if not session.facts.opened and facts.principal != session.facts.principal:
        if facts.principal is not None:
            # Two met the id at once; the store has it from the other one first. What is under way here is refused.
            session.ended = True
            return
        session.facts.principal = None
    for name, value in facts.known().items():
        if getattr(session.facts, name) is None:
            setattr(session.facts, name, value)
