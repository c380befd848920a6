"""Read session documents of any version, as far as they can be read.

The package's own model is not used: it rejects a whole document for one unknown value.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, cast

from otel_mcp.model.delta import FACTS, CallRecord
from otel_mcp.model.outcomes import CALLERS_FAULT
from otel_mcp.model.state import ADVICE
from otel_mcp.model.verdict import PATTERNS
from otel_mcp.wire.jsonrpc import CALLER_CODES

LIVE: Final = "live"
PROBE: Final = "probe"
CUT: Final = "cut"
STRUGGLES: Final = frozenset({*PATTERNS, "gave_up"})
"""Outcomes and findings of sessions that went in circles or gave up."""
_WRONG: Final = CALLERS_FAULT | CALLER_CODES
"""Failures that are the caller's fault, and error codes of documents without `failure`."""


@dataclass(slots=True)
class Call:
    """One finished tool call. Instants are Unix seconds, here and below."""

    tool: str
    started: float
    """0 = unknown."""
    duration: float
    """Seconds, without `input_wait`."""
    failure: str | None
    """``unknown_tool``, ``tool``...; ``None`` = the call succeeded."""
    verdict: str
    """``ok``, ``wrong`` (the caller's fault), ``failed`` (the server's), or ``cancelled``, ``refused``."""
    size: int | None
    """Bytes of the answer."""
    digest: str | None
    """Keyed hash of the arguments."""
    trace_id: str | None
    span_id: str | None
    request_id: str | int | None
    replica: str | None
    """The process that served the call, if the document names it."""
    task: str | None = None
    """Keyed hash of the task that the call began."""
    task_status: str | None = None  # The last one, while Redis knows the task.
    task_duration: float | None = None  # Seconds until its end.
    rounds: int = 1
    """Requests that the call took; more than one if it asked for input."""
    input_wait: float = 0.0
    """Seconds that the call waited for input."""
    waiting: str | None = None
    """Set while the call waits for input."""

    @property
    def end(self) -> float:
        """When the call was answered."""
        return self.started + self.duration + self.input_wait

    def record(self) -> CallRecord:
        """Return the record by which `model.verdict` judges the session."""
        record = CallRecord(self.tool, self.request_id, self.started, self.duration)
        record.failure, record.result_bytes, record.arguments_digest = self.failure, self.size, self.digest
        record.input_wait, record.waiting = self.input_wait, self.waiting
        return record


class Cut(NamedTuple):
    """An interruption: the server answered the client that it does not know the session."""

    at: float
    cause: str
    """``restart``, ``replica`` or ``idle_reaper``."""


class Advice(NamedTuple):
    """Advice that the observer agent got from a model."""

    problem: str
    """``looped``..."""
    cause: str
    change: str
    tool: str | None
    """The tool to change."""
    confidence: str
    model: str


class Open(NamedTuple):
    """One tool call in flight."""

    tool: str
    started: float
    session_id: str | None
    replica: str | None


@dataclass(slots=True)
class Document:
    """One session."""

    session_id: str
    service: str | None
    facts: dict[str, str | None]
    """Facts of the session under their names in the document."""
    created: float | None
    last_activity: float | None
    ended_at: float | None
    ended_by: str | None
    """Why the session ended: ``client_delete``, ``expired``...; ``None`` while it lives."""
    outcome: str | None
    """How the session went; ``live`` while it runs; ``None`` = ended, but not reported yet."""
    is_probe: bool  # The client is a monitor or a registry.
    call_count: int
    """Number of all calls; `calls` has the newest."""
    error_count: int
    request_count: int
    context_bytes: int = 0
    """Bytes given to the model; 0 = unknown."""
    catalogue_bytes: int = 0
    """The part of `context_bytes` that is the list of tools."""
    calls: list[Call] = field(default_factory=list[Call])
    """Oldest first."""
    findings: list[str] = field(default_factory=list[str])
    """Patterns found while the session ran: ``looped``..."""
    cut: Cut | None = None
    """The newest interruption."""
    advice: list[Advice] = field(default_factory=list[Advice])
    caller: str | None = None
    """First digits of the keyed hash of the user; not part of the document."""

    def count(self, verdict: str) -> int:
        """Count the calls in the document with this verdict."""
        return sum(call.verdict == verdict for call in self.calls)

    @property
    def client(self) -> str:
        """Name and version of the client."""
        name = self.facts["client_name"]
        return f"{name} {self.facts['client_version'] or ''}".strip() if name else ""

    @property
    def is_cut(self) -> bool:
        """Whether the session was interrupted and its client has not come back."""
        newest = max((call.started for call in self.calls), default=0.0)
        return self.cut is not None and self.ended_by != "replaced" and newest < self.cut.at

    @property
    def marks(self) -> list[str]:
        """Findings other than the outcome, and ``cut``."""
        return [*([CUT] if self.is_cut else []), *(each for each in self.findings if each != self.outcome)]

    @property
    def state(self) -> str:
        """Outcome and marks, separated by commas; empty if there are none."""
        return ", ".join([*([self.outcome] if self.outcome else []), *self.marks])

    @property
    def struggled(self) -> bool:
        """Whether the client went in circles or gave up."""
        return bool(self.findings) or self.outcome in STRUGGLES

    @property
    def is_partial(self) -> bool:
        """Whether the document lacks older calls."""
        return self.call_count > len(self.calls)


