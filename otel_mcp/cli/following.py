"""``otel-mcp tail`` and ``top``: poll Redis for the calls that replicas have written since the last look.

The index orders sessions by deadline: last activity plus the idle limit of the session. So for each idle limit, the
recently active sessions are one range of scores, however many sessions there are. A session that its client closes has
a negative score until its end is reported; a session that has left its range is read once more.
"""

from __future__ import annotations

import time
import zlib
from collections import deque
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Final, Literal, NamedTuple

from otel_mcp.cli import rows
from otel_mcp.cli.calls import JSON_FIELDS, NOTES, RESULT, SIZE, TOOK, TOOL, TRACE, Line, progress
from otel_mcp.cli.document import Call, Document, Open
from otel_mcp.cli.listing import CALLER, CLIENT, FAILED, IDLE, LAST_TOOL, OUTCOME, SESSION, WRONG, Query
from otel_mcp.cli.rows import Field, moment, plain
from otel_mcp.cli.store import Member, Reader, address, configured, repeat, run
from otel_mcp.cli.terminal import Code, Failure, Terminal, clean, counted, say
from otel_mcp.cli.tools import CALLED_FIELDS, gather
from otel_mcp.settings import Settings
from otel_mcp.store.redis.codec import CLAIMS

TailFormat = Literal["table", "tsv", "jsonl"]
SLACK: Final = 60.0
"""Seconds allowed for late writes of replicas and for clocks that differ."""
_MAX_MEMBERS: Final = 5_000
"""Sessions that one look finds in the range of one idle limit."""
_MAX_DOCUMENTS: Final = 1_000
"""Documents that one look reads, most recently active sessions first."""
_MAX_KNOWN: Final = 20_000
"""Sessions that are remembered."""
_MAX_LIMITS: Final = 8
"""Idle limits that are told apart."""
_MAX_SCANNED: Final = 20_000
"""Sessions that the first look scans for ended ones."""
_SAMPLE_SIZE: Final = 50
"""Sessions from which the first look learns idle limits."""
_TAIL_PAUSE: Final = 0.5
_TOP_PAUSE: Final = 1.0
"""Seconds between two looks."""
_TOP_SPAN: Final = 300.0
"""Seconds of calls that ``top`` shows."""
_RATE_SPAN: Final = 60.0
"""Seconds over which ``top`` computes rates."""
_MAX_CALLS: Final = 50_000
"""Calls that ``top`` holds."""
_PALETTE: Final = ("cyan", "green", "yellow", "blue", "magenta", "bold cyan", "bold green", "bold blue", "bold magenta")


class _Known(NamedTuple):
    """The state of a session at the last look."""

    score: float
    calls: int
    newest: float
    """Unix seconds at which the newest call began."""


def answered(line: Line) -> float:
    """Return when a call was answered, in Unix seconds."""
    return line.call.end


