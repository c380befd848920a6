"""What happened in one session since the last flush, ready to be merged or written.

Plain slots dataclasses: one of these is touched for every finished request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final, NamedTuple

from otel_mcp import semconv
from otel_mcp.model.state import EndReason, SessionState, ToolCall


@dataclass(slots=True)
class CallRecord:
    """One finished tool call, as the request path records it (see `ToolCall`)."""

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
    service_instance_id: str | None = None
    task: str | None = None
    arguments: object | None = None
    result: object | None = None
    rounds: int = 1
    input_wait: float = 0.0
    """Seconds, between these."""
    answers: str | None = None
    waiting: str | None = None


class OpenCall(NamedTuple):
    """One tool call in flight, as ``otel-mcp top`` shows it."""

    tool_name: str
    started_at: float
    """Unix seconds."""
    session_id: str | None
    service_instance_id: str


class Fact(NamedTuple):
    """One fact of a session that may be unknown."""

    name: str
    limit: int
    """Maximum characters of the value."""
    attribute: str | None
    """Attribute of the events and the span of a session."""
    at_end: bool
    """Kept apart from the document too, for the report of the end: 64 characters at most keep a session small."""


def _fact(limit: int = 1024, *, attribute: str | None = None, at_end: bool = False) -> Any:
    return field(default=None, metadata={"limit": limit, "attribute": attribute, "at_end": at_end})


@dataclass(slots=True)
class SessionFacts:
    """The facts of a session, without its counts: the first line of its document.

    A new fact is one line here, and one in the public `SessionState`: document, scripts, events and the report of
    the end take it from `FACTS`. `None` and empty mean "not known here": they never erase what another process wrote.
    """

    session_id: str
    created_at: float
    """Unix seconds; the earliest of all processes wins."""
    limit: float
    """Seconds without activity after which this session ends."""
    user_agent: str | None = _fact(attribute=semconv.USER_AGENT)
    client_name: str | None = _fact(64, attribute=semconv.CLIENT_NAME, at_end=True)
    client_version: str | None = _fact(64, attribute=semconv.CLIENT_VERSION, at_end=True)
    protocol_version: str | None = _fact(64, attribute=semconv.MCP_PROTOCOL_VERSION, at_end=True)
    source: str | None = _fact(64, attribute=semconv.SESSION_SOURCE, at_end=True)
    conversation_id: str | None = _fact()
    previous_id: str | None = _fact(attribute=semconv.SESSION_PREVIOUS_ID, at_end=True)
    synthetic_type: str | None = _fact(64, attribute=semconv.SYNTHETIC_TYPE, at_end=True)
    tenant: str | None = _fact(64, attribute=semconv.TENANT, at_end=True)
    principal: str | None = None
    """Keyed hash of the user that it is bound to, and that speaks here; `None` = nobody. In no document."""
    visitor: str | None = None
    """Keyed hash of caller, address and client, the same for each of its sessions; the first one known stands.
    `None` = neither caller nor an address of its own is known. In no document."""
    opened: bool = False
    """Whether this process has seen the `initialize` that began it; its user owns the session."""
    lasting: bool = False
    """Whether it spans many transport sessions, each of which the client closes after a call: none is its end."""

    @classmethod
    def of(cls, state: SessionState, created_at: float, limit: float) -> SessionFacts:
        """Return the facts in a document."""
        facts = cls(state.session_id, created_at, limit)
        for fact in FACTS:
            setattr(facts, fact.name, getattr(state, fact.name))
        return facts

    def known(self) -> dict[str, Any]:
        """Return the known facts, without id and times."""
        return {fact.name: value for fact in FACTS if (value := getattr(self, fact.name))}

    def with_news(self, news: SessionFacts) -> SessionFacts:
        """Return these facts, updated with those known to `news`."""
        known = news.known()
        stands = {"limit": self.limit, "source": self.source} if self.lasting and not news.lasting else {}
        known |= {
            "created_at": min(self.created_at, news.created_at),
            "limit": news.limit,
            "opened": self.opened or news.opened,
            "visitor": self.visitor or news.visitor,
            "lasting": self.lasting or news.lasting,
        }
        return replace(self, **(known | stands))

    def at_end(self) -> SessionFacts:
        """Return the facts that the report of an end repeats."""
        facts = SessionFacts(self.session_id, self.created_at, self.limit, visitor=self.visitor)
        for fact in FACTS:
            if fact.at_end:
                setattr(facts, fact.name, getattr(self, fact.name))
        return facts


FACTS: Final = tuple(Fact(each.name, **each.metadata) for each in fields(SessionFacts) if each.metadata)


@dataclass(slots=True)
class SessionDelta:
    """The mergeable part: counts, newest calls, last activity, perhaps the end."""

    facts: SessionFacts
    last_activity: float
    """Unix seconds."""
    first_activity: float | None = None
    """Unix seconds; set by the buffer, so that a long outage does not look like a gap."""
    began: float = 0.0
    """Unix seconds at which the newest of its requests began, which may be before a cut that it ends after; 0 = not
    known."""
    requests: int = 0
    errors: int = 0
    call_count: int = 0
    """Number of all calls of this delta, also of those removed from `calls`."""
    calls: list[CallRecord] = field(default_factory=list[CallRecord])
    """The newest, oldest first, bounded by the buffer."""
    context: int = 0
    """Bytes of results for the model: of tools, prompts and resources, and the list of tools."""
    listed: int = 0
    """Bytes of the list of tools among them."""
    has_rounds: bool = False
    """Whether some calls may be rounds of one logical call: see `model.rounds`."""
    callers: set[str] = field(default_factory=set[str])
    """Callers of tools, as keyed hash or address, "" if neither is known; only counted."""
    content: int = 0
    """Bytes of arguments and results in `calls`, if these are kept; set by the buffer."""
    ended: tuple[float, EndReason] | None = None
    """Unix seconds and reason."""
    touch_key: tuple[str, float] | None = None
    """An agreement key (see `SessionStore.get_or_set`) to keep alive, with its TTL in seconds."""

    @property
    def is_mere_end(self) -> bool:
        """Whether it has only an end: it begins no session, and changes none that has ended."""
        return self.ended is not None and not self.requests and not self.call_count


@dataclass(slots=True, frozen=True, eq=False, weakref_slot=True)
class Flush:
    """A delta on its way to the store, which applies each (token, sequence) once.

    What was sent and not answered is sent again as it is: it may have been
    written after all. The store may remember something about it for as long as the sender keeps it.
    """

    delta: SessionDelta
    token: str
    """Of the sending process, not used again after a restart or a fork."""
    sequence: int
    """Grows with every flush of the process."""


@dataclass(slots=True)
class WriteResult:
    """The store's answer to one flush."""

    session_id: str
    created: bool = False
    """This flush created the session."""
    resumed: bool = False
    """The session was last active before the process that now serves it began."""
    total_calls: int = 0
    duplicate: bool = False
    """The flush is a duplicate, which the store ignored."""
    ended: bool = False
    """This flush ended the session: its sender holds the end, to report it when other processes have written. Set on
    one flush across all processes."""
    brief: bool = False
    """With `ended`: its client has closed it after a call at most, and may go on with it in another one."""
    expired: EndedSession | None = None
    """An earlier session under this id, whose end was not reported: the caller has to report it."""
    after_end: bool = False
    """The session had ended before: counted where its document still stands, not reopened."""
    back_after: float | None = None
    """Seconds since the session was cut; it continues with this flush."""
    agreed_session: str | None = None
    """Another session on which the replicas have agreed for the client of this one."""
    agreed_successor: str | None = None
    """Another session on which the replicas have agreed to continue `SessionFacts.previous_id`."""
    waits: Sequence[tuple[str, float]] = ()
    """Inputs that arrived with this flush: tool, and seconds that its call had waited."""
    retry: str | None = None
    """Why it was not written, or is not known to be: send the same flush again."""
    owner: str | None = None
    """Keyed hash of another user, who owns the session: nothing was written."""
    refused: str | None = None
    """Why this flush can never be written: ``foreign``, the key holds a value not ours; with `after_end`, ``ended``."""


