"""What happened in one session: its facts, and a line for each call."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote

from otel_mcp.cli.document import Call, Document
from otel_mcp.cli.rows import NOTHING, Field, age, duration, moment, plain, size
from otel_mcp.cli.terminal import clean, counted
from otel_mcp.settings import Settings

_BYTES_A_TOKEN: Final = 4
"""By rule of thumb."""
_SILENCE: Final = 300.0
"""Seconds without a call that are mentioned."""
_BOARD: Final = "otel-mcp-session"
"""The Session explorer among the dashboards."""
_AROUND: Final = 60.0
"""Seconds before and after the session that links show."""
VERDICTS: Final = {"wrong": "yellow", "failed": "red", "cancelled": "dim", "refused": "magenta"}
"""Colors of results."""


@dataclass
class Line:
    """One call of a session."""

    document: Document
    call: Call
    at: float = 0.0
    """Seconds from the beginning of the session."""
    notes: list[str] = field(default_factory=list[str])
    """What is worth knowing of it; clean."""
    before: list[str] = field(default_factory=list[str])
    """What happened between the call before it and this one; clean."""
    trace_url: str | None = None
    """Where its trace is."""

    @property
    def offset(self) -> str:
        """When it began, for people."""
        whole = int(self.at)
        if self.at < 100:
            return f"+{self.at:.1f} s"
        hours, minutes = whole // 3600, whole // 60 % 60
        return f"+{hours}h{minutes:02}m{whole % 60:02}s" if hours else f"+{minutes}m{whole % 60:02}s"


TOOL: Final = Field[Line]("TOOL", lambda line: line.call.tool, "tool", least=12, style="bold")
RESULT: Final = Field[Line](
    "RESULT", lambda line: line.call.verdict, "verdict", style=lambda line: VERDICTS.get(line.call.verdict)
)
TOOK: Final = Field[Line](
    "TOOK", lambda line: line.call.duration, "duration", lambda line: duration(line.call.duration), is_number=True
)
SIZE: Final = Field[Line](
    "SIZE", lambda line: line.call.size, "bytes", lambda line: size(line.call.size), is_number=True
)
TRACE: Final = Field[Line]("TRACE", lambda line: line.call.trace_id, "trace_id", show=lambda _: "")
"""For programs."""
NOTES: Final = Field[Line]("NOTES", lambda line: line.notes, "notes")
FIELDS: Final[tuple[Field[Line], ...]] = (
    Field("AT", lambda line: f"{line.at:.3f}", show=lambda line: line.offset, is_number=True),
    *(TOOL, RESULT, TOOK, SIZE),
)
"""What people see of a call; notes stand behind it."""
OF_CALL: Final[tuple[Field[Line], ...]] = (
    Field("", lambda line: moment(line.call.started), "started_at"),
    Field("", lambda line: line.call.failure, "failure"),
    Field("", lambda line: line.call.digest, "arguments_digest"),
    Field("", lambda line: line.call.replica, "replica"),
    Field("", lambda line: line.call.span_id, "span_id"),
)
"""What programs get of every call in addition."""
WHOLE: Final[tuple[Field[Line], ...]] = (
    *FIELDS,
    NOTES,
    Field("BETWEEN", lambda line: line.before, "before"),
    TRACE,
    *OF_CALL,
    Field("", lambda line: round(line.at, 3), "offset"),
    Field("", lambda line: line.call.resumed, "resumed"),
    Field("", lambda line: line.call.request_id, "request_id"),
    Field("", lambda line: line.trace_url, "trace_url"),
)
"""All that is known of a call of a story."""


class Story:
    """One session as it reads."""

    def __init__(self, document: Document, settings: Settings) -> None:
        self.document = document
        self._jaeger, self._grafana = ((url or "").rstrip("/") for url in (settings.jaeger_url, settings.grafana_url))
        calls = sorted(document.calls, key=lambda call: call.started)
        starts = [at for at in (document.created, calls[0].started if calls else None) if at]
        self.began = min(starts, default=0.0)
        """Unix seconds."""
        self.given = sum(call.size or 0 for call in calls)
        """Bytes of the answers that are known."""
        self.tokens = round(self.given / _BYTES_A_TOKEN)
        """About how many tokens they were."""
        self.lines = self._read(calls)
        self.links = self._links()
        """Where to look further, as far as the settings say where that is."""

    def _read(self, calls: list[Call]) -> list[Line]:
        seen: Counter[tuple[str, str]] = Counter()
        failing: Counter[str] = Counter()
        lines: list[Line] = []
        for call in calls:
            line = Line(self.document, call, max(call.started - self.began, 0.0))
            before = lines[-1].call if lines else None
            silence = call.started - (before.started + before.duration if before else self.began)
            if before is None and self.document.is_partial:
                missing = self.document.call_count - len(calls)
                verb = "is" if missing == 1 else "are"
                line.before.append(f"{counted(missing, 'earlier call')} {verb} not in the document any more")
            elif silence >= _SILENCE:
                line.before.append(f"{duration(silence)} of silence")
            if call.replica is not None and (before is None or before.replica != call.replica):
                line.before.append(f"on replica {clean(call.replica, 64)}")
            if call.resumed:
                line.before.append("resumed after a restart")
            line.notes = _notes(call, seen, failing)
            line.trace_url = f"{self._jaeger}/trace/{call.trace_id}" if self._jaeger and call.trace_id else None
            lines.append(line)
        return lines

    def _links(self) -> dict[str, str]:
        document, found = self.document, dict[str, str]()
        first, last = self.began - _AROUND, (document.last_activity or self.began) + _AROUND
        session, service = _quoted(document.session_id), _quoted(document.service or "")
        if self._jaeger:
            tags = _quoted(json.dumps({"session.id": document.session_id}, separators=(",", ":")))
            span = f"start={first * 1e6:.0f}&end={last * 1e6:.0f}"
            found["traces"] = f"{self._jaeger}/search?service={service}&tags={tags}&limit=200&lookback=custom&{span}"
        if self._grafana:
            span = f"from={first * 1e3:.0f}&to={last * 1e3:.0f}"
            found["board"] = f"{self._grafana}/d/{_BOARD}?var-service={service}&var-session_id={session}&{span}"
        return found

    def facts(self) -> dict[str, str]:
        """Return what is known of the session, by name; clean, whole values."""
        document, facts = self.document, self.document.facts
        known: dict[str, object] = {
            "session": document.session_id,
            "service": document.service,
            "client": document.client,
            "caller": document.caller,
            "source": facts["source"],
            "conversation": facts["conversation_id"],
            "protocol": facts["protocol_version"],
            "began": moment(self.began),
            "last activity": moment(document.last_activity),
            "outcome": document.outcome,
            "ended": f"{document.ended_by} {moment(document.ended_at) or ''}".strip() if document.ended_by else None,
            "continues": facts["previous_id"],
            "calls": document.call_count,
            "wrong": document.count("wrong"),
            "failed": document.count("failed"),
            "bytes given": self.given,
            "tokens given": self.tokens,
        }
        return {name: plain(value) for name, value in known.items() if plain(value) != NOTHING}

    def headline(self) -> str:
        """Say in one line who it was, and how it went."""
        document = self.document
        caller = f"caller {plain(document.caller)}" if document.caller else ""
        parts = [clean(document.facts[name] or "", 64) for name in ("source", "protocol_version")]
        return " · ".join(part for part in (plain(document.client), parts[0], caller, parts[1], self._state()) if part)

    def origin(self) -> list[str]:
        """Say which session it is, and since when."""
        parts = [f"session {plain(self.document.session_id)} of {plain(self.document.service)}"]
        if began := moment(self.began):
            parts.append(f"began {began[:10]} {began[11:19]} UTC")
        if previous := self.document.facts["previous_id"]:
            parts.append(f"continues {plain(previous)}")
        return parts

    def _state(self) -> str:
        """Say how it went, or that it goes on."""
        document, now = self.document, time.time()
        if document.ended_by is None:
            idle = now - document.last_activity if document.last_activity else None
            return f"{plain(document.outcome)}, idle {age(idle)}"
        ended = f"ended {age(now - document.ended_at)} ago" if document.ended_at else "ended"
        outcome = "" if document.outcome == document.ended_by else f"{plain(document.outcome)}, "
        return f"{outcome}{ended}: {plain(document.ended_by)}"

    def total(self) -> str:
        """Say in one line what the model was given."""
        kept = f" by the newest {counted(len(self.lines), 'call')}" if self.document.is_partial else ""
        tokens = f"{self.tokens / 1000:.0f}k" if self.tokens >= 10_000 else f"{self.tokens:,}"
        return f"{size(self.given)} given to the model{kept}, about {tokens} tokens (bytes / {_BYTES_A_TOKEN})"


def _quoted(text: str) -> str:
    return quote(text, safe="", errors="replace")


def _notes(call: Call, seen: Counter[tuple[str, str]], failing: Counter[str]) -> list[str]:
    notes: list[str] = []
    if call.failure is not None and call.failure != call.verdict:
        notes.append(clean(call.failure, 64))
    if call.digest is not None:
        seen[call.tool, call.digest] += 1
        times = seen[call.tool, call.digest]
        if times > 1:
            notes.append("the same arguments again" if times == 2 else f"the same arguments, {times} times")
    if call.verdict != "ok":
        failing[call.tool] += 1
    elif tries := failing.pop(call.tool, 0):
        notes.append(f"corrected after {tries}")
    return notes
