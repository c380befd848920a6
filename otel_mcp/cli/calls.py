"""Columns for one call of a session, in `show` and `tail`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from otel_mcp.cli.document import Call, Document
from otel_mcp.cli.rows import Field, duration, moment, size
from otel_mcp.model.task import Task

VERDICTS: Final = {"wrong": "yellow", "failed": "red", "cancelled": "dim", "refused": "magenta"}
"""Colors of results."""


def offset(seconds: float) -> str:
    """Format the time since the session began: ``+4.2 s``, ``+3m07s``, ``+1h02m03s``."""
    if seconds < 100:
        return f"+{seconds:.1f} s"
    whole = int(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"+{hours}h{minutes:02}m{whole % 60:02}s" if hours else f"+{minutes}m{whole % 60:02}s"


def progress(call: Call) -> list[str]:
    """Return notes on a call that took several rounds, waits for input, or became a task."""
    notes: list[str] = []
    if call.rounds > 1:
        waited = _exactly(call.input_wait)
        notes += f"{call.rounds} rounds", f"{waited} waiting for input", f"{duration(call.duration)} ours"
    if call.waiting is not None:
        notes.append("waits for input")
    if call.task_duration is not None:
        notes.append(f"task {call.task_status} after {_exactly(call.task_duration)}")
    elif call.task is not None:
        notes.append("went on as a task" + (f", {call.task_status}" if call.task_status else ""))
    return notes


def _exactly(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if 2 <= minutes < 60 else duration(seconds)


def follow_tasks(calls: Iterable[Call], values: Iterable[bytes]) -> None:
    """Note what has become of the tasks that calls have begun, from those of the service as they stand in Redis."""
    tasks = (Task.read(value.decode("utf-8", "replace")) for value in values)
    known = {task.link: task for task in tasks if task is not None and task.link}
    for call in calls:
        if call.task is not None and (task := known.get(f"{call.trace_id}-{call.span_id}")) is not None:
            call.task_status = task.status
            call.task_duration = max(task.ended - task.began, 0.0) if task.ended else None


@dataclass
class Line:
    """One call of a session."""

    document: Document
    call: Call
    offset: float = 0.0
    """Seconds from the beginning of the session."""
    notes: list[str] = field(default_factory=list[str])
    """Remarks on the call; clean."""
    before: list[str] = field(default_factory=list[str])
    """Events between the previous call and this one; clean."""
    trace_url: str | None = None


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
"""In a pipe and in JSON only."""
NOTES: Final = Field[Line]("NOTES", lambda line: line.notes, "notes", lambda line: ", ".join(line.notes))
FIELDS: Final[tuple[Field[Line], ...]] = (
    Field("AT", lambda line: f"{line.offset:.3f}", show=lambda line: offset(line.offset), is_number=True),
    *(TOOL, RESULT, TOOK, SIZE),
)
"""Columns of a call for people, who see its notes after them."""
JSON_FIELDS: Final[tuple[Field[Line], ...]] = (
    Field("", lambda line: moment(line.call.started), "started_at"),
    Field("", lambda line: line.call.failure, "failure"),
    Field("", lambda line: line.call.digest, "arguments_digest"),
    Field("", lambda line: line.call.replica, "replica"),
    Field("", lambda line: line.call.span_id, "span_id"),
    Field("", lambda line: line.call.task, "task"),
    Field("", lambda line: line.call.rounds, "rounds"),
    Field("", lambda line: round(line.call.input_wait, 3), "input_wait"),
    Field("", lambda line: line.call.waiting is not None, "waiting"),
)
"""Further keys of a call in JSON."""
ALL_FIELDS: Final[tuple[Field[Line], ...]] = (
    *FIELDS,
    NOTES,
    Field("BETWEEN", lambda line: line.before, "before"),
    TRACE,
    *JSON_FIELDS,
    Field("", lambda line: line.call.task_status, "task_status"),
    Field("", lambda line: line.call.task_duration, "task_duration"),
    Field("", lambda line: round(line.offset, 3), "offset"),
    Field("", lambda line: line.call.request_id, "request_id"),
    Field("", lambda line: line.trace_url, "trace_url"),
)
"""Everything that ``otel-mcp show`` gives a program about a call."""
