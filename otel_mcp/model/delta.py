"""What happened in one session since the last flush, ready to be merged or written.

Plain slots dataclasses: one of these is touched for every finished request.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Final, cast

from otel_mcp.model.state import EndReason


@dataclass(slots=True)
class CallRecord:
    """One finished tool call, as the request path leaves it (see `ToolCall`)."""

    tool_name: str
    request_id: str | int | None
    started_at: float
    """Unix seconds."""
    duration: float
    """Seconds."""
    error_type: str | None = None
    failure: str | None = None
    result_bytes: int | None = None
    arguments_digest: str | None = None
    trace_id: str | None = None
    span_id: str | None = None
    arguments: object | None = None
    result: object | None = None


@dataclass(slots=True)
class SessionFacts:
    """What is known of a session, other than its counts: the static head of its document.

    `None` and empty mean "not known here": they never erase what another
    process wrote.
    """

    session_id: str
    created_at: float
    """Unix seconds; the earliest that any process reports stands."""
    limit: float
    """Seconds without activity after which this session ends."""
    user_agent: str | None = None
    client_name: str | None = None
    client_version: str | None = None
    protocol_version: str | None = None
    source: str | None = None
    conversation_id: str | None = None
    previous_id: str | None = None
    principal: str | None = None
    """Keyed hash of the user that it is bound to, and that speaks here; `None` = nobody. In no document."""
    opened: bool = False
    """This process has seen the `initialize` that began it, so the user of that is the session's."""

    def known(self) -> dict[str, str]:
        """The facts that are known, but for id and times."""
        return {name: value for name in KNOWN if (value := getattr(self, name))}

    def with_news(self, news: SessionFacts) -> SessionFacts:
        """These facts and, over them, what `news` knows."""
        return replace(
            self,
            created_at=min(self.created_at, news.created_at),
            limit=news.limit,
            opened=self.opened or news.opened,
            **cast("Any", news.known()),
        )


KNOWN: Final = (
    "user_agent",
    "client_name",
    "client_version",
    "protocol_version",
    "source",
    "conversation_id",
    "previous_id",
)
"""The facts that may be unknown."""


@dataclass(slots=True)
class SessionDelta:
    """The mergeable part: counts, newest calls, last activity, perhaps the end."""

    facts: SessionFacts
    last_activity: float
    """Unix seconds."""
    first_activity: float | None = None
    """Unix seconds; the coalescer sets it, so that a long outage is not taken for a gap."""
    requests: int = 0
    errors: int = 0
    call_count: int = 0
    """All calls of this delta, also those that `calls` no longer holds."""
    calls: list[CallRecord] = field(default_factory=list[CallRecord])
    """The newest, oldest first, bounded by the coalescer."""
    content: int = 0
    """Bytes of arguments and results in `calls`, where these are kept at all; the coalescer weighs them."""
    ended: tuple[float, EndReason] | None = None
    """Unix seconds and reason."""
    touch_key: tuple[str, float] | None = None
    """An agreement key (see `SessionStore.get_or_set`) to keep alive, with its TTL in seconds."""


@dataclass(slots=True, frozen=True)
class Flush:
    """A delta on its way to the store, which applies each (token, sequence) once.

    What was sent and not answered is sent again as it is: it may have been
    written after all.
    """

    delta: SessionDelta
    token: str
    """Of the sending process, not used again after a restart or a fork."""
    sequence: int
    """Grows with every flush of the process."""


@dataclass(slots=True)
class WriteResult:
    """What the store answers to one flushed delta."""

    session_id: str
    created: bool = False
    """This flush made the session's record: the session has just begun."""
    resumed: bool = False
    """The session was last active before the process that now serves it began."""
    total_calls: int = 0
    duplicate: bool = False
    """The store had seen this very flush before and ignored it."""
    ended: EndedSession | None = None
    """Set on exactly one flush of an ended session across all processes."""
    expired: EndedSession | None = None
    """An earlier session under this id, whose end nobody had reported; this flush began another."""
    after_end: bool = False
    """The session had ended before: counted where its document still stands, not reopened."""
    agreed_session: str | None = None
    """Another session on which the replicas have agreed for the client of this one."""
    agreed_successor: str | None = None
    """Another session on which the replicas have agreed to continue `SessionFacts.previous_id`."""
    retry: str | None = None
    """Why it was not written, or is not known to be: send the same flush again."""
    owner: str | None = None
    """Keyed hash of the user to whom the session is bound, and who is another: nothing was written."""
    refused: str | None = None
    """Why this flush can never be written: ``foreign``, the key holds a value not ours; with `after_end`, ``ended``."""


@dataclass(slots=True)
class EndedSession:
    """The facts that the one process which claims an end reports."""

    session_id: str
    reason: EndReason
    created_at: float
    """Unix seconds."""
    last_activity: float
    """Unix seconds; for an expired session its end as well."""
    tool_call_count: int
    error_count: int
    request_count: int
    client_name: str | None = None
    client_version: str | None = None
    protocol_version: str | None = None
    source: str | None = None
    previous_id: str | None = None


@dataclass(slots=True)
class Known:
    """What a shared store knows of an id that this process meets for the first time."""

    exists: bool
    """There is a live document under that id."""
    ended: bool = False
    successor: str | None = None
    """The session that continues it, where one was agreed."""
    facts: SessionFacts | None = None
    worked: bool = False
    """A tool has been called in it."""
    principal: str | None = None
    """Keyed hash of the user that it is bound to, also where it has ended, or has still to be written."""
    opened: bool = False
    """That, or that it is nobody's, is what its `initialize` has said."""

    @property
    def live(self) -> SessionFacts | None:
        """Its facts, if it lives."""
        return self.facts if self.exists and not self.ended else None
