"""Arguments of the scripts and what their replies mean. No I/O."""

from __future__ import annotations

import zlib
from typing import Any, Final

from pydantic import ValidationError

from otel_mcp.model.delta import FACTS, EndedSession, Flush, Known, SessionFacts, WriteResult
from otel_mcp.model.state import SessionState
from otel_mcp.store import document as text
from otel_mcp.store.base import ProducerId
from otel_mcp.store.redis.keys import agreed_id

AT_END: Final = tuple(fact.name for fact in FACTS if fact.at_end)
"""The facts that the report of an end repeats."""
LONGEST: Final = 315_360_000.0
"""Seconds, ten years: the longest limit and lifetime that still counts as a limit."""
REPEATED: Final = 2
EXPIRED: Final = 3
LATE: Final = 4
FOREIGN: Final = 5
FOREIGN_NOW: Final = 6
LOST: Final = 7
BOUND: Final = 8
"""What the scripts answer, see ``flush.lua``."""
_REFUSED: Final = {FOREIGN: "foreign", FOREIGN_NOW: "foreign", LOST: "ended"}
LEASE: Final = 60_000_000
"""Microseconds after which a claimed end that nobody settled falls to another process."""


class Writer:
    """Turns flushes and documents into arguments, in the time of the server."""

    def __init__(self, service: str, ttl: float, cap: int, process: ProducerId) -> None:
        self._service = service
        self.owner = f"{zlib.crc32(service.encode('utf-8', 'replace')):08x}"
        """Digest of the service, by which a session says whose it is."""
        self._ttl = max(round(min(ttl, LONGEST) * 1000), 1)
        self._cap = cap
        self._process = process
        self.offset = 0.0
        """Seconds that the clock of the server is ahead of ours."""

    def instant(self, seconds: float) -> int:
        """Microseconds in the time of the server."""
        return text.micros(seconds + self.offset)

    def deadline(self, flush: Flush) -> float:
        """Unix seconds of the server after which the session is over."""
        delta = flush.delta
        last = delta.last_activity if delta.ended is None else max(delta.last_activity, delta.ended[0])
        return round(self.instant(last) / 1e6 + min(delta.facts.limit, LONGEST), 6)

    def flush(self, flush: Flush, now: float, *, told: bool = False) -> tuple[bytes, bytes, bytes]:
        """Arguments of ``flush.lua``; `told`: it has answered with the end of an earlier session before."""
        delta = flush.delta
        facts = text.utf8(text.facts(delta.facts, self._service))
        records = delta.calls[-self._cap :]
        last, created = self.instant(delta.last_activity), self.instant(delta.facts.created_at)
        first = last if delta.first_activity is None else min(self.instant(delta.first_activity), last)
        moment = self.instant(now)
        user = delta.facts.principal or ""
        ended = ""
        if delta.ended is not None:
            at = self.instant(delta.ended[0])
            ended = f',"{text.iso(at)}","{delta.ended[1]}",{at}'
        scalars = (
            f'["{flush.token}",{flush.sequence},{moment},{first},"{text.iso(first)}",{last},"{text.iso(last)}",'
            f'{created},"{text.iso(created)}",{delta.requests},{delta.errors},{delta.call_count},{len(records)},'
            f"{text.micros(min(delta.facts.limit, LONGEST))},{self.instant(self._process.started_at)},"
            f'"{zlib.crc32(facts):08x}",{self._ttl},{self._cap},{moment + LEASE},"{user}",'
            f'"{self.owner}",{told:d},{delta.facts.opened:d}{ended}]'
        )
        return scalars.encode(), facts, text.utf8(text.calls(records))

    def save(self, state: SessionState, now: float, limit: float) -> tuple[bytes, ...]:
        """Arguments of ``save.lua`` but for the last."""
        facts = SessionFacts.of(state, 0.0, limit)
        last = self.instant(text.seconds(state.last_activity) if state.last_activity else now)
        created = self.instant(text.seconds(state.created_at) if state.created_at else now)
        kept = state.tool_calls[-2 * self._cap :]
        scalars = (
            f'[{last},"{text.iso(last)}",{created},"{text.iso(created)}",{state.request_count},{state.error_count},'
            f"{max(state.tool_call_count, len(state.tool_calls))},{len(kept)},{text.micros(limit)},"
            f'{self.instant(self._process.started_at)},{self._ttl},"{self.owner}"]'
        )
        return (
            scalars.encode(),
            text.utf8(text.facts(facts, self._service)),
            text.utf8(text.attributes(state.attributes, state.model_extra)),
            text.utf8(text.calls([text.record(call) for call in kept])),
        )


def is_of(state: SessionState, service: str) -> bool:
    """Whether a document is this service's: one that names none is anybody's."""
    return state.service is None or state.service == service[: text.CLIP]


def applied(flush: Flush, reply: list[Any]) -> WriteResult:
    """What ``flush.lua`` answered; status 3 is not for the caller."""
    status, total, flags, report = reply
    session_id = flush.delta.facts.session_id
    if status == BOUND:
        return WriteResult(session_id, owner=flags.decode(), total_calls=total)
    ended = ended_session(session_id, report) if report else None
    if status == REPEATED and b"e" in flags and ended is None:
        ended = _own_end(flush)
    return WriteResult(
        session_id=session_id,
        created=b"c" in flags,
        resumed=b"r" in flags,
        total_calls=total,
        duplicate=status == REPEATED,
        ended=ended,
        after_end=status in (LATE, LOST) or (status == REPEATED and b"l" in flags),
        refused=_REFUSED.get(status),
    )


def _own_end(flush: Flush) -> EndedSession | None:
    """The end that a flush has brought, where another session has begun under the id before it was answered."""
    delta = flush.delta
    if delta.ended is None:
        return None
    last = max(delta.last_activity, delta.ended[0])
    return EndedSession(delta.facts.at_end(), delta.ended[1], last, delta.call_count, delta.errors, delta.requests)


def ended_session(session_id: str, report: list[Any]) -> EndedSession:
    """The report of an end, as ``session.lua`` collects it."""
    end, created, limit, last, calls, errors, requests, *labels = report
    reason = end.split(b" ")[1].decode()
    facts = SessionFacts(session_id, int(created.split(b" ")[0]) / 1e6, int(limit) / 1e6)
    for name, label in zip(AT_END, labels, strict=True):
        setattr(facts, name, None if label is None else label.decode())
    return EndedSession(
        facts,
        # An operator asked for it.
        "server_closed" if reason == "deleted" else reason,
        int(last.split(b" ")[0]) / 1e6,
        int(calls),
        int(errors),
        int(requests),
    )


def known(session_id: str, reply: list[Any], service: str) -> Known:
    """What ``recall.lua`` answered; the session of another service is over for this one."""
    exists, ended, successor, bound, opened = reply[:5]
    after = agreed_id(successor)
    user = None if bound is None else bound.decode()
    if not exists:
        return Known(exists=False, ended=bool(ended), successor=after, principal=user, opened=opened is not None)
    try:
        state = SessionState.model_validate_json(reply[5])
    except ValidationError:
        return Known(exists=False, successor=after)
    if not is_of(state, service):
        return Known(exists=False, ended=True, successor=after)
    facts = SessionFacts.of(state, int(reply[6]) / 1e6, int(reply[7]) / 1e6)
    facts.principal = user
    worked = int(reply[8] or 0) > 0
    return Known(True, successor=after, facts=facts, worked=worked, principal=user, opened=opened is not None)
