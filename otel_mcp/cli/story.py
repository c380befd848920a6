"""Tell what happened in one session: its facts, and a line for each call."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable
from itertools import takewhile
from typing import Final
from urllib.parse import quote

from otel_mcp.cli.calls import Line, offset, progress
from otel_mcp.cli.document import Call, Cut, Document
from otel_mcp.cli.rows import NOTHING, age, duration, moment, plain, size
from otel_mcp.cli.terminal import clean, counted
from otel_mcp.model.verdict import Finding, find
from otel_mcp.settings import Settings

_BYTES_PER_TOKEN: Final = 4
"""A rule of thumb."""
_SILENCE: Final = 300.0
"""Seconds without a call from which on a silence is mentioned."""
_DASHBOARD: Final = "otel-mcp-session"
"""The id of the dashboard Session explorer."""
_LINK_MARGIN: Final = 60.0
"""Seconds before and after the session that links include."""
_MEANINGS: Final = {
    "corrected": "a call went wrong or failed, and the same tool worked later",
    "looped": "the same call with the same arguments, again and again",
    "retry_storm": "a call that failed was repeated, again and again",
    "ping_pong": "two calls in turn, again and again",
    "gave_up": "the last calls went wrong or failed, and nothing came after them",
    "probe": "a monitor or a registry that checks whether the server is there",
}
"""Outcomes and findings, for people."""
_LEGEND: Final = "wrong: the caller's fault; failed: the server's"
_WHOSE: Final = {"wrong": "the caller's fault", "failed": "the server's fault"}
_MAX_NAMED: Final = 3
"""Tools that are named for one kind of fault."""
_FAILURES: Final = {"tool": "tool reported it", "exception": "tool raised"}
"""Failures whose names need explaining."""
_CAUSES: Final = {
    "restart": "by a restart",
    "replica": "by a replica that did not know it",
    "idle_reaper": "by its server, which closes idle sessions",
}
"""Causes of interruptions."""


class Story:
    """The story of one session."""

    def __init__(
        self,
        document: Document,
        settings: Settings,
        previous: Document | None = None,
        successor: Document | None = None,
    ) -> None:
        """Read a document, with the session before it and the one after it, if they are known."""
        self.document, self._previous, self._successor = document, previous, successor
        self._jaeger, self._grafana = ((url or "").rstrip("/") for url in (settings.jaeger_url, settings.grafana_url))
        calls = sorted(document.calls, key=lambda call: call.started)
        starts = [start for start in (document.created, calls[0].started if calls else None) if start]
        self.began = min(starts, default=0.0)
        """Unix seconds."""
        self.given = document.context_bytes or sum(call.size or 0 for call in calls)
        """Bytes given to the model, as far as they are known."""
        self.tokens = round(self.given / _BYTES_PER_TOKEN)
        """Estimated tokens given to the model."""
        self.lines = self._read(calls)
        self.after = self._cut(None) if not calls or calls[-1].started < self._cut_at else []
        """Events after the last call; clean."""
        self.links = self._links()
        """URLs in Jaeger and Grafana, if the settings name these, by name."""

    @property
    def _cut_at(self) -> float:
        return self.document.cut.at if self.document.cut else 0.0

    def _read(self, calls: list[Call]) -> list[Line]:
        seen: Counter[tuple[str, str]] = Counter()
        failing: Counter[str] = Counter()
        lines: list[Line] = []
        has_moved = len({call.replica for call in calls} - {None}) > 1
        for call in calls:
            line = Line(self.document, call, max(call.started - self.began, 0.0))
            before = lines[-1].call if lines else None
            silence = call.started - (before.end if before else self.began)
            if before is None and self.document.is_partial:
                missing = self.document.call_count - len(calls)
                verb = "is" if missing == 1 else "are"
                line.before.append(f"{counted(missing, 'earlier call')} {verb} not in the document any more")
            elif silence >= _SILENCE:
                line.before.append(f"{duration(silence)} of silence")
            if (before.started if before else self.began) < self._cut_at <= call.started:
                line.before += self._cut(call)
            if has_moved and call.replica is not None and (before is None or before.replica != call.replica):
                line.before.append(f"on replica {clean(call.replica, 64)}")
            line.notes = _notes(call, seen, failing)
            line.trace_url = f"{self._jaeger}/trace/{call.trace_id}" if self._jaeger and call.trace_id else None
            lines.append(line)
        return lines

    def _cut(self, back: Call | None) -> list[str]:
        """Describe the interruption, and how the client came back: with the call `back`, as another session, or not."""
        cut, document = self.document.cut, self.document
        if cut is None:
            return []
        text = f"cut at {offset(max(cut.at - self.began, 0.0))} {_cause(cut)}"
        if back is not None:
            # If the document lacks older calls, the client may have come back earlier.
            is_first = self.document.is_partial and back.started == min(call.started for call in document.calls)
            return [text if is_first else f"{text}, back after {duration(back.started - cut.at)}"]
        if self._successor is not None and self._successor.created:
            late = duration(max(self._successor.created - cut.at, 0.0))
            return [f"{text}, came back after {late} as {plain(self._successor.session_id)}"]
        if document.ended_by == "replaced":
            return [text]
        return [f"{text}, {'not back yet' if document.ended_by is None else 'and lost'}"]

    def _links(self) -> dict[str, str]:
        document, found = self.document, dict[str, str]()
        first, last = self.began - _LINK_MARGIN, (document.last_activity or self.began) + _LINK_MARGIN
        session, service = _quoted(document.session_id), _quoted(document.service or "")
        if self._jaeger:
            tags = _quoted(json.dumps({"session.id": document.session_id}, separators=(",", ":")))
            span = f"start={first * 1e6:.0f}&end={last * 1e6:.0f}"
            found["traces"] = f"{self._jaeger}/search?service={service}&tags={tags}&limit=200&lookback=custom&{span}"
        if self._grafana:
            span = f"from={first * 1e3:.0f}&to={last * 1e3:.0f}"
            found["board"] = f"{self._grafana}/d/{_DASHBOARD}?var-service={service}&var-session_id={session}&{span}"
        return found

    def facts(self) -> dict[str, str]:
        """Return the known facts of the session by name, as clean text."""
        document, facts = self.document, self.document.facts
        known: dict[str, object] = {
            "session": document.session_id,
            "service": document.service,
            "client": document.client,
            "caller": document.caller,
            "source": facts["source"],
            "conversation": facts["conversation_id"],
            "tenant": facts["tenant"],
            "protocol": facts["protocol_version"],
            "began": moment(self.began),
            "last activity": moment(document.last_activity),
            "probe": facts["synthetic_type"],
            "outcome": document.state,
            "findings": document.findings,
            "interrupted": f"{document.cut.cause} {moment(document.cut.at)}" if document.cut else None,
            "ended": f"{document.ended_by} {moment(document.ended_at) or ''}".strip() if document.ended_by else None,
            "continues": facts["previous_id"],
            "goes on as": self.continued_by,
            "calls": document.call_count,
            "wrong": document.count("wrong"),
            "failed": document.count("failed"),
            "bytes given": self.given,
            "tokens given": self.tokens,
        }
        facts = {name: plain(value) for name, value in known.items() if plain(value) != NOTHING}
        return facts | {"advice": " / ".join(advice)} if (advice := self.advice()) else facts

    def headline(self) -> str:
        """Write one line on the client and how the session went."""
        document = self.document
        caller = f"caller {plain(document.caller)}" if document.caller else ""
        kind, source, protocol = (
            clean(document.facts[name] or "", 64) for name in ("synthetic_type", "source", "protocol_version")
        )
        probe = f"probe ({kind})" if kind else ""
        parts = (plain(document.client), probe, source, caller, protocol, self._state())
        return " · ".join(part for part in parts if part)

    def origin(self) -> list[str]:
        """Write the session's id, service, beginning, and the sessions before and after it."""
        parts = [f"session {plain(self.document.session_id)} of {plain(self.document.service)}"]
        if began := moment(self.began):
            parts.append(f"began {began[:10]} {began[11:19]} UTC")
        if previous := self.document.facts["previous_id"]:
            parts.append(f"continues {plain(previous)}{self._gap()}")
        if self.continued_by:
            parts.append(f"goes on as {plain(self.continued_by)}")
        return parts

    @property
    def continued_by(self) -> str | None:
        """The id of the session in which the client continued."""
        return self._successor.session_id if self._successor else None

    def _gap(self) -> str:
        """Write how the session before this one was cut."""
        cut = self._previous.cut if self._previous else None
        return f", cut {duration(max(self.began - cut.at, 0.0))} before {_cause(cut)}" if cut else ""

    def meaning(self) -> list[str]:
        """Explain the outcome and the findings, and whose fault the calls were."""
        found = {str(each.name): each for each in self._find()}
        lines: list[str] = []
        for word in dict.fromkeys([self.document.outcome or "", *self.document.findings]):
            if word in _MEANINGS:
                each = found.get(word)
                where = f" ({clean(each.tool_name, 64)}, {counted(each.calls, 'call')})" if each else ""
                lines += [f"{word}{where}: {_MEANINGS[word]}", *self._faults(word, each)]
        return lines

    def _faults(self, word: str, finding: Finding | None) -> list[str]:
        """Name the tools of the calls behind an outcome or a finding, by whose fault they were."""
        calls = [line.call for line in self.lines]
        if word == "gave_up":
            calls = list(takewhile(lambda call: call.verdict != "ok", reversed(calls)))[::-1]
        elif word == "corrected":
            worked = {call.tool: call.started for call in calls if call.verdict == "ok"}
            calls = [call for call in calls if call.started < worked.get(call.tool, 0.0)]
        else:
            is_of = finding.tool_name if finding and word == "retry_storm" else None
            calls = [call for call in calls if call.tool == is_of]
        faults: list[str] = []
        for verdict, whose in _WHOSE.items():
            tools = [f"{clean(each.tool, 64)} ({plain(each.failure)})" for each in calls if each.verdict == verdict]
            named = list(dict.fromkeys(tools))
            if named:
                faults.append(f"{whose}: {', '.join(named[:_MAX_NAMED])}{', …' if len(named) > _MAX_NAMED else ''}")
        return faults

    def advice(self) -> list[str]:
        """Write the advice that the observer agent got from a model."""
        lines: list[str] = []
        for each in self.document.advice:
            who = ", ".join(clean(word, 64) for word in (each.model, each.confidence) if word)
            lines.append(f"{clean(each.problem, 64)}, says {who}: {clean(each.cause)}")
            if each.change:
                lines.append(f"change {clean(each.tool, 64) if each.tool else 'this'}: {clean(each.change)}")
        return lines

    def _find(self) -> Iterable[Finding]:
        """Find the patterns again in the calls of the document, to name their tools."""
        if not self.document.struggled:
            return ()
        return find([line.call.record() for line in self.lines])

    def _state(self) -> str:
        """Write how the session went, and since when it is idle or has ended."""
        document, now = self.document, time.time()
        if document.ended_by is None:
            idle = now - document.last_activity if document.last_activity else None
            return f"{plain(document.state)}, idle {age(idle)}"
        ended = f"ended {age(now - document.ended_at)} ago" if document.ended_at else "ended"
        outcome = f"{plain(document.state)}, " if document.state else ""
        return f"{outcome}{ended}: {plain(document.ended_by)}"

    def closing(self) -> list[str]:
        """Explain the results, and sum up the bytes and tokens given to the model."""
        has_failed = any(line.call.verdict in _WHOSE for line in self.lines)
        return [*([_LEGEND] if has_failed else []), self._total()]

    def _total(self) -> str:
        whole, listed = self.document.context_bytes, self.document.catalogue_bytes
        parts = f" (catalogue {size(listed)}, answers {size(whole - listed)})" if listed else ""
        kept = f" by the newest {counted(len(self.lines), 'call')}" if self.document.is_partial and not whole else ""
        tokens = f"{self.tokens / 1000:.0f}k" if self.tokens >= 10_000 else f"{self.tokens:,}"
        return f"{size(self.given)} given to the model{parts}{kept}, about {tokens} tokens (bytes / {_BYTES_PER_TOKEN})"


def _cause(cut: Cut) -> str:
    return _CAUSES.get(cut.cause) or f"({plain(cut.cause)})"


def _quoted(text: str) -> str:
    return quote(text, safe="", errors="replace")


def _notes(call: Call, seen: Counter[tuple[str, str]], failing: Counter[str]) -> list[str]:
    notes: list[str] = []
    if call.failure is not None and call.failure != call.verdict:
        notes.append(_FAILURES.get(call.failure) or clean(call.failure, 64))
    notes += progress(call)
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
