"""What an OTLP export says, as plain dataclasses.

Protobuf messages are awkward to compare and to print. These records hold the same facts with
ids in hex and attributes in dicts. They know nothing of how they were received.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

AttributeValue: TypeAlias = "str | bool | int | float | bytes | list[AttributeValue] | dict[str, AttributeValue] | None"
Attributes: TypeAlias = "dict[str, AttributeValue]"


@dataclass(frozen=True)
class Origin:
    """Who made a record: the resource (a process) and the instrumentation scope (a library)."""

    resource: Attributes
    scope: str
    scope_version: str = ""
    schema_url: str = ""

    @property
    def instance(self) -> str:
        """The `service.instance.id`, which tells one process from another."""
        return str(self.resource.get("service.instance.id", ""))


@dataclass(frozen=True)
class LinkRecord:
    """A span's link to another span."""

    trace_id: str
    span_id: str
    attributes: Attributes


@dataclass(frozen=True)
class EventRecord:
    """An event on a span."""

    name: str
    time_ns: int
    attributes: Attributes


@dataclass(frozen=True)
class SpanRecord:
    """A finished span. `parent_id` is None for a root, `kind` and `status` are upper-case names."""

    trace_id: str
    span_id: str
    parent_id: str | None
    name: str
    kind: str
    start_ns: int
    end_ns: int
    status: str
    status_message: str
    attributes: Attributes
    origin: Origin
    links: tuple[LinkRecord, ...] = ()
    events: tuple[EventRecord, ...] = ()

    @property
    def duration(self) -> float:
        """Seconds from start to end."""
        return (self.end_ns - self.start_ns) / 1e9


@dataclass(frozen=True)
class Exemplar:
    """A measurement that points at the span it was made in."""

    value: float
    time_ns: int
    trace_id: str
    span_id: str


@dataclass(frozen=True)
class MetricPoint:
    """One point of one time series.

    A sum or a gauge has `value`. A histogram has `count` and `sum`, and one more entry in
    `bucket_counts` than in `bounds`. `temporality` is `cumulative`, `delta`, or None for a gauge.
    """

    name: str
    unit: str
    kind: str
    attributes: Attributes
    origin: Origin
    start_ns: int
    time_ns: int
    temporality: str | None = None
    monotonic: bool = False
    value: float = 0.0
    count: int = 0
    sum: float = 0.0
    bounds: tuple[float, ...] = ()
    bucket_counts: tuple[int, ...] = ()
    exemplars: tuple[Exemplar, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class LogRecord:
    """A log record; one with an `event_name` is an OpenTelemetry event."""

    event_name: str
    body: AttributeValue
    severity: str
    time_ns: int
    trace_id: str
    span_id: str
    attributes: Attributes
    origin: Origin
