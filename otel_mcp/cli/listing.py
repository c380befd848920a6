"""``otel-mcp sessions``: list the newest sessions, one line each."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from otel_mcp.cli import rows
from otel_mcp.cli.document import CUT, LIVE, PROBE, Document
from otel_mcp.cli.rows import Field, Format, age, moment
from otel_mcp.cli.store import Reader, configured, repeat, run
from otel_mcp.cli.terminal import Code, Failure, Terminal, clean, counted, say
from otel_mcp.model.delta import FACTS
from otel_mcp.model.state import EndReason
from otel_mcp.model.verdict import SessionOutcome

SortBy = Literal["idle", "age", "calls", "wrong", "failed", "client"]
_MAX_SEARCHED: Final = 2_000
"""Newest sessions that filters are applied to."""
MAX_SCANNED: Final = 100_000
"""Sessions that a scan reads."""
_OUTCOMES: Final = (LIVE, CUT, *get_args(SessionOutcome), *get_args(EndReason))
"""Values of ``--outcome``."""
_WATCH_PAUSE: Final = 2.0
"""Seconds between two looks of ``--watch``."""
_HOUR: Final = 3600.0
_STYLES: Final = {LIVE: "green", "worked": "green", "corrected": "cyan", PROBE: "dim", "no_call": "dim"}
_ORDERS: Final[dict[SortBy, Callable[[Document], Any]]] = {
    "idle": lambda each: -(each.last_activity or 0),
    "age": lambda each: each.created or 0,
    "calls": lambda each: -each.call_count,
    "wrong": lambda each: -each.count("wrong"),
    "failed": lambda each: -each.count("failed"),
    "client": lambda each: each.client.lower(),
}


def _since(instant: float | None) -> int | None:
    return None if instant is None else max(int(time.time() - instant), 0)


def _tally(verdict: str, style: str) -> Field[Any]:
    """Make a column that counts verdicts; ``+`` = at least that many, as the document lacks older calls."""

    def show(each: Any) -> str:
        return f"{each.count(verdict)}{'+' if each.is_partial else ''}"

    painted: Callable[[Any], str | None] = lambda each: style if each.count(verdict) else None  # noqa: E731
    return Field(verdict.upper(), lambda each: each.count(verdict), verdict, show, painted, is_number=True)


def _fact(name: str) -> Callable[[Document], str | None]:
    return lambda each: each.facts[name]


SESSION: Final = Field[Document]("SESSION", lambda each: each.session_id, "session_id", style="bold")
CLIENT: Final = Field[Document]("CLIENT", lambda each: each.client, least=8, leaves=1)
CALLER: Final = Field[Document]("CALLER", lambda each: each.caller, "caller", leaves=5)
IDLE: Final = Field[Document](
    "IDLE", lambda each: _since(each.last_activity), show=lambda each: age(_since(each.last_activity)), leaves=2
)
WRONG, FAILED = _tally("wrong", "yellow"), _tally("failed", "red")
LAST_TOOL: Final = Field[Document](
    "LAST TOOL", lambda each: each.calls[-1].tool if each.calls else None, "last_tool", least=9, leaves=3
)
OUTCOME: Final = Field[Document](
    "OUTCOME",
    lambda each: each.outcome,
    "outcome",
    lambda each: clean(each.state, 64) or rows.NOTHING,
    lambda each: "yellow" if each.struggled or each.is_cut else _STYLES.get(each.outcome or ""),
    least=11,  # retry_storm
    short=lambda each: clean(", ".join(each.marks) or each.state, 64),
)
FIELDS: Final[tuple[Field[Document], ...]] = (
    SESSION,
    Field("SERVICE", lambda each: each.service, "service", least=8, is_wide=True),
    *(CLIENT, CALLER),
    Field("AGE", lambda each: _since(each.created), show=lambda each: age(_since(each.created)), leaves=4),
    IDLE,
    Field("CALLS", lambda each: each.call_count, "calls", is_number=True),
    *(WRONG, FAILED, LAST_TOOL),
    OUTCOME,
    Field("FINDINGS", lambda each: each.findings, "findings", is_wide=True, is_piped=True),
    Field("TENANT", _fact("tenant"), is_wide=True),
    Field("PROTOCOL", _fact("protocol_version"), is_wide=True),
    Field("SOURCE", _fact("source"), is_wide=True),
    Field("CONTINUES", _fact("previous_id"), is_wide=True),
    *(Field("", _fact(fact.name), fact.name) for fact in FACTS),
    Field("", lambda each: moment(each.created), "created_at"),
    Field("", lambda each: moment(each.last_activity), "last_activity"),
    Field("", lambda each: len(each.calls), "calls_kept"),
    Field("", lambda each: {"at": moment(each.ended_at), "reason": each.ended_by} if each.ended_by else None, "ended"),
    Field(
        "",
        lambda each: {"at": moment(each.cut.at), "cause": each.cut.cause} if each.cut else None,
        "interrupted",
    ),
    Field("", lambda each: each.error_count, "errors"),
    Field("", lambda each: each.request_count, "requests"),
)
"""Columns and JSON keys of a session."""


@dataclass(frozen=True)
class Query:
    """Which sessions to list."""

    service: str | None = None
    client: str | None = None
    tenant: str | None = None
    outcome: str | None = None
    tool: str | None = None
    since: float | None = None
    """Seconds since the last activity, at most."""
    probes: bool = False
    ended: bool = False
    limit: int = 50
    sort_by: SortBy = "idle"

    @property
    def scans(self) -> bool:
        """Whether all keys must be scanned, since ended sessions are in no index."""
        return self.ended or self.outcome not in {None, LIVE}

    def is_of_client(self, document: Document) -> bool:
        """Return whether the client's name contains the requested text."""
        return self.client is None or self.client.lower() in (document.facts["client_name"] or "").lower()

    def wants(self, document: Document) -> bool:
        """Return whether a session matches, whether probe or not."""
        return (
            self.is_of_client(document)
            and self.tenant in {None, document.facts["tenant"]}
            and self.outcome in {None, document.outcome, document.ended_by, *document.findings, *document.marks}
            and (self.tool is None or any(call.tool == self.tool for call in document.calls))
            and (self.since is None or (document.last_activity or 0) >= time.time() - self.since)
        )

    def hides(self, document: Document) -> bool:
        """Return whether a session is a probe and probes were not requested."""
        return document.is_probe and not self.probes and self.outcome != PROBE


