"""``otel-mcp sessions``: the newest sessions, a line each."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Final

from otel_mcp.cli import output
from otel_mcp.cli.document import Document
from otel_mcp.cli.output import NOTHING, Column, Format, SortBy, text_of
from otel_mcp.cli.reading import Reader
from otel_mcp.cli.store import configured, repeat, run
from otel_mcp.cli.terminal import Terminal

LIST_SCHEMA: Final = "otel-mcp/sessions/1"
SCHEMA: Final = "otel-mcp/session/1"
PROBE: Final = "probe"
LIVE: Final = "live"
_WINDOW: Final = 2_000
"""Sessions among which those are looked for that are asked for."""
_SCANNED: Final = 100_000
"""Sessions that are read, ended ones among them."""
_PAUSE: Final = 2.0
"""Seconds between two looks of ``--watch``."""
CALLER: Final = 8
"""Digits of the keyed hash of a user."""
_STYLES: Final = {LIVE: "green", "worked": "green", "corrected": "cyan", PROBE: "dim", "no_call": "dim"}
_STRUGGLES: Final = frozenset({"gave_up", "looped", "retry_storm", "ping_pong"})


@dataclass(frozen=True)
class Query:
    """Which sessions are asked for."""

    service: str | None = None
    client: str | None = None
    outcome: str | None = None
    tool: str | None = None
    since: float | None = None
    """Seconds since the last activity, at most."""
    probes: bool = False
    ended: bool = False
    limit: int = 50
    sort_by: SortBy = SortBy.IDLE

    @property
    def scans(self) -> bool:
        """Ended sessions are in no index."""
        return self.ended or self.outcome not in {None, LIVE}

    def wants(self, document: Document, now: float) -> bool:
        """Whether a session is asked for, probes aside."""
        return (
            (self.client is None or self.client.lower() in (document.client or "").lower())
            and (self.outcome is None or self.outcome == document.outcome)
            and (self.tool is None or any(call.tool == self.tool for call in document.calls))
            and (self.since is None or (document.last_activity or 0) >= now - self.since)
        )

    def hides(self, document: Document) -> bool:
        """Whether a session is a probe that nobody asked for."""
        return document.outcome == PROBE and not self.probes and self.outcome != PROBE


@dataclass
class Found:
    """What a query found."""

    documents: list[Document]
    live: int
    """Live sessions in all."""
    hidden: int
    """Probes left out."""
    searched: int
    """Sessions looked at."""
    is_cut: bool
    """There are more that were not looked at."""


async def find(reader: Reader, query: Query) -> Found:
    """The newest sessions that are asked for: two commands to Redis and one or two MGET, and one for their callers."""
    now = time.time()
    members, live = await reader.index(max(_WINDOW, query.limit + 1))
    if query.scans:
        read = await reader.everything(_SCANNED)
        rest, is_cut = [], len(read) >= _SCANNED
    else:
        ids = [member.session_id for member in members]
        read, rest = await reader.documents(ids[: query.limit]), ids[query.limit :]
        is_cut = live > len(members)
    wanted = [document for document in read if query.wants(document, now)]
    if rest and (query != Query(query.service, limit=query.limit) or any(map(query.hides, wanted))):
        read += await reader.documents(rest)
        wanted = [document for document in read if query.wants(document, now)]
    kept = [document for document in wanted if not query.hides(document)]
    # Marks of the index are not always in the order of the last activity.
    kept.sort(key=_ORDERS[SortBy.IDLE])
    if query.sort_by is not SortBy.IDLE:
        kept.sort(key=_ORDERS[query.sort_by])
    shown = kept[: query.limit]
    await reader.add_callers(shown)
    return Found(shown, live, len(wanted) - len(kept), len(read), is_cut and len(kept) < query.limit)


_ORDERS: Final[dict[SortBy, Callable[[Document], Any]]] = {
    SortBy.IDLE: lambda document: -(document.last_activity or 0),
    SortBy.AGE: lambda document: document.created or 0,
    SortBy.CALLS: lambda document: -document.call_count,
    SortBy.WRONG: lambda document: -document.count("wrong"),
    SortBy.FAILED: lambda document: -document.count("failed"),
    SortBy.CLIENT: lambda document: (document.client or "").lower(),
}


def columns(now: float) -> list[Column[Document]]:
    """The columns of the list, as of `now`."""

    def since(instant: float | None) -> float | None:
        return None if instant is None else now - instant

    def counted(verdict: str) -> Callable[[Document], str]:
        # Of older calls the document no longer says how they went.
        return lambda each: f"{each.count(verdict)}{'+' if each.is_partial else ''}"

    return [
        Column("SESSION", lambda each: text_of(each.session_id), style=lambda _: "bold"),
        Column("SERVICE", lambda each: text_of(each.service), least=8, is_wide=True),
        Column("CLIENT", client, least=8, leaves=1),
        Column("CALLER", caller, leaves=5),
        Column(
            "AGE", lambda each: output.age(since(each.created)), lambda each: _seconds(since(each.created)), leaves=4
        ),
        Column(
            "IDLE",
            lambda each: output.age(since(each.last_activity)),
            lambda each: _seconds(since(each.last_activity)),
            leaves=2,
        ),
        Column("CALLS", lambda each: str(each.call_count), is_number=True),
        Column("WRONG", counted("wrong"), lambda each: str(each.count("wrong")), _if("wrong", "yellow"), True),
        Column("FAILED", counted("failed"), lambda each: str(each.count("failed")), _if("failed", "red"), True),
        Column("LAST TOOL", lambda each: text_of(each.last_tool), least=9, leaves=3),
        Column("OUTCOME", lambda each: text_of(each.outcome), style=_outcome_style),
        Column("PROTOCOL", lambda each: text_of(each.protocol), is_wide=True),
        Column("SOURCE", lambda each: text_of(each.source), is_wide=True),
        Column("CONTINUES", lambda each: text_of(each.previous_id), is_wide=True),
    ]


def _if(verdict: str, style: str) -> Callable[[Document], str | None]:
    return lambda each: style if each.count(verdict) else None


def _outcome_style(each: Document) -> str | None:
    return "yellow" if each.outcome in _STRUGGLES else _STYLES.get(each.outcome)


def _seconds(span: float | None) -> str:
    return NOTHING if span is None else str(max(int(span), 0))


def client(each: Document) -> str:
    """Name and version of the client."""
    return text_of(f"{each.client} {each.version or ''}".strip() if each.client else None)


def caller(each: Document) -> str:
    """The beginning of the keyed hash of the user: enough to tell users apart, reveals nothing."""
    return text_of((each.caller or "")[:CALLER])


def as_json(each: Document) -> dict[str, Any]:
    """One session for programs."""
    return {
        "session_id": each.session_id,
        "service": each.service,
        "client_name": each.client,
        "client_version": each.version,
        "caller": (each.caller or "")[:CALLER] or None,
        "created_at": output.moment(each.created),
        "last_activity": output.moment(each.last_activity),
        "calls": each.call_count,
        "calls_kept": len(each.calls),
        "wrong": each.count("wrong"),
        "failed": each.count("failed"),
        "last_tool": each.last_tool,
        "outcome": each.outcome,
        "ended": None if each.ended_by is None else {"at": output.moment(each.ended_at), "reason": each.ended_by},
        "protocol_version": each.protocol,
        "source": each.source,
        "conversation_id": each.conversation_id,
        "previous_id": each.previous_id,
        "errors": each.error_count,
        "requests": each.request_count,
    }


def write(terminal: Terminal, found: Found, form: Format, *, headers: bool) -> None:
    """Write the list."""
    if form is Format.JSON:
        sessions = [as_json(each) for each in found.documents]
        output.write_json(terminal, {"schema": LIST_SCHEMA, "live": found.live, "sessions": sessions})
    elif form in {Format.NAME, Format.JSONL}:
        for each in found.documents:
            terminal.data(line(each, form))
    else:
        output.write_rows(terminal, found.documents, columns(time.time()), form, headers=headers)
    terminal.flush()


def line(each: Document, form: Format) -> str:
    """One session in one line, by name or for programs."""
    if form is Format.JSONL:
        return output.json_line({"schema": SCHEMA, **as_json(each)})
    return text_of(each.session_id)


def summary(found: Found, query: Query) -> str:
    """What the list leaves out."""
    parts = [f"{len(found.documents)} of {found.live:,} live" if not query.scans else f"{len(found.documents)} found"]
    if found.hidden:
        parts.append(f"{found.hidden:,} probes hidden: --probes")
    if found.is_cut:
        parts.append(f"looked at the newest {found.searched:,} only")
    return ", ".join(parts)


def sessions(terminal: Terminal, redis_url: str | None, query: Query, form: Format, headers: bool, watch: bool) -> None:
    """List sessions, once or again and again."""
    settings = configured(redis_url)

    async def look() -> None:
        reader = await Reader.find(settings, query.service)
        if watch:
            await _watch(terminal, query, form, repeat(lambda: find(reader, query), _PAUSE, settings))
            return
        found = await find(reader, query)
        await reader.aclose()
        write(terminal, found, form, headers=headers)
        terminal.say(summary(found, query))
        if not found.documents and query.service is None and not reader.is_of_all:
            terminal.say(f"  these are the sessions of {settings.service_name!r}; of all services: --service '*'")

    run(look(), settings)


async def _watch(terminal: Terminal, query: Query, form: Format, rounds: AsyncIterator[Found]) -> None:
    """Redraw the list on a terminal; in a pipe write the sessions that have changed."""
    if terminal.is_interactive and form in {Format.TABLE, Format.WIDE}:
        from otel_mcp.cli.screen import Screen

        with Screen(terminal) as screen:
            async for found in rounds:
                rows = output.lines(terminal, found.documents, columns(time.time()), form)
                screen.draw([*rows, terminal.paint(summary(found, query), "dim")])
        return
    seen: dict[str, float] = {}
    async for found in rounds:
        changed = [each for each in reversed(found.documents) if seen.get(each.session_id) != each.last_activity]
        seen = {each.session_id: each.last_activity or 0.0 for each in found.documents}
        for each in changed:
            if form in {Format.JSON, Format.JSONL, Format.NAME}:
                terminal.data(line(each, Format.NAME if form is Format.NAME else Format.JSONL))
            else:
                output.write_rows(terminal, [each], columns(time.time()), Format.TSV)
        terminal.flush()
