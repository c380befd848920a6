"""Follow sessions as replicas write them: which calls have landed since the last look.

The index says when the time of each session is over, which is its limit of silence after its last activity. So who was
active lately stands there in one span for each limit, however many sessions there are.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

from otel_mcp.cli.document import Call, Document
from otel_mcp.cli.reading import Member, Reader
from otel_mcp.settings import Settings

SLACK: Final = 60.0
"""Seconds that replicas may be behind, and clocks apart."""
_MEMBERS: Final = 5_000
"""Sessions of each limit that one look considers, at most."""
_DOCUMENTS: Final = 1_000
"""Sessions that one look reads, at most; of those that were active last."""
_AT_ONCE: Final = 250
"""Documents that one MGET brings."""
_KNOWN: Final = 20_000
"""Sessions that are remembered."""
_LIMITS: Final = 8
"""Limits of silence that are looked for, at most."""
_SAMPLE: Final = 50
"""Sessions from which limits are learned at first."""


@dataclass(slots=True)
class Landed:
    """One call that has landed, and its session."""

    document: Document
    call: Call

    @property
    def at(self) -> float:
        """When it was answered, in Unix seconds."""
        return self.call.started + self.call.duration


@dataclass(slots=True)
class _Known:
    """What is remembered of a session."""

    score: float
    calls: int
    newest: float
    """Unix seconds at which the newest call began."""


class Follower:
    """Finds the calls that have landed since it looked last."""

    def __init__(self, reader: Reader, settings: Settings, since: float = 0.0) -> None:
        """`since`: calls of so many seconds before now are found by the first look."""
        self._reader = reader
        self._begin = time.time() - since
        self._looked: float | None = None
        self._limits = [settings.session_ttl, settings.session_idle_gap]
        self._sessions: dict[str, _Known] = {}
        self.missed = 0
        """Calls that are known to have landed, and were not seen: there were too many at once."""

    async def look(self) -> list[Landed]:
        """The calls that have landed since the last look, in the order in which they were answered."""
        now = time.time()
        if self._looked is None:
            await self._learn(await self._reader.sample(_SAMPLE))
        oldest = (self._begin if self._looked is None else self._looked) - SLACK
        spans = [(oldest + limit, now + limit + SLACK) for limit in self._limits]
        members = {member.session_id: member for member in await self._reader.active(spans, _MEMBERS)}
        moved = [member for member in members.values() if not self._has_seen(member)]
        moved.sort(key=lambda member: member.score, reverse=True)
        landed: list[Landed] = []
        for at in range(0, min(len(moved), _DOCUMENTS), _AT_ONCE):
            chunk = moved[at : min(at + _AT_ONCE, _DOCUMENTS)]
            for document in await self._learn(chunk):
                landed += self._news(document, members[document.session_id].score, oldest)
        if len(moved) <= _DOCUMENTS:
            # Else the next look goes on with the rest.
            self._looked = now
        while len(self._sessions) > _KNOWN:
            del self._sessions[next(iter(self._sessions))]
        return sorted(landed, key=lambda each: each.at)

    def _has_seen(self, member: Member) -> bool:
        known = self._sessions.get(member.session_id)
        return known is not None and known.score == member.score

    async def _learn(self, members: list[Member]) -> list[Document]:
        """The documents of these sessions; notes limits that were not known."""
        scores = {member.session_id: member.score for member in members}
        documents = [each for each in await self._reader.documents(scores) if each.session_id in scores]
        for document in documents:
            limit = scores[document.session_id] - (document.last_activity or 0)
            is_known = any(abs(limit - known) < SLACK / 2 for known in self._limits)
            if not is_known and 0 < limit < 1e9 and document.ended_by is None and len(self._limits) < _LIMITS:
                self._limits.append(limit)
        return documents

    def _news(self, document: Document, score: float, oldest: float) -> list[Landed]:
        """The calls of a session that were not there when it was looked at last."""
        known = self._sessions.pop(document.session_id, None)
        newest = max((call.started for call in document.calls), default=0.0)
        self._sessions[document.session_id] = _Known(score, document.call_count, newest)
        if known is None:
            # One that was forgotten has been silent for long: what is older has been seen, or is too old.
            begin = self._begin if self._looked is None else max(self._begin, oldest)
            calls = [call for call in document.calls if call.started + call.duration >= begin]
        elif document.call_count < known.calls:
            # Redis has lost it, or another one has begun under its id.
            calls = [call for call in document.calls if call.started > known.newest]
        else:
            new = document.call_count - known.calls
            calls = document.calls[-new:] if new else []
            self.missed += new - len(calls)
        return [Landed(document, call) for call in calls]
