"""Rows in which something of somebody else stands around the server, or in the same process: what must hold in each.

The answers, and what the server writes into its log, are those of the same process without us. Each message has one
SERVER span, with its session and the right outcome.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryDirectory
from typing import Any, Final

from examples.demo.otlp_receiver import OtlpReceiver
from tests.matrix.cells import Cell
from tests.matrix.serving import served
from tests.matrix.visits import CALLS, GOOD, LEGACY, Answer, Call, Visit

_DISABLED: Final = "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"
"""What is there of others is set up by the app, one at a time."""
_CALLERS: Final = frozenset({"-32700", "-32600", "-32601", "-32602", "-32002"})
"""Codes of errors that are the caller's: no failure of the server."""
_CODE: Final = re.compile(r'"error": \{"code": (-\d+)')
_TIMES: Final = re.compile(r"^\[[^]]*\d:\d\d\]? ?|^\s+(?=[A-Z]+ )")
_VARIES: Final = re.compile(r"om1\.[\w.-]+|[0-9a-f]{8,}|0x[0-9a-f]+|\d+(?:\.\d+)?")
_BOXES: Final = ("│", "╭", "╰", "❱")
_WIDE: Final = {"COLUMNS": "2000", "TERM": "dumb"}
"""What rich reads; it would break lines where numbers have a digit more."""


@dataclass(frozen=True)
class Neighbour:
    """A row."""

    cell: Cell
    revisions: tuple[str, ...] = (LEGACY,)
    calls: tuple[Call, ...] = CALLS
    backend: Cell | None = None
    """What a proxy stands before."""
    headers: tuple[tuple[str, str], ...] = ()
    stranger: tuple[tuple[str, str], ...] = ()
    """Headers of another user, who names the session of the first in a call of his own."""
    known: tuple[str, ...] = ()
    """Expressions for what does not hold yet. Each has to be met, so that it is taken away once it holds."""

    def __str__(self) -> str:
        return str(self.cell)


@dataclass(frozen=True)
class Side:
    """What one side of a comparison gave."""

    visits: list[tuple[Visit, int, int]]
    """With the time of begin and end, in nanoseconds."""
    log: set[str]
    spans: list[Any]
    begun: Counter[str]
    """How often each session has begun."""

    @property
    def answers(self) -> list[Answer]:
        return [answer for visit, _, _ in self.visits for answer in visit.answers]


def check(row: Neighbour, redis_url: str) -> list[str]:
    """What is wrong with a row; raises `ServerFailed`."""
    problems = _problems(row, redis_url)
    left = [problem for problem in problems if not any(re.search(known, problem) for known in row.known)]
    over = [known for known in row.known if not any(re.search(known, problem) for problem in problems)]
    return left + [f"holds by now, and is no longer to be listed as known: {known}" for known in over]


def _problems(row: Neighbour, redis_url: str) -> list[str]:
    bare = _side(row, {_DISABLED: "mcp,otel_mcp"})
    # Rows that run at once share the store, but no session.
    service = f"matrix-{token_hex(4)}"
    ours = _side(row, {_DISABLED: "mcp", "OTEL_PYTHON_MCP_REDIS_URL": redis_url, "OTEL_SERVICE_NAME": service})
    problems = [
        f"{where}: {answer}"
        for where, answers in (
            ("only with us", Counter(ours.answers) - Counter(bare.answers)),
            ("only without", Counter(bare.answers) - Counter(ours.answers)),
        )
        for answer in answers.elements()
    ]
    problems += [f"in the log only with us: {line}" for line in sorted(ours.log - bare.log)]
    seen: Counter[str] = Counter()
    for visit, began, ended in ours.visits:
        spans = [span for span in ours.spans if began <= span.start_ns <= ended]
        problems += [f"{visit.revision}: {problem}" for problem in _visit_problems(visit, spans)]
        seen.update({str(span.attributes["session.id"]) for span in spans if "session.id" in span.attributes})
    problems += [f"session of two visits: {session}" for session, visits in seen.items() if visits > 1]
    if ours.begun != seen:
        problems.append(f"sessions begun: {ours.begun!r}, expected {seen!r}")
    return problems


