"""The interface of session stores; `memory` and `redis/` implement it.

The flusher and the public API of sessions use a store; on the path of a request
only `lookups` does, for 50 ms at most. Instants are Unix seconds of this machine.
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
"""Seconds that an ended document stays, for requests in flight."""
ABANDONED: Final = 7 * 86_400.0
"""Seconds that an end waits to be reported if no process of the service runs; after that the session is gone."""

BRIEF: Final = 60.0
"""Seconds in which a client that closed a session after at most one call may continue it in another."""
VISITS: Final = 10
"""Maximum number of sessions without a call that are remembered per visitor."""
VISITS_KEPT: Final = 86_400.0
"""Seconds for which they are remembered, from the last one."""


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
    """The store cannot be used at present; commands that were sent may have been executed or not.

    `denied` = it answers, but refuses access: a wrong password, a missing
    permission. An early retry would not help.
    """

    def __init__(self, reason: str, *, denied: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.denied = denied


class Change(NamedTuple):
    """A change of one entry of a small table, made only if the entry still is `former`; ``None`` = absent."""

    former: str | None
    new: str | None
    place: tuple[str, str] | None = None
    """Name and text of another entry, which is removed in exchange: both are changed or neither."""


class SessionStore(Protocol):
    """Sessions shared by all processes that use the same store.

    Every method may raise `StoreDown`.
    """

    @property
    def ahead(self) -> float:
        """Seconds that the clock shared by all processes is ahead of this machine's."""
        ...

    async def apply(self, deltas: Sequence[Flush]) -> list[WriteResult]:
        """Write each flush once, even if it is sent several times; answers are in the same order.

        A session's failure is in its own answer (`WriteResult.retry`,
        `WriteResult.refused`) and affects no other. At most one flush per session.
        A flush to the session of another user is not written (`WriteResult.owner`).
        """
        ...

    async def load(self, session_id: str) -> SessionState | None:
        """Return the document, or `None` if there is none that can be read."""
        ...

    async def save(self, state: SessionState, *, only_new: bool = False) -> WriteResult:
        """Write a document that the user changed or made.

        Its facts (if given), attributes and extra fields replace those in the
        store. An existing session keeps its calls and counters, since other
        processes still count; a new one starts with those given.
        With `only_new` an existing document is not changed.
        """
        ...

    async def delete(self, session_id: str) -> bool:
        """Remove a session at once; `False` if there was none."""
        ...

    async def describe(self, session_id: str) -> Known:
        """Return what the store knows about an id that is new to this process."""
        ...

    async def bind(self, facts: SessionFacts) -> None:
        """Note the user and the client of a session right after `initialize`; its document is written later."""
        ...

    async def get(self, key: str) -> str | None:
        """Return the agreed value of `key`, if there is one."""
        ...

    async def get_or_set(self, key: str, candidate: str, ttl: float) -> str:
        """Return the value that all replicas use for `key`: the first candidate, for `ttl` seconds (0: forever)."""
        ...

    async def set_value(self, key: str, value: str, ttl: float) -> None:
        """Set the value that all replicas use for `key`, for `ttl` seconds, and replace any other."""
        ...

    async def get_or_set_successor(self, old_id: str, candidate: str, user: str | None = None) -> str:
        """Return the id of the one session that continues `old_id` on all replicas.

        If `old_id` belongs to another user than `user`, it is `candidate`, which is not stored.
        """
        ...

    async def entries(self, table: str, names: Sequence[str] | None = None) -> dict[str, str]:
        """Return entries of a small table of the service: those of `names` that exist, or all."""
        ...

    async def swap(self, table: str, changes: Mapping[str, Change], most: int, kept: float) -> set[str]:
        """Change the entries of a table that still have their former values.

        Args:
            table: its name.
            changes: by the names of the entries, in the order in which they are made.
            most: maximum number of entries; beyond it, none is added.
            kept: seconds after the last change until the table is removed.

        Returns:
            The names of the entries that were not changed.
        """
        ...

    async def claim_expired(self, now: float, limit: int) -> list[EndedSession]:
        """Claim sessions that had expired at `now`, and ends that others left, for the caller to report.

        Pass the reported ones to `ack_ends`. Each goes to one caller in all processes, and to another one only
        if the first does not acknowledge it within about a minute.
        """
        ...

    async def claim_held(self, session_ids: Sequence[str], now: float) -> list[EndedSession]:
        """Claim ends that this process holds (`WriteResult.ended`), as of `now`, except those already reported.

        Any process gets those that stay held from `claim_expired`, within about a minute.
        """
        ...

    async def ack_ends(self, ended: Sequence[EndedSession]) -> None:
        """Acknowledge ends that have been reported, and write their outcomes into the documents."""
        ...

    async def visits(self, ended: Sequence[EndedSession]) -> list[list[float]]:
        """Return, for each end, when its visitor began sessions in which no tool was called.

        Unix seconds of the newest few, this session included; empty if the session has a call, which removes them all.
        """
        ...

    async def callers(self, day: str, hashes: Sequence[str]) -> int:
        """Add callers to those of a UTC day; return their approximate number in all processes."""
        ...

    async def mark(self, session_id: str, finding: str) -> bool:
        """Note a pattern of a running session in its document; `True` for the first process that does."""
        ...

    async def cut(self, refusals: Sequence[Refusal], gone: Sequence[str] = ()) -> list[Interruption]:
        """Mark live sessions that a server refused as cut; return each cut to one caller in all processes.

        `gone` are processes that have ended, so their sessions are at no other replica.

        Skips sessions of other services or users, ended ones, and those already cut that wait for their
        client.
        """
        ...

    async def back(self, visitor: str, at: float, session_id: str) -> Return | None:
        """Return one session of `visitor` that was cut before `at`, when its visitor began `session_id`. Each is
        returned once; the same arguments get it again.
        """
        ...

    async def active(self) -> int:
        """Count live sessions of the service in all processes."""
        ...

    async def aclose(self) -> None:
        """Close the connections of the running loop; the next use opens them again."""
        ...
