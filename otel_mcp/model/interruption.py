"""What a restart does to sessions: a server refuses one that it does not know; its client is back soon, or lost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, get_args

from otel_mcp.model.delta import SessionFacts
from otel_mcp.model.state import Cause

CAUSES: Final[tuple[Cause, ...]] = get_args(Cause)

WITHIN: Final = (("1m", 60.0), ("5m", 300.0), ("30m", 1800.0))
"""How soon a client came back: the names, and the seconds up to which they hold."""
LOST: Final = WITHIN[-1][1]
"""Seconds after which a client that has not come back is lost: what it opens later is another visit."""


@dataclass(slots=True)
class Refusal:
    """A request whose session the server seems not to know."""

    session_id: str
    at: float
    """Unix seconds."""
    user: str | None
    """Keyed hash of the user who sent it."""
    served: bool | None
    """This process has served the session: the server itself has closed it. `None` = what it has served says nothing,
    since the session is that of a conversation, which may come by another transport session."""


@dataclass(slots=True)
class Interruption:
    """A session that was cut, for the one process that reports it."""

    facts: SessionFacts
    """As `SessionFacts.at_end` leaves them."""
    at: float
    """Unix seconds."""
    cause: Cause
    has_tool_calls: bool


@dataclass(slots=True)
class Return:
    """A session that was cut, and that a new one continues, for the one process that reports it."""

    facts: SessionFacts
    """Of the session that was cut, as `SessionFacts.at_end` leaves them, with its user."""
    after: float
    """Seconds since it was cut."""
    ended: bool
    """It is over already."""


def within(seconds: float) -> str:
    """Name how soon a client came back."""
    return next((name for name, most in WITHIN if seconds <= most), WITHIN[-1][0])
