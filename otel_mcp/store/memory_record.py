"""One session in memory: the rules of ``lua/`` for Redis, in Python."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from pydantic_core import from_json

from otel_mcp.bounded import remember
from otel_mcp.model.delta import CallRecord, EndedSession, SessionDelta, SessionFacts, WriteResult
from otel_mcp.model.rounds import add_calls
from otel_mcp.model.session import LOST, Interruption, Refusal, Return
from otel_mcp.model.state import Cause, Ended, EndReason, Interrupted, SessionState
from otel_mcp.store import document as text
from otel_mcp.store.base import GRACE, VISITS

_VARIANTS: Final = 7
"""Maximum number of fact sets remembered as merged, so that processes with different ones do not take turns."""

_MAX_CALLERS: Final = 10_000


@dataclass(slots=True)
class Record:
    """The data of one session. Instants are Unix seconds."""

    facts: SessionFacts
    last_activity: float = 0.0
    calls_total: int = 0
    errors: int = 0
    requests: int = 0
    context: int = 0
    listed: int = 0
    calls: list[CallRecord] = field(default_factory=list[CallRecord])
    attributes: str = ',"attributes":{}'
    """JSON text of attributes and extras."""
    ended: tuple[float, EndReason | Literal["deleted"]] | None = None
    unreported: bool = False
    """Its end has still to be reported."""
    findings: list[str] = field(default_factory=list[str])
    outcome: str | None = None
    document_until: float = 0.0
    until: float = 0.0
    """When an ended session is forgotten."""
    answers: dict[str, tuple[int, WriteResult]] = field(default_factory=dict[str, "tuple[int, WriteResult]"])
    """The sequence number of each process's last flush, and its answer."""
    not_before: float = 0.0
    """The end of an earlier session under the id."""
    merged: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    interrupted: tuple[float, Cause] | None = None
    """The newest cut."""
    causes: set[Cause] = field(default_factory=set["Cause"])
    waits: bool = False
    """It was cut, and its client is not back yet."""
    opened: bool = False
    """Its user is that of `initialize`."""

    @property
    def is_brief(self) -> bool:
        """Whether its client closed it after at most one call, and its end is not reported yet."""
        closed = self.ended is not None and self.ended[1] == "client_delete" and self.facts.visitor is not None
        return closed and self.unreported and (self.facts.lasting or self.calls_total <= 1)

    @property
    def deadline(self) -> float:
        return self.last_activity + self.facts.limit

    def has_document(self, now: float) -> bool:
        return self.document_until > now

    def is_succeeded_by(self, delta: SessionDelta) -> bool:
        """Return whether `delta` belongs to a new session under the id of this ended one."""
        assert self.ended is not None
        at, reason = self.ended
        if reason == "expired":
            # Not by the last activity, which requests in flight have changed.
            return first_activity(delta) > at + self.facts.limit
        # After a `delete` the process may still use the session that it knows.
        return delta.facts.created_at > at + 1.0 or (reason == "deleted" and first_activity(delta) > at)

    def is_bound_to_another(self, facts: SessionFacts) -> bool:
        """Return whether the session is another user's; `initialize` decides its user, even if written late."""
        bound = self.facts.principal
        return bound is not None and bound != facts.principal and (self.opened or not facts.opened)

    def add(self, delta: SessionDelta, cap: int, *, late: bool) -> list[tuple[str, float]]:
        """Count a delta; return the waits for input that it ends."""
        facts, news = self.facts, delta.facts.known()
        facts.visitor = facts.visitor or delta.facts.visitor
        if not self.merged and not self.opened and facts.principal is None:
            facts.principal = delta.facts.principal  # Of a session of the user's API it is the first message.
        if news not in self.merged:
            self.merge(delta.facts)
            self.merged = [news, *self.merged[: _VARIANTS - 1]]
        if delta.facts.opened and not self.opened:
            facts.principal, self.opened = delta.facts.principal, True
        facts.visitor = facts.visitor or delta.facts.visitor
        if delta.facts.created_at > self.not_before:
            facts.created_at = min(facts.created_at, delta.facts.created_at)
        if not late and not (facts.lasting and not delta.facts.lasting):
            facts.limit = delta.facts.limit
        facts.lasting = facts.lasting or delta.facts.lasting
        self.last_activity = max(self.last_activity, delta.last_activity)
        self.calls_total += delta.call_count
        self.errors += delta.errors
        self.requests += delta.requests
        self.context += delta.context
        self.listed += delta.listed
        newest, waits = delta.calls[-cap:], list[tuple[str, float]]()
        if delta.has_rounds:
            waits = add_calls(self.calls, newest)
            self.calls_total -= len(waits)
        else:
            self.calls += newest
        if len(self.calls) > 2 * cap or (len(newest) == cap and delta.call_count > cap):
            del self.calls[:-cap]
        return waits

    def merge(self, facts: SessionFacts) -> None:
        for name, value in text.known(facts).items():
            if name != "source" or facts.lasting or not self.facts.lasting:
                setattr(self.facts, name, value)

    def cut(self, refusal: Refusal) -> Interruption | None:
        """Mark that the server refused this live session."""
        cause: Cause = "replica" if refusal.served is None else "idle_reaper"  # No other process could have served it.
        is_over = self.deadline <= refusal.at or (self.ended is not None and self.ended[1] != "server_closed")
        is_over = is_over or self.facts.lasting or self.waits
        if is_over or self.facts.principal not in (None, refusal.user) or cause in self.causes:
            return None
        self.interrupted, self.waits = (refusal.at, cause), True
        self.causes.add(cause)
        return Interruption(self.facts.at_end(), refusal.at, cause, self.calls_total > 0)

    def come_back(self, first: float, began: float) -> float | None:
        """Note that it continues with requests, the newest begun at `began`; return the seconds since the cut."""
        if self.interrupted is None or not self.waits:
            return None
        since = (min(first, began) if first > self.interrupted[0] else began) - self.interrupted[0]
        if not 0 < since <= LOST:
            return None
        self.waits = False
        return since

    def end(self, at: float, reason: EndReason, now: float) -> None:
        self.last_activity = max(self.last_activity, at)
        self.ended, self.until, self.unreported = (at, reason), now + GRACE, True
        if self.has_document(now):
            self.document_until = now + GRACE

    def mark(self, finding: str) -> bool:
        """Note a pattern of the running session; `False` if it is noted already."""
        if self.ended is not None or finding in self.findings:
            return False
        self.findings.append(finding)
        return True

    def report(self) -> EndedSession:
        """Return the end, which then counts as reported."""
        self.unreported = False
        reason = "expired" if self.ended is None else self.ended[1]
        reason = "server_closed" if reason == "deleted" else reason
        counts = (self.calls_total, self.errors, self.requests, self.context)
        calls = sorted(map(text.tool_call, self.calls), key=lambda call: call.started_at)
        return EndedSession(self.facts.at_end(), reason, self.last_activity, *counts, calls, list(self.findings))

    def state(self, service: str) -> SessionState:
        """Return the document."""
        cut = self.interrupted
        ended = self.ended and Ended.model_validate({"at": text.moment(self.ended[0]), "reason": self.ended[1]})
        given: dict[str, Any] = {
            **from_json(text.utf8(f"{{{self.attributes[1:]}}}")),
            **self.facts.known(),
            "session_id": self.facts.session_id,
            "service": text.clip(service),
            "created_at": text.moment(self.facts.created_at),
            "last_activity": text.moment(self.last_activity),
            "tool_calls": [text.tool_call(made) for made in self.calls],
            "tool_call_count": self.calls_total,
            "error_count": self.errors,
            "request_count": self.requests,
            "context_bytes": self.context,
            "catalogue_bytes": self.listed,
            "findings": self.findings,
            "outcome": self.outcome,
            "ended": ended,
            "interrupted": cut and Interrupted.model_construct(at=text.moment(cut[0]), cause=cut[1]),
        }
        return SessionState.model_validate(given)