class Follower:
    """Finds the calls that were written since its last look."""

    def __init__(self, reader: Reader, settings: Settings, since: float = 0.0, *, ended: bool = False) -> None:
        """Begin `since` seconds ago; with `ended`, the first look scans for ended sessions, too."""
        self._reader, self._ended = reader, ended
        self._begin = time.time() - since
        self._looked: float | None = None
        self._limits = [settings.session_ttl, settings.session_idle_gap]
        self._sessions: dict[str, _Known] = {}
        self._active = set[str]()
        """Sessions that the last look found in a range, or left to the next look."""
        self.missed = 0
        """Calls that were written but not seen, because too many came at once."""

    async def look(self) -> list[Line]:
        """Return the calls written since the last look, in the order of their answers."""
        now = time.time()
        if self._looked is None:
            await self._learn(dict(await self._reader.sample(_SAMPLE_SIZE)))
        oldest = (self._begin if self._looked is None else self._looked) - SLACK
        ranges = [(oldest + limit, now + limit + SLACK) for limit in self._limits]
        ranges.append((float("-inf"), -CLAIMS / 2))
        members = {member.session_id: member for member in await self._reader.active(ranges, _MAX_MEMBERS)}
        known = self._sessions
        moved = [each for name, each in members.items() if name not in known or known[name].score != each.score]
        moved.sort(key=lambda member: member.score, reverse=True)
        moved += [Member(name, known[name].score) for name in self._active - members.keys() if name in known]
        scores = dict(moved[:_MAX_DOCUMENTS])
        documents = await self._learn(scores)
        if self._ended:
            found = await self._reader.scan("", _MAX_SCANNED, is_of_any=False)
            documents += [each for each in found if each.ended_by is not None]
            self._ended = False
        lines: list[Line] = []
        for document in documents:
            calls = self._new_calls(document, scores.get(document.session_id, 0.0), oldest)
            lines += [Line(document, call, notes=progress(call)) for call in calls]
        self._active = members.keys() | {member.session_id for member in moved[_MAX_DOCUMENTS:]}
        if len(moved) <= _MAX_DOCUMENTS:  # Otherwise the next look continues with the rest.
            self._looked = now
        while len(known) > _MAX_KNOWN:
            del known[next(iter(known))]
        return sorted(lines, key=answered)

    async def _learn(self, scores: dict[str, float]) -> list[Document]:
        """Read the documents of these sessions; learn new idle limits from their scores."""
        documents = [each for each in await self._reader.documents(scores) if each.session_id in scores]
        for document in documents:
            limit = scores[document.session_id] - (document.last_activity or 0)
            is_known = any(abs(limit - known) < SLACK / 2 for known in self._limits)
            if not is_known and 0 < limit < 1e9 and document.ended_by is None and len(self._limits) < _MAX_LIMITS:
                self._limits.append(limit)
        return documents

    def _new_calls(self, document: Document, score: float, oldest: float) -> list[Call]:
        """Return the calls of a session that no earlier look has seen."""
        known = self._sessions.pop(document.session_id, None)
        newest = max((call.started for call in document.calls), default=0.0)
        self._sessions[document.session_id] = _Known(score, document.call_count, newest)
        if known is None:
            # New, or forgotten after a long silence: then an earlier look has seen the calls before `oldest`.
            begin = self._begin if self._looked is None else max(self._begin, oldest)
            return [call for call in document.calls if call.end >= begin]
        if document.call_count < known.calls:
            # Redis lost the session, or another one began under its id.
            return [call for call in document.calls if call.started > known.newest]
        new = document.call_count - known.calls
        fresh = [call for call in document.calls if call.rounds == 1 or call.started > known.newest]
        calls = fresh[-new:] if new else []
        self.missed += new - len(calls)
        return calls


def _color(line: Line) -> str:
    return _PALETTE[zlib.crc32(line.document.session_id.encode("utf-8", "replace")) % len(_PALETTE)]


FIELDS: Final[tuple[Field[Line], ...]] = (
    Field(
        "STARTED",
        lambda line: moment(line.call.started),
        show=lambda line: (moment(line.call.started) or "")[11:23] or rows.NOTHING,
        style="dim",
    ),
    Field("SESSION", lambda line: line.document.session_id, "session_id", style=_color),
    Field("CLIENT", lambda line: line.document.client, show=lambda line: rows.cut(plain(line.document.client), 24)),
    *(TOOL, RESULT, TOOK, SIZE),
    Field(
        "FAILURE",
        lambda line: line.call.failure,
        show=lambda line: plain(line.call.failure) if line.call.failure not in {None, line.call.verdict} else "",
    ),
    NOTES,
    Field(
        "FINDINGS",
        lambda line: line.document.findings,
        "findings",
        lambda line: plain(line.document.findings) if line.document.findings else "",
        "yellow",
    ),
    TRACE,
    Field("", lambda line: line.document.service, "service"),
    Field("", lambda line: line.document.facts["client_name"], "client_name"),
    Field("", lambda line: line.document.facts["client_version"], "client_version"),
    *JSON_FIELDS,
)
"""Columns of ``tail``."""


def tail(
    terminal: Terminal,
    redis_url: str | None,
    query: Query,
    *,
    limit: int | None,
    errors: bool,
    form: TailFormat | None,
) -> None:
    """Write calls as they finish, at most `limit`; the tool of `query` may be a pattern."""
    settings = configured(redis_url)

    def wants(line: Line) -> bool:
        is_of_tool = query.tool is None or fnmatchcase(line.call.tool, query.tool)
        return is_of_tool and query.is_of_client(line.document) and not (errors and line.call.verdict == "ok")

    async def follow() -> None:
        since = query.since or 0.0
        async with Reader.find(settings, query.service) as reader:
            follower = Follower(reader, settings, since, ended=since > 0)
            left, missed = limit, 0
            async for lines in repeat(follower.look, _TAIL_PAUSE, settings):
                for each in filter(wants, lines):
                    terminal.data(rows.line(terminal, each, FIELDS, form, "call"))
                    if left is not None and (left := left - 1) <= 0:
                        terminal.flush()
                        return
                terminal.flush()
                if more := follower.missed - missed:
                    say(f"otel-mcp: too many calls at once, {counted(more, 'call')} not shown")
                    missed = follower.missed

    run(follow(), settings)


