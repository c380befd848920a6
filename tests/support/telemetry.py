"""Questions that several tests put to exported telemetry."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from examples.demo.otlp_records import SpanRecord
from examples.demo.otlp_store import TelemetryStore

OPERATION_DURATION = "mcp.server.operation.duration"
TOOLS_CALL = {"mcp.method.name": "tools/call"}


def server_spans(telemetry: TelemetryStore, method: str | None = None) -> list[SpanRecord]:
    """The SERVER spans of MCP messages."""
    return [
        span
        for span in telemetry.spans()
        if span.kind == "SERVER"
        and "mcp.method.name" in span.attributes
        and method in (None, span.attributes["mcp.method.name"])
    ]


def counted(telemetry: TelemetryStore, attribute: str, **only: str) -> Counter[str]:
    """The counts of the operation duration by one of its attributes."""
    counts: Counter[str] = Counter()
    wanted = {name.replace("_", "."): value for name, value in only.items()}
    for point in telemetry.points(OPERATION_DURATION, wanted):
        if attribute in point.attributes:
            counts[str(point.attributes[attribute])] += point.count
    return counts


def ancestors(span: SpanRecord, spans: Iterable[SpanRecord]) -> list[SpanRecord]:
    """The spans above one, the nearest first."""
    by_id = {other.span_id: other for other in spans}
    found: list[SpanRecord] = []
    while span.parent_id in by_id:
        span = by_id[span.parent_id]
        found.append(span)
    return found