@dataclass
class Found:
    """The result of a query."""

    documents: list[Document]
    live: int
    """Number of all live sessions."""
    summary: str
    """How many were found, and what the list leaves out."""


async def find(reader: Reader, query: Query) -> Found:
    """Find the newest matching sessions, with two commands to Redis, one or two MGET, and one for callers."""
    members, live = await reader.index(max(_MAX_SEARCHED, query.limit + 1))
    ids = [member.session_id for member in members]
    if query.scans:
        read, rest = await reader.scan("", MAX_SCANNED, is_of_any=False), []
        is_cut = len(read) >= MAX_SCANNED
    else:
        read, rest = await reader.documents(ids[: query.limit]), ids[query.limit :]
        is_cut = live > len(members)
    wanted = list(filter(query.wants, read))
    if rest and (query != Query(query.service, limit=query.limit) or any(map(query.hides, wanted))):
        read += await reader.documents(rest)
        wanted = list(filter(query.wants, read))
    visible = [document for document in wanted if not query.hides(document)]
    # The index orders by deadline, which is not always the order of the last activity.
    visible.sort(key=_ORDERS["idle"])
    visible.sort(key=_ORDERS[query.sort_by])
    shown = visible[: query.limit]
    await reader.add_callers(shown)
    parts = [f"{len(shown)} found" if query.scans else f"{len(shown)} of {live:,} live"]
    if query.scans and not shown:
        parts.append("ended sessions are kept for ten minutes")
    recent = time.time() - _HOUR
    if struggled := sum(each.struggled and (each.last_activity or 0) >= recent for each in visible):
        parts.append(f"{struggled} struggled in the last hour")
    if hidden := len(wanted) - len(visible):
        parts.append(f"{counted(hidden, 'probe')} hidden: --probes")
    if is_cut and len(visible) < query.limit:
        parts.append(f"searched only the newest {len(read):,}")
    return Found(shown, live, ", ".join(parts))


def sessions(
    terminal: Terminal, redis_url: str | None, query: Query, form: Format | None, *, headers: bool, watch: bool
) -> None:
    """List sessions, once or until Ctrl-C.

    Raises:
        Failure: there is no such outcome.
    """
    if query.outcome not in {None, *_OUTCOMES}:
        raise Failure(Code.USAGE, f"{clean(query.outcome, 64)} is not an outcome", f"one of {', '.join(_OUTCOMES)}")
    settings = configured(redis_url)

    async def look() -> None:
        async with Reader.find(settings, query.service) as reader:
            if watch:
                await _watch(terminal, form, repeat(lambda: find(reader, query), _WATCH_PAUSE, settings))
                return
            found = await find(reader, query)
        rows.write(terminal, found.documents, FIELDS, form, "session", headers=headers, live=found.live)
        say(found.summary)
        if not found.documents and not query.scans:
            say("  ended ones are left out: --all")
        if not found.documents and query.service is None and not reader.is_of_all:
            say(f"  only service {settings.service_name!r} was searched; for all services: --service '*'")

    run(look(), settings)


async def _watch(terminal: Terminal, form: Format | None, looks: AsyncIterator[Found]) -> None:
    """Redraw the list in a terminal; in a pipe, write the sessions that have changed."""
    is_table = form in {None, "table", "wide"}
    if terminal.is_interactive and is_table:
        with terminal.screen() as draw:
            async for found in looks:
                table = rows.lines(terminal, found.documents, FIELDS, form)
                draw([*table, terminal.paint(found.summary, "dim")])
        return
    seen: dict[str, tuple[float | None, str]] = {}
    async for found in looks:
        states = {each.session_id: (each.last_activity, each.state) for each in found.documents}
        for each in reversed(found.documents):
            if seen.get(each.session_id) != states[each.session_id]:
                terminal.data(rows.line(terminal, each, FIELDS, "tsv" if is_table else form, "session"))
        seen = states
        terminal.flush()