@dataclass(slots=True)
class EndedSession:
    """An ended session, for the process that claimed its end and reports it."""

    facts: SessionFacts
    """As `SessionFacts.at_end` leaves them."""
    reason: EndReason
    last_activity: float
    """Unix seconds; for an expired session its end as well."""
    tool_call_count: int
    error_count: int
    request_count: int
    context_bytes: int = 0
    calls: list[ToolCall] = field(default_factory=list[ToolCall])
    """The newest, by the time at which they began."""
    findings: list[str] = field(default_factory=list[str])
    """Patterns found while it was running."""
    outcome: str | None = None
    """Set when it is reported."""

    @property
    def session_id(self) -> str:
        return self.facts.session_id


@dataclass(slots=True)
class Known:
    """What the store knows about an id that is new to this process."""

    exists: bool
    """Whether the id has a live document."""
    ended: bool = False
    successor: str | None = None
    """The session that continues it, where one was agreed."""
    facts: SessionFacts | None = None
    has_tool_calls: bool = False
    """Whether a tool has been called in it."""
    may_go_on: bool = False
    """A transport session of the same client may be part of it: it has a call at most, or lasts over several; also one
    that its client has just closed, which exists and has ended."""
    principal: str | None = None
    """Keyed hash of the user that it is bound to, also where it has ended, or has still to be written."""
    opened: bool = False
    """Its `initialize` has decided that, or that it is nobody's."""
    client: Mapping[str, str] = field(default_factory=dict[str, str])
    """Facts of it that its `initialize` has shown, also where it has still to be written."""

    @property
    def live(self) -> SessionFacts | None:
        """Its facts, if it lives."""
        return self.facts if self.exists and not self.ended else None