def _side(row: Neighbour, environment: dict[str, str]) -> Side:
    with ExitStack() as stack:
        environment = {**environment, **_WIDE}
        if row.backend is not None:
            environment |= {"BACKEND": stack.enter_context(served(row.backend, None)) + "/mcp"}
        log = Path(stack.enter_context(TemporaryDirectory())) / "log"
        receiver = stack.enter_context(OtlpReceiver())
        visits: list[tuple[Visit, int, int]] = []
        with served(row.cell, receiver.endpoint, environment=environment, log=log) as url:
            for revision in row.revisions:
                visit = Visit(f"{url}/mcp", revision, row.calls, dict(row.headers))
                began = time.time_ns()
                visit.run()
                visits.append((visit, began, time.time_ns()))
                if row.stranger and revision == LEGACY:
                    began = time.time_ns()
                    other = Visit(f"{url}/mcp", revision, (GOOD,), dict(row.stranger), joins=visit.session)
                    other.run()
                    visits.append((other, began, time.time_ns()))
                visit.leave()
        events = receiver.telemetry.events("session.start")
        begun = Counter(str(event.attributes.get("session.id")) for event in events)
        return Side(visits, _lines(log.read_text(errors="replace")), receiver.telemetry.spans(), begun)


def _lines(log: str) -> set[str]:
    """What was written, without times, ids and tracebacks, in which frames of ours may stand."""
    lines = (_TIMES.sub("", line) for line in log.splitlines())
    return {" ".join(_VARIES.sub("#", line).split()) for line in lines if line and not line.startswith((" ", *_BOXES))}


def _visit_problems(visit: Visit, spans: list[Any]) -> list[str]:
    problems: list[str] = []

    def expect(what: str, found: object, expected: object) -> None:
        if found != expected:
            problems.append(f"{what}: {found!r}, expected {expected!r}")

    served_spans = [span for span in spans if span.kind == "SERVER" and _is_request(span)]
    spanned = Counter(
        (s.attributes.get("mcp.method.name"), str(s.attributes.get("jsonrpc.request.id"))) for s in served_spans
    )
    expect("spans", spanned, Counter(visit.requests))
    expect("sessions", len({span.attributes.get("session.id") for span in served_spans} - {None}), 1)
    source = "header" if visit.revision == LEGACY else "inferred" if visit.credential else "inferred_weak"
    expect("sources", {span.attributes.get("otel_mcp.session.source") for span in served_spans}, {source})
    by_id = {_id(span): span for span in served_spans}
    ids = [number for method, number in visit.requests if method == "tools/call"]
    answers = [answer for answer in visit.answers if answer.asked.startswith("tools/call")]
    for number, call, answer in zip(ids, visit.calls, answers, strict=True):
        span = by_id.get(number)
        if span is not None:
            error = _error_of(answer)
            found = {name: span.attributes.get(name) for name in ("gen_ai.tool.name", "error.type", "otel_mcp.failure")}
            expected = {"gen_ai.tool.name": call.tool, "error.type": error, "otel_mcp.failure": call.failure}
            expect(
                f"call {number}",
                {**found, "status": span.status},
                {**expected, "status": "ERROR" if error else "UNSET"},
            )
    calls = {span.span_id: span for span in served_spans if span.attributes.get("mcp.method.name") == "tools/call"}
    everything = {span.span_id: span for span in spans}
    for query in (span for span in spans if span.name == "query"):
        above = _call_above(query, everything, calls)
        session = None if above is None else above.attributes.get("session.id")
        expect("session of a query beneath its call", query.attributes.get("session.id") or "none", session)
    return problems


def _id(span: Any) -> str:
    return str(span.attributes.get("jsonrpc.request.id"))


def _is_request(span: Any) -> bool:
    """Whether a span is of an MCP request, opened by any library."""
    if "jsonrpc.request.id" in span.attributes:
        return True
    method = str(span.attributes.get("mcp.method.name") or span.name.partition(" ")[0])
    return method in {"initialize", "tools/list", "tools/call"}


def _error_of(answer: Answer) -> str | None:
    """``error.type`` for an answer."""
    if code := _CODE.search(answer.text):
        return None if code[1] in _CALLERS else code[1]
    return "tool_error" if '"isError": true' in answer.text or '"isError":true' in answer.text else None


def _call_above(span: Any, everything: dict[str, Any], calls: dict[str, Any]) -> Any:
    while (span := everything.get(span.parent_id)) is not None:
        if span.span_id in calls:
            return span
    return None
