"""What another replica knew of a session, and had not written yet when it was asked for."""

from __future__ import annotations

from collections.abc import Callable

from otel_mcp.identity.directory import Directory, Later
from otel_mcp.identity.session import Session
from otel_mcp.sessions.delta import SessionFacts


class Learning:
    """Asks once more, beside the requests."""

    def __init__(self, directory: Directory, later: Later, delay: float) -> None:
        """`delay` in seconds: by then every replica has written what it knew."""
        self._directory = directory
        self._later = later
        self._delay = delay

    def later(self, session: Session, continued: Callable[[str], None] | None = None) -> None:
        """Ask about a session that has just been met.

        `continued` is for one that has begun while nobody could be asked: it is told the id of the session that
        others have in its place. That is asked until there is an answer.
        """

        async def look() -> None:
            known = await self._directory.recall(session.id)
            if known is None and continued is not None and not session.ended:
                self._later.run(look, self._delay)
            elif known is not None and known.successor is not None and continued is not None:
                continued(known.successor)
            elif known is not None and known.live is not None:
                learn(session, known.live)

        self._later.run(look, self._delay)


def learn(session: Session, facts: SessionFacts) -> None:
    """Complete a session by what the store has of it."""
    for name, value in facts.known().items():
        if getattr(session.facts, name) is None:
            setattr(session.facts, name, value)
    if facts.principal is not None and facts.principal != session.facts.principal:
        if session.facts.principal is not None:
            # Two users met the id at once; the store has it from the other one first.
            session.ended = True
        session.facts.principal = facts.principal
