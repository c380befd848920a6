"""Records of sessions in one process: live ones, the one that a request claims, and those that a server cut.

A restarted server refuses a session that it does not know; its client is back soon, or lost.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from math import inf
from typing import Any, Final, get_args

from opentelemetry.trace import SpanContext

from otel_mcp.hashing import Whose
from otel_mcp.model.delta import Known, SessionFacts
from otel_mcp.model.state import Cause, SessionState
from otel_mcp.wire.jsonrpc import Failure

CAUSES: Final[tuple[Cause, ...]] = get_args(Cause)
"""Why sessions are cut."""
WITHIN: Final = (("1m", 60.0), ("5m", 300.0), ("30m", 1800.0))
"""How soon a client came back: the names, and the seconds up to which each applies."""
LOST: Final = WITHIN[-1][1]
"""Seconds after which a client that has not come back is lost: what it opens later is another visit."""


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller, as a keyed hash; empty where a request names none."""

    digest: str = ""
    user: str | None = None
    """The same, if it names a user: sessions are bound to it. A bare token binds none, since it may rotate."""


NOBODY: Final = Principal()


@dataclass(slots=True, eq=False)
class Session:
    """Shared by all its requests; never locked, never copied."""

    facts: SessionFacts
    last_activity: float
    """Unix seconds."""
    agreement: str | None = None
    """Key under which replicas agreed on an inferred session."""
    known: Known | None = None
    """What the store knew about the id when this session was proposed."""
    caller: str = ""
    """Digest of the caller with whom it began here, whether or not that is a user."""
    ended: bool = False
    superseded: bool = False
    """The store has another successor of its `previous_id`: only its own id still leads to it."""
    tool_calls: int = 0
    """Number of its tool calls known to this process."""
    failed: dict[str, Failure] | None = None
    """Tools whose last call in this process failed, and how; the newest few."""
    conversation: Session | None = None
    """The conversation, or the session over many transport sessions, that this transport session is part of."""
    continues: str | None = None
    """The ended session in which the same client recently made a call."""
    sampled: deque[SpanContext] | None = None
    """Spans of its calls in this process, to be linked by the session span; only if that is enabled."""
    attributes: dict[str, str] = field(default_factory=dict[str, str])
    """Span attributes, the same for every call of the session; refilled when the facts change."""
    id: str = field(init=False)

    def __post_init__(self) -> None:
        self.id = self.facts.session_id

    @property
    def source(self) -> str:
        return self.facts.source or "none"

    def is_live(self, now: float) -> bool:
        """Return whether it has not ended; as part of a conversation, whether that has not."""
        active = self.conversation or self
        return not (self.ended or active.ended) and now - active.last_activity < active.facts.limit

    def bind(self, principal: Principal) -> None:
        """Make it the session of the caller with whom it begins."""
        self.caller, self.facts.principal = principal.digest, principal.user

    def state(self) -> SessionState:
        """Return the public form: a copy without tool calls."""
        times = {"created_at": self.facts.created_at, "last_activity": self.last_activity}
        return SessionState.model_validate({"session_id": self.id, **times, **self.facts.known()})


@dataclass(slots=True)
class Claim:
    """The session that a request claims to belong to, before anything has checked it."""

    source: str
    key: str
    """The id for explicit sources, a fingerprint for inferred ones."""
    transport: bool = False
    """Whether the id is a transport id."""
    conversation_id: str | None = None
    principal: Principal = NOBODY
    derived: bool = False
    """Whether every replica computes the same key, so that the store need not be asked."""
    whose: Whose | None = None
    """Whose an id of ours is, seen from the caller; for ``another`` the key is the caller's own id instead."""
    forged: bool = False
    """Whether it looks like an id of ours, but has no valid signature."""
    fresh_until: float = -inf
    """Unix seconds until which the replica that gave out the id may not have written it."""
    session: Session | None = field(default=None, compare=False, repr=False)
    """The session that it led to last."""
    attributes: dict[str, Any] | None = field(default=None, compare=False, repr=False)
    """Cached span attributes of that session's calls."""
    made_of: tuple[str | None, ...] = field(default=(), compare=False, repr=False)
    """The facts that `attributes` were built from; rebuilt when one changes."""

    @property
    def inferred(self) -> bool:
        return self.source.startswith("inferred")


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
    """A cut session, for the process that reports it."""

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
    """Whether it has already ended."""


def within(seconds: float) -> str:
    """Name how soon a client came back."""
    return next((name for name, most in WITHIN if seconds <= most), WITHIN[-1][0])