_BUSY: Final[tuple[Field[Document], ...]] = (
    *(SESSION, CLIENT, CALLER, IDLE),
    Field("CALLS/5M", lambda each: each.call_count, is_number=True),
    *(WRONG, FAILED, LAST_TOOL, OUTCOME),
)
"""Columns of ``top`` for a session with its recent calls."""
_OPEN: Final[tuple[Field[Open], ...]] = (
    Field("IN FLIGHT", lambda each: each.tool),
    Field("FOR", lambda each: rows.age(time.time() - each.started)),
    Field("SESSION", lambda each: each.session_id, style="bold"),
    Field("PROCESS", lambda each: each.replica, least=12, leaves=1),
)
"""Columns of ``top`` for a call that has been in flight for long."""
_MAX_OPEN: Final = 5


class Recent:
    """The calls of the last five minutes."""

    def __init__(self) -> None:
        self._calls: deque[Line] = deque(maxlen=_MAX_CALLS)
        self.open: list[Open] = []
        """Calls that have been in flight for long, the oldest first."""

    def add(self, calls: list[Line], now: float) -> None:
        """Add calls, and drop old ones."""
        self._calls.extend(calls)
        while self._calls and answered(self._calls[0]) < now - _TOP_SPAN:
            self._calls.popleft()

    def lines(self, terminal: Terminal, title: str, now: float, height: int) -> list[str]:
        """Draw the screen: the oldest calls in flight, if any, then the busiest sessions, then the tools."""
        newest = [line for line in self._calls if answered(line) >= now - _RATE_SPAN]
        parts = [title, f"{len(newest) / _RATE_SPAN:.1f} calls/s"]
        for verdict in ("wrong", "failed"):
            count = sum(line.call.verdict == verdict for line in newest)
            parts.append(f"{100 * count / max(len(newest), 1):.0f} % {verdict}")
        sessions: dict[str, list[Line]] = {}
        for line in self._calls:
            sessions.setdefault(line.document.session_id, []).append(line)
        busiest = [
            replace(
                recent[-1].document,
                calls=[line.call for line in recent],
                call_count=len(recent),
                last_activity=max(map(answered, recent)),
            )
            for recent in sessions.values()
        ]
        busiest.sort(key=lambda each: (-each.call_count, -(each.last_activity or 0)))
        tools = gather(line.call for line in self._calls)
        hanging = [*rows.lines(terminal, self.open[:_MAX_OPEN], _OPEN), ""] if self.open else []
        room = max(height - 5 - len(hanging), 2)  # The title, two headers and two empty lines take five.
        shown = min(len(tools), room // 2)
        above = rows.lines(terminal, busiest[: room - shown], _BUSY)
        below = rows.lines(terminal, tools[:shown], CALLED_FIELDS)
        return [terminal.paint("   ".join(parts), "bold"), "", *hanging, *above, "", *below]


def top(terminal: Terminal, redis_url: str | None, service: str | None) -> None:
    """Redraw the screen every second."""
    if not terminal.is_interactive:
        raise Failure(Code.USAGE, "top needs a terminal", "in a pipe: otel-mcp tail, or otel-mcp tools")
    settings = configured(redis_url)
    title = f"{clean(service or settings.service_name)} @ {address(settings.redis_url or '')}"

    async def follow() -> None:
        async with Reader.find(settings, service) as reader:
            follower, recent = Follower(reader, settings, _TOP_SPAN), Recent()

            async def look() -> tuple[list[Line], int]:
                recent.open = await reader.in_flight()
                calls = await follower.look()
                await reader.add_callers(list({line.document.session_id: line.document for line in calls}.values()))
                return calls, (await reader.index(1))[1]

            looks = repeat(look, _TOP_PAUSE, settings)
            calls, live = await anext(looks)  # Before the screen is taken: Redis may be unusable.
            with terminal.screen() as draw:
                while True:
                    now = time.time()
                    recent.add(calls, now)
                    draw(recent.lines(terminal, f"{title}   {counted(live, 'live session')}", now, terminal.height))
                    calls, live = await anext(looks)

    run(follow(), settings)
