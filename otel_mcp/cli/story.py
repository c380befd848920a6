"""What happened in one session: its facts, and a line for each call."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote

from otel_mcp.cli.document import Call, Document
from otel_mcp.cli.listing import caller, client
from otel_mcp.cli.output import age, duration, moment, size, text_of
from otel_mcp.cli.terminal import clean
from otel_mcp.settings import Settings

BYTES_A_TOKEN: Final = 4
"""By rule of thumb."""
_SILENCE: Final = 300.0
"""Seconds between two calls from which on the story says so."""
_BOARD: Final = "otel-mcp-session"
"""The Session explorer among the dashboards."""
_AROUND: Final = 60.0
"""Seconds before and after the session that links show."""


@dataclass
class Line:
    """One call."""

    call: Call
    at: float
    """Seconds from the beginning of the session."""
    notes: list[str] = field(default_factory=list[str])
    """What is worth knowing of it; clean."""
    before: list[str] = field(default_factory=list[str])
    """What happened between the call before it and this one; clean."""

    @property
    def offset(self) -> str:
        """When it began, for people."""
        whole = int(self.at)
        if self.at < 100:
            return f"+{self.at:.1f} s"
        hours, minutes = whole // 3600, whole // 60 % 60
        return f"+{hours}h{minutes:02}m{whole % 60:02}s" if hours else f"+{minutes}m{whole % 60:02}s"


class Story:
    """One session as it reads."""

    def __init__(self, document: Document, settings: Settings) -> None:
        self.document = document
        self._settings = settings
        calls = sorted(document.calls, key=lambda call: call.started)
        starts = [at for at in (document.created, calls[0].started if calls else None) if at]
        self.began = min(starts, default=0.0)
        """Unix seconds."""
        self.given = sum(call.size or 0 for call in calls)
        """Bytes of the answers that are known."""
        self.lines = self._tell(calls)

    @property
    def tokens(self) -> int:
        """About how many tokens the answers were."""
        return round(self.given / BYTES_A_TOKEN)

    def _tell(self, calls: list[Call]) -> list[Line]:
        seen: Counter[tuple[str, str]] = Counter()
        failing: Counter[str] = Counter()
        lines: list[Line] = []
        for number, call in enumerate(calls):
            line = Line(call, max(call.started - self.began, 0.0))
            _note(line, seen, failing)
            before = calls[number - 1] if number else None
            silence = call.started - (before.started + before.duration if before else self.began)
            if before is None and self.document.is_partial:
                missing = self.document.call_count - len(calls)
                line.before.append(f"{missing:,} earlier calls are not in the document any more")
            elif silence >= _SILENCE:
                line.before.append(f"{duration(silence)} of silence")
            if call.replica is not None and (before is None or before.replica != call.replica):
                line.before.append(f"on replica {clean(call.replica, 64)}")
            if call.resumed:
                line.before.append("resumed after a restart")
            lines.append(line)
        return lines

    def facts(self) -> list[tuple[str, str]]:
        """What is known of the session, by name; clean, whole values."""
        document = self.document
        ended = text_of(f"{document.ended_by} {moment(document.ended_at)}") if document.ended_by else "-"
        known = [
            ("session", text_of(document.session_id)),
            ("service", text_of(document.service)),
            ("client", client(document)),
            ("caller", caller(document)),
            ("source", text_of(document.source)),
            ("conversation", text_of(document.conversation_id)),
            ("protocol", text_of(document.protocol)),
            ("began", moment(self.began) or "-"),
            ("last activity", moment(document.last_activity) or "-"),
            ("outcome", text_of(document.outcome)),
            ("ended", ended),
            ("continues", text_of(document.previous_id)),
            ("calls", str(document.call_count)),
            ("wrong", str(document.count("wrong"))),
            ("failed", str(document.count("failed"))),
            ("bytes given", str(self.given)),
            ("tokens given", str(self.tokens)),
        ]
        return [*((name, value) for name, value in known if value != "-"), *self.links().items()]

    def headline(self) -> str:
        """Who, and how it went, in one line."""
        document = self.document
        source = clean(document.source or "", 64)
        parts = [client(document), source, f"caller {caller(document)}" if document.caller else ""]
        return " · ".join([*(part for part in (*parts, clean(document.protocol or "", 64)) if part), self.state()])

    def origin(self) -> list[str]:
        """Which session, since when."""
        document = self.document
        parts = [f"session {text_of(document.session_id)} of {text_of(document.service)}"]
        if began := moment(self.began):
            parts.append(f"began {began[:10]} {began[11:19]} UTC")
        if document.previous_id:
            parts.append(f"continues {text_of(document.previous_id)}")
        return parts

    def state(self) -> str:
        """How it went, or that it goes on."""
        document = self.document
        now = time.time()
        if document.ended_by is None:
            idle = age(now - document.last_activity) if document.last_activity else "-"
            return f"{text_of(document.outcome)}, idle {idle}"
        ended = f"ended {age(now - document.ended_at)} ago" if document.ended_at else "ended"
        outcome = "" if document.outcome == document.ended_by else f"{text_of(document.outcome)}, "
        return f"{outcome}{ended}: {text_of(document.ended_by)}"

    def total(self) -> str:
        """What the model was given, in one line."""
        kept = f" by the newest {len(self.lines)} calls" if self.document.is_partial else ""
        tokens = f"{self.tokens / 1000:.0f}k" if self.tokens >= 10_000 else f"{self.tokens:,}"
        return f"{size(self.given)} given to the model{kept}, about {tokens} tokens (bytes / {BYTES_A_TOKEN})"

    def links(self) -> dict[str, str]:
        """Where to look further, as far as the settings say where that is."""
        document, found = self.document, dict[str, str]()
        first, last = self.began - _AROUND, (document.last_activity or self.began) + _AROUND
        session, service = _quoted(document.session_id), _quoted(document.service or "")
        if base := self._base("jaeger_url"):
            tags = _quoted(json.dumps({"session.id": document.session_id}, separators=(",", ":")))
            span = f"start={first * 1e6:.0f}&end={last * 1e6:.0f}"
            found["traces"] = f"{base}/search?service={service}&tags={tags}&limit=200&lookback=custom&{span}"
        if base := self._base("grafana_url"):
            span = f"from={first * 1e3:.0f}&to={last * 1e3:.0f}"
            found["board"] = f"{base}/d/{_BOARD}?var-service={service}&var-session_id={session}&{span}"
        return found

    def trace_url(self, call: Call) -> str | None:
        """Where the trace of one call is."""
        base = self._base("jaeger_url")
        return f"{base}/trace/{call.trace_id}" if base and call.trace_id else None

    def _base(self, name: str) -> str | None:
        url: str | None = getattr(self._settings, name)
        return url.rstrip("/") if url else None


def _quoted(text: str) -> str:
    return quote(text, safe="", errors="replace")


def _note(line: Line, seen: Counter[tuple[str, str]], failing: Counter[str]) -> None:
    call = line.call
    if call.failure is not None and call.failure != call.verdict:
        line.notes.append(clean(call.failure, 64))
    if call.digest is not None:
        seen[call.tool, call.digest] += 1
        times = seen[call.tool, call.digest]
        if times > 1:
            line.notes.append("the same arguments again" if times == 2 else f"the same arguments, {times} times")
    if call.verdict != "ok":
        failing[call.tool] += 1
    elif tries := failing.pop(call.tool, 0):
        line.notes.append(f"corrected after {tries}")


def as_json(story: Story) -> dict[str, Any]:
    """The calls and totals for programs, in addition to what a list has of the session."""
    return {
        "bytes_given": story.given,
        "tokens_given": story.tokens,
        "links": story.links(),
        "tool_calls": [
            {
                "tool": line.call.tool,
                "started_at": moment(line.call.started),
                "offset": round(line.at, 3),
                "duration": line.call.duration,
                "verdict": line.call.verdict,
                "failure": line.call.failure,
                "bytes": line.call.size,
                "arguments_digest": line.call.digest,
                "notes": line.notes,
                "before": line.before,
                "replica": line.call.replica,
                "resumed": line.call.resumed,
                "request_id": line.call.request_id,
                "trace_id": line.call.trace_id,
                "span_id": line.call.span_id,
                "trace_url": story.trace_url(line.call),
            }
            for line in story.lines
        ],
    }


def took(line: Line) -> str:
    """How long a call took, for people."""
    return duration(line.call.duration)