class CutSessions:
    """The part of the memory store for sessions that the server refused."""

    _records: OrderedDict[str, Record]
    _has_cut = False

    async def cut(self, refusals: Sequence[Refusal], gone: Sequence[str] = ()) -> list[Interruption]:
        found = [(self._records.get(refusal.session_id), refusal) for refusal in refusals]
        cuts = [record.cut(refusal) for record, refusal in found if record is not None]
        self._has_cut = self._has_cut or any(cuts)
        return [cut for cut in cuts if cut is not None]

    async def back(self, visitor: str, at: float, session_id: str) -> Return | None:
        for record in self._records.values() if self._has_cut else ():
            if record.waits and record.facts.visitor == visitor and (since := record.come_back(at, at)) is not None:
                facts = record.facts.at_end()
                facts.principal = record.facts.principal
                return Return(facts, since, record.ended is not None)
        return None


class Alone:
    """The part of the memory store that in Redis all processes share."""

    def __init__(self) -> None:
        self._callers: tuple[str, set[str]] = "", set()

    async def callers(self, day: str, hashes: Sequence[str]) -> int:
        if day != self._callers[0]:
            self._callers = day, set()
        known = self._callers[1]
        known.update(hashes[: max(_MAX_CALLERS - len(known), 0)])
        return len(known)


class Visits:
    """The times at which visitors began sessions without a call; for `most` visitors."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._starts: OrderedDict[str, list[float]] = OrderedDict()

    def add(self, end: EndedSession) -> list[float]:
        """Note an ended session; return the starts of its visitor's sessions since the last one with a call."""
        visitor = end.facts.visitor
        if visitor is None or end.tool_call_count:
            self.forget(visitor)
            return []
        starts = self._starts.pop(visitor, [])
        starts = sorted({*starts, end.facts.created_at})[-VISITS:]
        remember(self._starts, visitor, starts, self._most)
        return starts

    def forget(self, visitor: str | None) -> None:
        """Forget the times of a visitor that calls tools."""
        self._starts.pop(visitor or "", None)


def first_activity(delta: SessionDelta) -> float:
    """Return when a delta begins, in Unix seconds."""
    return delta.last_activity if delta.first_activity is None else min(delta.first_activity, delta.last_activity)