def parse(raw: object) -> Document | None:
    """Parse the session in a value of Redis; ``None`` if it has no session id."""
    if not isinstance(raw, bytes):
        return None
    try:
        fields = _dict(json.loads(raw.decode("utf-8", "replace")))
    except (ValueError, RecursionError):
        return None
    session_id = _text(fields.get("session_id"))
    if session_id is None:
        return None
    calls = [call for item in _list(fields.get("tool_calls")) if (call := _call(_dict(item))) is not None]
    ended = _dict(fields.get("ended"))
    reason = _text(ended.get("reason"))
    outcome = _text(fields.get("outcome"))
    cut = _dict(fields.get("interrupted"))
    cut_at = _instant(cut.get("at"))
    return Document(
        session_id=session_id,
        service=_text(fields.get("service")),
        facts={fact.name: _text(fields.get(fact.name)) for fact in FACTS},
        created=_instant(fields.get("created_at")),
        last_activity=_instant(fields.get("last_activity")),
        ended_at=_instant(ended.get("at")),
        ended_by=reason,
        outcome=outcome or (None if reason else LIVE),
        is_probe=outcome == PROBE or _text(fields.get("synthetic_type")) is not None,
        call_count=max(int(_number(fields.get("tool_call_count"))), len(calls)),
        error_count=int(_number(fields.get("error_count"))),
        request_count=int(_number(fields.get("request_count"))),
        context_bytes=int(_number(fields.get("context_bytes"))),
        catalogue_bytes=int(_number(fields.get("catalogue_bytes"))),
        calls=calls,
        findings=[each for each in _list(fields.get("findings")) if isinstance(each, str)],
        advice=list(_advice(_dict(_dict(fields.get("attributes")).get(ADVICE)))),
        cut=Cut(cut_at, _text(cut.get("cause")) or "unknown") if cut_at else None,
    )


def _advice(problems: dict[str, Any]) -> Iterator[Advice]:
    for problem, said in problems.items():
        cause, change, tool, confidence, model = (
            _text(_dict(said).get(name)) for name in ("cause", "change", "tool", "confidence", "model")
        )
        if cause or change:
            yield Advice(problem, cause or "", change or "", tool, confidence or "", model or "a model")


def open_calls(raw: bytes) -> tuple[float, list[Open]]:
    """Parse a value of the hash ``in_flight``: Unix seconds of its writing, and the calls that one process has."""
    at, _, text = raw.partition(b" ")
    try:
        written, known = int(at) / 1e6, json.loads(text)
    except (ValueError, RecursionError):
        return 0.0, []
    calls = [(_text(each.get("tool_name")), _number(each.get("started_at")), each) for each in map(_dict, _list(known))]
    return written, [
        Open(tool, started, _text(each.get("session_id")), _text(each.get("service_instance_id")))
        for tool, started, each in calls
        if tool is not None and started
    ]


def _call(fields: dict[str, Any]) -> Call | None:
    tool = _text(fields.get("tool_name"))
    if tool is None:
        return None
    failure = _text(fields.get("failure")) or _text(fields.get("error_type"))
    request_id, size = fields.get("request_id"), fields.get("result_bytes")
    return Call(
        tool=tool,
        started=_instant(fields.get("started_at")) or 0.0,
        duration=_number(fields.get("duration")),
        failure=failure,
        verdict=_verdict(failure),
        size=None if size is None else int(_number(size)),
        digest=_text(fields.get("arguments_digest")),
        trace_id=_hex(fields.get("trace_id"), 32),
        span_id=_hex(fields.get("span_id"), 16),
        request_id=request_id if isinstance(request_id, (str, int)) else None,
        replica=_text(fields.get("service_instance_id")),
        rounds=max(int(_number(fields.get("rounds"))), 1),
        input_wait=_number(fields.get("input_wait")),
        waiting=_text(fields.get("waiting")),
        task=_text(fields.get("task")),
    )


def _verdict(failure: str | None) -> str:
    if failure in {None, "cancelled", "refused"}:
        return failure or "ok"
    return "wrong" if failure in _WRONG else "failed"  # Failures of later versions count as the server's.


def _dict(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _list(value: object) -> list[object]:
    return cast("list[object]", value) if isinstance(value, list) else []


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _hex(value: object, digits: int) -> str | None:
    """Return a trace or span id if it is well-formed: it becomes part of a URL."""
    return value if isinstance(value, str) and len(value) == digits and value.isascii() and value.isalnum() else None


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) and 0 <= value < 1e12 else 0.0


def _instant(value: object) -> float | None:
    try:
        moment = datetime.fromisoformat(cast(str, value))
    except (ValueError, TypeError):
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
