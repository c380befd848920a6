"""OTLP protobuf messages to records: pure functions, one for each signal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.metrics.v1 import metrics_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

from .otlp_records import (
    Attributes,
    AttributeValue,
    EventRecord,
    Exemplar,
    LinkRecord,
    LogRecord,
    MetricPoint,
    Origin,
    SpanRecord,
)

_TEMPORALITIES = {1: "delta", 2: "cumulative"}
_KINDS = {number: name.removeprefix("SPAN_KIND_") for name, number in trace_pb2.Span.SpanKind.items()}
_STATUSES = {number: name.removeprefix("STATUS_CODE_") for name, number in trace_pb2.Status.StatusCode.items()}


def spans_of(request: ExportTraceServiceRequest) -> Iterator[SpanRecord]:
    """Yield every span of a trace export."""
    for resource_spans in request.resource_spans:
        resource = _attributes(resource_spans.resource.attributes)
        for scope_spans in resource_spans.scope_spans:
            origin = _origin(resource, scope_spans.scope, scope_spans.schema_url)
            for span in scope_spans.spans:
                yield _span(span, origin)


def metric_points_of(request: ExportMetricsServiceRequest) -> Iterator[MetricPoint]:
    """Yield every point of a metrics export."""
    for resource_metrics in request.resource_metrics:
        resource = _attributes(resource_metrics.resource.attributes)
        for scope_metrics in resource_metrics.scope_metrics:
            origin = _origin(resource, scope_metrics.scope, scope_metrics.schema_url)
            for metric in scope_metrics.metrics:
                yield from _points(metric, origin)


def log_records_of(request: ExportLogsServiceRequest) -> Iterator[LogRecord]:
    """Yield every log record of a logs export."""
    for resource_logs in request.resource_logs:
        resource = _attributes(resource_logs.resource.attributes)
        for scope_logs in resource_logs.scope_logs:
            origin = _origin(resource, scope_logs.scope, scope_logs.schema_url)
            for record in scope_logs.log_records:
                yield LogRecord(
                    event_name=record.event_name,
                    body=_value(record.body),
                    severity=record.severity_text,
                    time_ns=record.time_unix_nano or record.observed_time_unix_nano,
                    trace_id=record.trace_id.hex(),
                    span_id=record.span_id.hex(),
                    attributes=_attributes(record.attributes),
                    origin=origin,
                )


def _origin(resource: Attributes, scope: common_pb2.InstrumentationScope, schema_url: str) -> Origin:
    return Origin(resource, scope.name, scope.version, schema_url)


def _value(value: common_pb2.AnyValue) -> AttributeValue:
    match value.WhichOneof("value"):
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "int_value":
            return value.int_value
        case "double_value":
            return value.double_value
        case "bytes_value":
            return value.bytes_value
        case "array_value":
            return [_value(item) for item in value.array_value.values]
        case "kvlist_value":
            return _attributes(value.kvlist_value.values)
        case _:
            return None


def _attributes(pairs: Iterable[common_pb2.KeyValue]) -> Attributes:
    return {pair.key: _value(pair.value) for pair in pairs}


def _span(span: trace_pb2.Span, origin: Origin) -> SpanRecord:
    return SpanRecord(
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex() or None,
        name=span.name,
        kind=_KINDS.get(span.kind, str(span.kind)),
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        status=_STATUSES.get(span.status.code, str(span.status.code)),
        status_message=span.status.message,
        attributes=_attributes(span.attributes),
        origin=origin,
        links=tuple(
            LinkRecord(link.trace_id.hex(), link.span_id.hex(), _attributes(link.attributes)) for link in span.links
        ),
        events=tuple(
            EventRecord(event.name, event.time_unix_nano, _attributes(event.attributes)) for event in span.events
        ),
    )


def _points(metric: metrics_pb2.Metric, origin: Origin) -> Iterator[MetricPoint]:
    match metric.WhichOneof("data"):
        case "gauge":
            for point in metric.gauge.data_points:
                yield _number_point(metric, origin, "gauge", point)
        case "sum":
            temporality = _TEMPORALITIES.get(metric.sum.aggregation_temporality)
            for point in metric.sum.data_points:
                yield replace(
                    _number_point(metric, origin, "sum", point),
                    temporality=temporality,
                    monotonic=metric.sum.is_monotonic,
                )
        case "histogram":
            temporality = _TEMPORALITIES.get(metric.histogram.aggregation_temporality)
            for point in metric.histogram.data_points:
                yield _histogram_point(metric, origin, temporality, point)
        case _:
            # Exponential histograms and summaries: neither is sent unless it is asked for.
            return


def _number_point(
    metric: metrics_pb2.Metric, origin: Origin, kind: str, point: metrics_pb2.NumberDataPoint
) -> MetricPoint:
    return MetricPoint(
        name=metric.name,
        unit=metric.unit,
        kind=kind,
        attributes=_attributes(point.attributes),
        origin=origin,
        start_ns=point.start_time_unix_nano,
        time_ns=point.time_unix_nano,
        value=_number(point),
        exemplars=_exemplars(point.exemplars),
    )


def _histogram_point(
    metric: metrics_pb2.Metric,
    origin: Origin,
    temporality: str | None,
    point: metrics_pb2.HistogramDataPoint,
) -> MetricPoint:
    return MetricPoint(
        name=metric.name,
        unit=metric.unit,
        kind="histogram",
        attributes=_attributes(point.attributes),
        origin=origin,
        start_ns=point.start_time_unix_nano,
        time_ns=point.time_unix_nano,
        temporality=temporality,
        count=point.count,
        sum=point.sum,
        bounds=tuple(point.explicit_bounds),
        bucket_counts=tuple(point.bucket_counts),
        exemplars=_exemplars(point.exemplars),
    )


def _number(point: metrics_pb2.NumberDataPoint | metrics_pb2.Exemplar) -> float:
    return point.as_double if point.WhichOneof("value") == "as_double" else point.as_int


def _exemplars(exemplars: Iterable[metrics_pb2.Exemplar]) -> tuple[Exemplar, ...]:
    return tuple(
        Exemplar(
            _number(exemplar),
            exemplar.time_unix_nano,
            exemplar.trace_id.hex(),
            exemplar.span_id.hex(),
        )
        for exemplar in exemplars
    )
