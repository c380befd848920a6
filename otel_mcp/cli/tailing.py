"""``otel-mcp tail``: the calls of all replicas as they land, a line each."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final

from otel_mcp.cli import output
from otel_mcp.cli.following import Follower, Landed
from otel_mcp.cli.listing import client
from otel_mcp.cli.output import NOTHING, TailFormat, duration, moment, size, text_of
from otel_mcp.cli.reading import Reader
from otel_mcp.cli.store import configured, repeat, run
from otel_mcp.cli.terminal import Terminal

SCHEMA: Final = "otel-mcp/call/1"
_PAUSE: Final = 0.5
"""Seconds between two looks."""
_PALETTE: Final = ("cyan", "green", "yellow", "blue", "magenta", "white", "bold cyan", "bold green", "bold magenta")
_COLORS: Final = {"wrong": "yellow", "failed": "red", "cancelled": "dim", "refused": "magenta"}


@dataclass(frozen=True)
class Filter:
    """Which calls are asked for."""

    tool: str | None = None
    """A name, or a pattern with ``*``."""
    client: str | None = None
    """Part of a name."""
    errors: bool = False

    def wants(self, landed: Landed) -> bool:
        """Whether a call is asked for."""
        return (
            (self.tool is None or fnmatchcase(landed.call.tool, self.tool))
            and (self.client is None or self.client.lower() in (landed.document.client or "").lower())
            and not (self.errors and landed.call.verdict == "ok")
        )


def tail(
    terminal: Terminal,
    redis_url: str | None,
    service: str | None,
    wanted: Filter,
    since: float,
    limit: int | None,
    form: TailFormat | None,
) -> None:
    """Write calls as they land, until `limit` of them are written."""
    settings = configured(redis_url)
    chosen = form or (TailFormat.TABLE if terminal.is_interactive else TailFormat.TSV)

    async def follow() -> None:
        follower = Follower(await Reader.find(settings, service), settings, since)
        left, missed = limit, 0
        async for landed in repeat(follower.look, _PAUSE, settings):
            for each in filter(wanted.wants, landed):
                terminal.data(line(terminal, each, chosen))
                if left is not None and (left := left - 1) <= 0:
                    terminal.flush()
                    return
            terminal.flush()
            if follower.missed > missed:
                terminal.say(f"otel-mcp: {follower.missed - missed:,} calls are missing here, too many came at once")
                missed = follower.missed

    run(follow(), settings)


def line(terminal: Terminal, landed: Landed, form: TailFormat) -> str:
    """One call in one line."""
    if form is TailFormat.JSONL:
        return output.json_line({"schema": SCHEMA, **as_json(landed)})
    document, call = landed.document, landed.call
    began, failure = moment(call.started) or NOTHING, text_of(call.failure)
    if form is TailFormat.TSV:
        given = NOTHING if call.size is None else str(call.size)
        parts = (began, text_of(document.session_id), client(document), text_of(call.tool), text_of(call.verdict))
        return "\t".join((*parts, f"{call.duration:.6f}", given, failure, text_of(call.trace_id)))
    color = _PALETTE[zlib.crc32(document.session_id.encode("utf-8", "replace")) % len(_PALETTE)]
    parts = [
        terminal.paint(began[11:23], "dim"),
        terminal.paint(text_of(document.session_id), color),
        output.cut(client(document), 24),
        terminal.paint(text_of(call.tool), "bold"),
        terminal.paint(text_of(call.verdict), _COLORS.get(call.verdict)),
        duration(call.duration),
        size(call.size),
    ]
    if call.failure is not None and call.failure != call.verdict:
        parts.append(failure)
    return "  ".join(parts)


def as_json(landed: Landed) -> dict[str, Any]:
    """One call for programs."""
    document, call = landed.document, landed.call
    return {
        "session_id": document.session_id,
        "service": document.service,
        "client_name": document.client,
        "client_version": document.version,
        "tool": call.tool,
        "started_at": moment(call.started),
        "duration": call.duration,
        "verdict": call.verdict,
        "failure": call.failure,
        "bytes": call.size,
        "arguments_digest": call.digest,
        "replica": call.replica,
        "trace_id": call.trace_id,
        "span_id": call.span_id,
    }
