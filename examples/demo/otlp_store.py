"""Received telemetry, kept in memory until somebody asks.

Memory is bounded: of a metric only the latest point of each time series is kept, of everything
else the newest `capacity` records. Every method may be called from any thread.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Mapping
from typing import TypeAlias

from .otlp_histogram import Histogram, merge
from .otlp_records import AttributeValue, Exemplar, LogRecord, MetricPoint, SpanRecord

_SeriesKey: TypeAlias = "tuple[str, str, str, str]"


class TelemetryStore:
    """Spans, metric points and log records, with the questions one asks about them."""

    def __init__(self, capacity: int = 50_000) -> None:
        self._lock = threading.Lock()
        self._spans: deque[SpanRecord] = deque(maxlen=capacity)
        self._logs: deque[LogRecord] = deque(maxlen=capacity)
        self._exemplars: deque[tuple[str, Exemplar]] = deque(maxlen=capacity)
        self._series: dict[_SeriesKey, MetricPoint] = {}

    def add_spans(self, spans: Iterable[SpanRecord]) -> None:
        """Take in what a trace export held."""
        with self._lock:
            self._spans.extend(spans)

    def add_points(self, points: Iterable[MetricPoint]) -> None:
        """Take in what a metrics export held."""
        with self._lock:
            for point in points:
                key = _series_key(point)
                known = self._series.get(key)
                if known is None or point.time_ns >= known.time_ns:
                    self._series[key] = point
                self._exemplars.extend((point.name, exemplar) for exemplar in point.exemplars)

    def add_logs(self, records: Iterable[LogRecord]) -> None:
        """Take in what a logs export held."""
        with self._lock:
            self._logs.extend(records)

    def spans(self) -> list[SpanRecord]:
        """Return every span so far, in the order of arrival."""
        with self._lock:
            return list(self._spans)

    def logs(self) -> list[LogRecord]:
        """Return every log record so far, in the order of arrival."""
        with self._lock:
            return list(self._logs)

    def events(self, name: str) -> list[LogRecord]:
        """Return the log records with this event name."""
        return [record for record in self.logs() if record.event_name == name]

    def exemplars(self, name: str) -> list[Exemplar]:
        """Return the exemplars of a metric from all exports: an SDK sends each only once."""
        with self._lock:
            return [exemplar for metric, exemplar in self._exemplars if metric == name]

    def points(
        self, name: str | None = None, attributes: Mapping[str, AttributeValue] | None = None
    ) -> list[MetricPoint]:
        """Return the latest point of each time series.

        Args:
            name: Only this metric.
            attributes: Only points that have all of these, and maybe more.
        """
        wanted = dict(attributes or {}).items()
        with self._lock:
            latest = list(self._series.values())
        return [point for point in latest if name in (None, point.name) and wanted <= point.attributes.items()]

    def total(self, name: str, attributes: Mapping[str, AttributeValue] | None = None) -> float:
        """Add up what all processes say of a metric: values, or the counts of a histogram.

        A process that has ended goes on counting with its last value. Where every
        process reports the same thing, as with a gauge over shared state, a sum makes no sense:
        use `latest` there.

        Raises:
            ValueError: The temporality is not cumulative, so the latest point is no total.
        """
        points = self.points(name, attributes)
        _require_cumulative(points)
        return sum(point.count if point.kind == "histogram" else point.value for point in points)

    def latest(self, name: str, attributes: Mapping[str, AttributeValue] | None = None) -> float | None:
        """Return the newest value that any process reported, or None."""
        points = self.points(name, attributes)
        return max(points, key=lambda point: point.time_ns).value if points else None

    def histogram(self, name: str, attributes: Mapping[str, AttributeValue] | None = None) -> Histogram:
        """Merge a histogram over all processes and over the attributes that were not asked for.

        Raises:
            ValueError: The temporality is not cumulative, or bucket bounds differ.
        """
        points = self.points(name, attributes)
        _require_cumulative(points)
        return merge(points)


def _series_key(point: MetricPoint) -> _SeriesKey:
    process = point.origin.instance or _sorted_text(point.origin.resource)
    return process, point.origin.scope, point.name, _sorted_text(point.attributes)


def _sorted_text(attributes: Mapping[str, AttributeValue]) -> str:
    return repr(sorted(attributes.items(), key=lambda item: item[0]))


def _require_cumulative(points: Iterable[MetricPoint]) -> None:
    for point in points:
        if point.temporality == "delta":
            raise ValueError(f"{point.name}: a total needs cumulative points, these are deltas")
