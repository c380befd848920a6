"""The questions that the story, the checks and the report all put to the telemetry."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from .otlp_records import SpanRecord
from .otlp_store import TelemetryStore

OPERATION_DURATION: Final = "mcp.server.operation.duration"
CLIENT_DURATION: Final = "mcp.client.operation.duration"
INPUT_WAIT: Final = "otel_mcp.call.input.wait"
TASK_DURATION: Final = "otel_mcp.task.duration"
TASK_STATUS: Final = "otel_mcp.task.status"
SESSION_STARTED: Final = "otel_mcp.session.started"
SESSION_RESUMED: Final = "otel_mcp.session.resumed"
SESSION_ENDED: Final = "otel_mcp.session.ended"
END_REASON: Final = "otel_mcp.session.end.reason"
TOOLS_CALL: Final = {"mcp.method.name": "tools/call"}


def tool_call_spans(telemetry: TelemetryStore) -> list[SpanRecord]:
    """Return the SERVER spans of tool calls, the earliest first."""
    spans = [
        span
        for span in telemetry.spans()
        if span.kind == "SERVER" and span.attributes.get("mcp.method.name") == "tools/call"
    ]
    return sorted(spans, key=lambda span: span.start_ns)


def children_of(spans: Iterable[SpanRecord]) -> dict[str, list[SpanRecord]]:
    """Group spans by the id of their parent, the earliest first."""
    children: dict[str, list[SpanRecord]] = {}
    for span in sorted(spans, key=lambda span: span.start_ns):
        if span.parent_id:
            children.setdefault(span.parent_id, []).append(span)
    return children


def session_of(span: SpanRecord) -> str | None:
    """Return the session that a span says it belongs to."""
    session = span.attributes.get("session.id")
    return session if isinstance(session, str) else None


def processes_by_session(telemetry: TelemetryStore) -> dict[str, set[str]]:
    """Return, for each session, the processes that served its tool calls."""
    processes: dict[str, set[str]] = {}
    for span in tool_call_spans(telemetry):
        session = session_of(span)
        if session:
            processes.setdefault(session, set()).add(span.origin.instance)
    return processes


def by_attribute(telemetry: TelemetryStore, name: str, attribute: str) -> dict[str, float]:
    """Add up a counter for each value of an attribute, `-` where a series has none."""
    totals: dict[str, float] = {}
    for point in telemetry.points(name):
        value = str(point.attributes.get(attribute, "-"))
        totals[value] = totals.get(value, 0) + point.value
    return totals
