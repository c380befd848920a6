"""Providers of telemetry in memory, questions to what they export, and a clock that stands."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, Final

import pytest
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs import export as log_export
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Sampler

from otel_mcp.types import Message

IN_MEMORY_LOGS: Final[Any] = getattr(
    log_export, "InMemoryLogRecordExporter", getattr(log_export, "InMemoryLogExporter", None)
)
"""Before OpenTelemetry 1.39 it had another name."""


@dataclass
class Metric:
    """One metric as a reader sees it."""

    unit: str
    kind: str
    points: dict[frozenset[tuple[str, Any]], Any]
    """By attributes: the value, or for a histogram (count, sum)."""
    bounds: tuple[float, ...] = ()


class Telemetry:
    """Everything that one runtime exports."""

    def __init__(self, sampler: Sampler | None = None) -> None:
        self.span_exporter = InMemorySpanExporter()
        self.tracer_provider = TracerProvider(sampler=sampler) if sampler is not None else TracerProvider()
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self.span_exporter))
        self.reader = InMemoryMetricReader()
        self.meter_provider = MeterProvider([self.reader])
        self.log_exporter = IN_MEMORY_LOGS()
        self.logger_provider = LoggerProvider()
        self.logger_provider.add_log_record_processor(log_export.SimpleLogRecordProcessor(self.log_exporter))

    def metrics(self) -> dict[str, Metric]:
        """All metrics by name. Collecting them also records whatever has finished."""
        data = self.reader.get_metrics_data()
        found: dict[str, Metric] = {}
        for resource in data.resource_metrics if data is not None else ():
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    points: dict[frozenset[tuple[str, Any]], Any] = {}
                    bounds: tuple[float, ...] = ()
                    for point in metric.data.data_points:
                        value: Any
                        if isinstance(point, HistogramDataPoint):
                            value, bounds = (point.count, point.sum), tuple(point.explicit_bounds)
                        else:
                            value = getattr(point, "value", None)
                        points[frozenset((point.attributes or {}).items())] = value
                    kind = type(metric.data).__name__
                    if kind == "Sum":
                        kind = "Counter" if getattr(metric.data, "is_monotonic", False) else "UpDownCounter"
                    found[metric.name] = Metric(metric.unit or "", kind, points, bounds)
        return found

    def points(self, name: str) -> list[tuple[dict[str, Any], Any]]:
        """The points of one metric as (attributes, value)."""
        metric = self.metrics().get(name)
        return [(dict(attributes), value) for attributes, value in metric.points.items()] if metric else []

    def counts(self, name: str) -> dict[frozenset[tuple[str, Any]], int]:
        """The counts of one histogram by attributes."""
        return {frozenset(attributes.items()): value[0] for attributes, value in self.points(name)}

    def spans(self) -> list[ReadableSpan]:
        """Every span that has ended, in the order in which they began."""
        self.metrics()
        return sorted(self.span_exporter.get_finished_spans(), key=lambda span: span.start_time or 0)

    def span(self) -> ReadableSpan:
        """The one span that has ended."""
        (span,) = self.spans()
        return span

    def events(self) -> list[Message]:
        """Every log record as name and attributes."""
        records = [data.log_record for data in self.log_exporter.get_finished_logs()]
        return [{"name": record.event_name, "attributes": dict(record.attributes or {})} for record in records]

    def shut_down(self) -> None:
        self.tracer_provider.shutdown()
        self.meter_provider.shutdown()
        self.logger_provider.shutdown()

    def everything(self) -> str:
        """All that has been exported, as one text to look for secrets in."""
        spans = [span.to_json() for span in self.spans()]
        data = self.reader.get_metrics_data()
        logs = [str(vars(data.log_record)) for data in self.log_exporter.get_finished_logs()]
        return "\n".join([*spans, data.to_json() if data is not None else "", *logs])


def described(span: ReadableSpan) -> Message:
    """A span as a dictionary to compare, without its own ids and times."""
    scope = span.instrumentation_scope
    return {
        "name": span.name,
        "kind": span.kind.name,
        "scope": scope.name if scope is not None else None,
        "parent": f"{span.parent.span_id:016x}" if span.parent is not None else None,
        "attributes": dict(span.attributes or {}),
        "status": (span.status.status_code.name, span.status.description),
        "events": [event.name for event in span.events],
        "links": [f"{link.context.span_id:016x}" for link in span.links],
    }


def trace_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.trace_id:032x}"


def id_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.span_id:016x}"


class Clock:
    """The time that requests are measured by: Unix time and the process's own counter, stopped."""

    def __init__(self, now: float = 1_750_000_000.0) -> None:
        self.now = now
        """Unix seconds."""

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Have every module that has been loaded measure by this clock."""
        from otel_mcp.model.call import Exchange

        for name, module in list(sys.modules.items()):
            if name.startswith("otel_mcp") and hasattr(module, "perf_counter"):
                monkeypatch.setattr(module, "perf_counter", lambda: self.now - 1_000_000.0)
        made = Exchange.__init__

        def init(exchange: Exchange, *args: Any, **kwargs: Any) -> None:
            made(exchange, *args, **kwargs)
            exchange.started, exchange.started_ns = self.now - 1_000_000.0, self.now_ns

        monkeypatch.setattr(Exchange, "__init__", init)

    @property
    def now_ns(self) -> int:
        return round(self.now * 1e6) * 1000
