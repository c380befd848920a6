"""What a session store can do; `memory` and `redis/` do it.

The flusher and the public API of sessions talk to a store; on the path of a
request only `lookups` does, for 50 ms at most. Instants are Unix seconds of this machine.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Final, NamedTuple, Protocol

from otel_mcp.model.delta import EndedSession, Flush, Known, SessionFacts, WriteResult
from otel_mcp.model.session import Interruption, Refusal, Return
from otel_mcp.model.state import SessionState

GRACE: Final = 600.0
"""Seconds that an ended document stays, for what was in flight."""
ABANDONED: Final = 7 * 86_400.0
"""Seconds that ends wait to be reported where no process of the service runs; then nothing is left of the session."""

BRIEF: Final = 60.0
"""Seconds in which a client that has closed a session after a call at most may go on with it in another one."""
VISITS: Final = 10
"""Sessions without a call that are remembered of a visitor."""
VISITS_KEPT: Final = 86_400.0
"""Seconds after the last one."""


class ProducerId:
    """Identifies this process to the store: a unique token, a sequence of flushes, and when it began to serve."""

    __slots__ = ("next_sequence", "started_at", "token")

    def __init__(self) -> None:
        self.token = secrets.token_urlsafe(8)
        self.started_at = time.time()
        """Unix seconds."""
        self.next_sequence: Callable[[], int] = count(1).__next__
        """Returns the number of the next flush."""


class StoreDown(Exception):
    """The store cannot be used at present; whatever was sent may have been done or not.

    `denied` = it answers, but does not let us in: a wrong password, a missing
    permission. Asking again soon would not help.
    """

    def __init__(self, reason: str, *, denied: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.denied = denied


class Change(NamedTuple):
    """A change of one entry of a small table, made where that is still what it was; ``None`` = not there."""

    former: str | None
    new: str | None
    place: tuple[str, str] | None = None
    """Name and text of another entry, which goes for it: both are changed or neither."""


class SessionStore(Protocol):
    """Sessions shared by all processes that use the same store.

    Every method may raise `StoreDown`.
    """

    @property
    def ahead(self) -> float:
        """Seconds that the clock by which all processes go is ahead of this machine's."""
        ...

    async def apply(self, deltas: Sequence[Flush]) -> list[WriteResult]:
        """Write each flush once, however often it is sent; answers are in the same order.

        One session's failure is in its own answer (`WriteResult.retry`,
        `WriteResult.refused`) and stops no other. At most one flush a session.
        What comes under a session of another user is not written (`WriteResult.owner`).
        """
        ...

    async def load(self, session_id: str) -> SessionState | None:
        """Return the document, or `None` where there is none that can be read."""
        ...

    async def save(self, state: SessionState, *, only_new: bool = False) -> WriteResult:
        """Write a document of the user's.

        Its facts (where given), attributes and extra fields replace those of
        the store. Calls and counters of a session that exists stand, since
        other processes go on counting; a new one starts with those given.
        With `only_new` a document that is there stands as it is.
        """
        ...

    async def delete(self, session_id: str) -> bool:
        """Remove a session at once; `False` where there was none."""
        ...

    async def describe(self, session_id: str) -> Known:
        """Return what is known of an id that this process meets for the first time."""
        ...

    async def bind(self, facts: SessionFacts) -> None:
        """Note whose a session is that has just shaken hands, and its client; it is written later."""
        ...

    async def get(self, key: str) -> str | None:
        """Return the value that was agreed on under `key`, if there is one."""
        ...

    async def get_or_set(self, key: str, candidate: str, ttl: float) -> str:
        """Return the value that all replicas have under `key`: the first candidate, for `ttl` seconds (0: for good)."""
        ...

    async def set_value(self, key: str, value: str, ttl: float) -> None:
        """Set the value that all replicas have under `key` for `ttl` seconds, whatever it was."""
        ...

    async def get_or_set_successor(self, old_id: str, candidate: str, user: str | None = None) -> str:
        """Return the id of the one session that continues `old_id` on all replicas.

        Where that is bound to another than `user`, it is `candidate`, and no other process learns of it.
        """
        ...

    async def entries(self, table: str, names: Sequence[str] | None = None) -> dict[str, str]:
        """Return the entries of a small table of the service: these, where they are there, or all."""
        ...

    async def swap(self, table: str, changes: Mapping[str, Change], most: int, kept: float) -> set[str]:
        """Change entries of a table that are still what they were.

        Args:
            table: its name.
            changes: by the names of the entries, in the order in which they are made.
            most: how many entries there are at most; what is more is not added.
            kept: seconds after which the table is forgotten if nothing more is changed.

        Returns:
            The names of those that are not changed.
        """
        ...

    async def claim_expired(self, now: float, limit: int) -> list[EndedSession]:
        """Claim sessions whose time was over at `now`, and ends left by others, for the caller to report.

        What is reported goes to `ack_ends`. Each is given to one caller in all processes, and to another one only
        if the first does not acknowledge it within a minute or so.
        """
        ...

    async def claim_held(self, session_ids: Sequence[str], now: float) -> list[EndedSession]:
        """Claim ends that this process holds (`WriteResult.ended`), as of `now`; not those that are reported already.

        Whatever stays held falls to `claim_expired` of any process within a minute or so.
        """
        ...

    async def ack_ends(self, ended: Sequence[EndedSession]) -> None:
        """Acknowledge ends that have been reported, and write their outcomes into the documents."""
        ...

    async def visits(self, ended: Sequence[EndedSession]) -> list[list[float]]:
        """Return, for each of these ends, when its visitor has begun the sessions in which no tool was called.

        Unix seconds, this session's included, the newest few; none where the session has a call, which forgets them.
        """
        ...

    async def callers(self, day: str, hashes: Sequence[str]) -> int:
        """Add callers to those of a UTC day; return about how many there are by now, in all processes."""
        ...

    async def mark(self, session_id: str, finding: str) -> bool:
        """Note in its document a pattern that a running session shows; `True` to the first process that does."""
        ...

    async def cut(self, refusals: Sequence[Refusal], gone: Sequence[str] = ()) -> list[Interruption]:
        """Mark the sessions that a server refused though they live; of each cut one caller in all processes learns.

        `gone` are processes that have ended: what they had served is not at another replica.

        What is no session of this service, or another user's, or over, or waits already for its client to come
        back, is left out.
        """
        ...

    async def back(self, visitor: str, at: float, session_id: str) -> Return | None:
        """Give out one session of `visitor` that was cut before `at`, when its visitor began `session_id`; once, and
        again to the same question.
        """
        ...

    async def active(self) -> int:
        """Count live sessions of the service in all processes."""
        ...

    async def aclose(self) -> None:
        """Release what the running loop holds; the next use opens it again."""
        ...
