"""Recording through a series exports what the public way does, and falls back to it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.metrics import Counter, Histogram, MeterProvider, NoOpMeterProvider
from opentelemetry.sdk import metrics as sdk
from opentelemetry.sdk.metrics import AlwaysOffExemplarFilter, AlwaysOnExemplarFilter, TraceBasedExemplarFilter
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader, MetricReader
from opentelemetry.sdk.metrics.view import (
    DropAggregation,
    ExplicitBucketHistogramAggregation,
    ExponentialBucketHistogramAggregation,
    View,
)
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from otel_mcp.telemetry import series
from otel_mcp.telemetry.series import Series
from otel_mcp.telemetry.spans import NO_SPAN

Record = Callable[[Any, Sequence[float], dict[str, Any], Context], None]

DELTA = dict.fromkeys((sdk.Counter, sdk.Histogram), AggregationTemporality.DELTA)
ATTRIBUTES: list[dict[str, Any]] = [{}, {"tool": "add"}, {"tool": "list", "version": "1.1", "n": 1}, {"tool": "\u00e9"}]
SPANS = [
    trace.set_span_in_context(NonRecordingSpan(SpanContext(number, number, is_remote=False, trace_flags=flags)))
    for number, flags in ((1, TraceFlags(TraceFlags.SAMPLED)), (2, TraceFlags(0)))
]


def publicly(
    instrument: Histogram | Counter, values: Sequence[float], attributes: dict[str, Any], context: Context
) -> None:
    record = instrument.record if isinstance(instrument, Histogram) else instrument.add
    for value in values:
        record(value, attributes, context)


def shortly() -> Record:
    """Record through a series for each instrument and set of attributes."""
    made: dict[str, Series] = {}

    def record(instrument: Any, values: Sequence[float], attributes: dict[str, Any], context: Context) -> None:
        key = json.dumps([id(instrument), attributes])
        if key not in made:
            made[key] = Series(instrument, attributes)
        made[key].record(*values, context=context)
        assert made[key]._found is not None  # pyright: ignore[reportPrivateUsage]

    return record


def shown(value: Any) -> Any:
    """A part of an export without its times."""
    if isinstance(value, dict):
        return {name: shown(part) for name, part in value.items() if "time" not in name}
    return [shown(part) for part in value] if isinstance(value, list) else value


def collected(reader: InMemoryMetricReader) -> Any:
    data = reader.get_metrics_data()
    return None if data is None else shown(json.loads(data.to_json()))


def exports(record: Record, readers: Sequence[InMemoryMetricReader], **options: Any) -> Iterator[Any]:
    """Record the same to one provider again and again; yields what each reader gets each time."""
    provider = sdk.MeterProvider(readers, shutdown_on_exit=False, **options)
    meter = provider.get_meter("test")
    histogram = meter.create_histogram("duration", "s", explicit_bucket_boundaries_advisory=(0.1, 1.0))
    counter = meter.create_counter("calls")
    for round_ in range(3):
        for number in range(30):
            context = [NO_SPAN, *SPANS][number % 3]
            attributes = ATTRIBUTES[(number + round_) % len(ATTRIBUTES)]
            record(histogram, (number / 10, number / 7), attributes, context)
            record(counter, (number, 1), attributes, context)
        yield [collected(reader) for reader in readers]
    provider.shutdown()


@pytest.mark.parametrize(
    "views",
    [
        [],
        [View(instrument_name="duration", attribute_keys={"tool"})],
        [
            View(instrument_name="duration", attribute_keys=set()),
            View(instrument_name="calls", aggregation=DropAggregation()),
        ],
        [View(instrument_name="duration", name="renamed"), View(instrument_name="duration", attribute_keys={"n"})],
        [
            View(
                instrument_name="duration",
                aggregation=ExplicitBucketHistogramAggregation((0.5, 2.0), record_min_max=False),
            )
        ],
        [View(instrument_name="duration", aggregation=ExponentialBucketHistogramAggregation(max_size=8))],
        [View(instrument_name="*", aggregation_cardinality_limit=2)],
    ],
    ids=["none", "fewer", "dropped", "renamed", "explicit", "exponential", "limited"],
)
@pytest.mark.parametrize("readers", [[None], [DELTA], [None, DELTA]], ids=["cumulative", "delta", "both"])
@pytest.mark.parametrize("filter_", [TraceBasedExemplarFilter, AlwaysOnExemplarFilter, AlwaysOffExemplarFilter])
def test_both_ways_of_recording_export_the_same(
    views: list[View], readers: list[Any], filter_: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Which of several exemplars a counter keeps is left to chance.
    monkeypatch.setattr("opentelemetry.sdk.metrics._internal.exemplar.exemplar_reservoir.randrange", lambda *_: 0)
    one, other = (
        list(
            exports(
                record,
                [InMemoryMetricReader(preferred_temporality=temporality) for temporality in readers],
                views=views,
                exemplar_filter=filter_(),
            )
        )
        for record in (publicly, shortly())
    )

    assert one == other
    assert any(one)


def test_a_reader_that_comes_later_gets_what_is_recorded_from_then_on() -> None:
    first, second = InMemoryMetricReader(), InMemoryMetricReader()
    provider = sdk.MeterProvider([first], shutdown_on_exit=False)
    series = Series(provider.get_meter("test").create_counter("calls"), {"tool": "add"})

    series.record(1)
    provider.add_metric_reader(second)
    series.record(2)
    assert [_point(first).value, _point(second).value] == [3, 2]
    provider.remove_metric_reader(first)
    series.record(4)

    assert _point(second).value == 6
    provider.shutdown()


def _point(reader: MetricReader) -> Any:
    (resource,) = reader.get_metrics_data().resource_metrics  # type: ignore[attr-defined]  # pyright: ignore
    return resource.scope_metrics[0].metrics[0].data.data_points[0]  # pyright: ignore


def test_a_provider_that_is_set_later_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = InMemoryMetricReader()
    proxy = metrics._internal._ProxyMeterProvider()  # type: ignore[attr-defined]  # pyright: ignore
    series = Series(proxy.get_meter("test").create_histogram("duration"), {"tool": "add"})
    series.record(1.0)

    proxy.on_set_meter_provider(provider := sdk.MeterProvider([reader], shutdown_on_exit=False))
    series.record(2.0)

    assert _point(reader).sum == 2
    assert series._found is not None  # pyright: ignore[reportPrivateUsage]
    provider.shutdown()


def break_signature(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(series, "_SIGNATURES", (("measurement", "Measurement", "value"),))


def break_module(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(series, "_SIGNATURES", (("gone", "Measurement", "value"),))


def break_part(patch: pytest.MonkeyPatch) -> None:
    patch.delattr(sdk._internal.instrument._Synchronous, "_is_enabled")  # type: ignore[attr-defined]  # pyright: ignore


@pytest.mark.parametrize("differs", [break_signature, break_module, break_part])
def test_where_the_sdk_differs_records_take_the_public_way(
    differs: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = InMemoryMetricReader()
    provider = sdk.MeterProvider([reader], shutdown_on_exit=False)
    counter = provider.get_meter("test").create_counter("calls")
    recorded: list[Any] = []
    monkeypatch.setattr(type(counter), "add", lambda *arguments: recorded.append(arguments[1:]))
    series._is_as_expected.cache_clear()  # pyright: ignore[reportPrivateUsage]
    differs(monkeypatch)

    Series(counter, {"tool": "add"}).record(1, 2)

    assert recorded == [(value, {"tool": "add"}, NO_SPAN) for value in (1, 2)]
    series._is_as_expected.cache_clear()  # pyright: ignore[reportPrivateUsage]
    provider.shutdown()


def test_another_provider_than_the_sdk_gets_records_in_public() -> None:
    class Foreign(NoOpMeterProvider):
        pass

    provider: MeterProvider = Foreign()
    series = Series(provider.get_meter("test").create_histogram("duration"), {"tool": "add"})

    series.record(1.0)

    assert series._found is None  # pyright: ignore[reportPrivateUsage]


class Failing(AlwaysOnExemplarFilter):
    """A user's filter with a fault."""

    def should_sample(self, value: float, time_unix_nano: int, attributes: Any, context: Context) -> bool:
        if value == 13.0:
            raise RuntimeError("secret")
        return super().should_sample(value, time_unix_nano, attributes, context)


@pytest.mark.parametrize("temporality", [{}, DELTA], ids=["cumulative", "delta"])
@pytest.mark.parametrize("public", [False, True])
def test_a_value_that_fails_costs_no_other_and_none_counts_twice(
    monkeypatch: pytest.MonkeyPatch, failures: Any, temporality: Any, *, public: bool
) -> None:
    reader = InMemoryMetricReader(preferred_temporality=temporality)
    provider = sdk.MeterProvider([reader], exemplar_filter=Failing(), shutdown_on_exit=False)
    if public:
        monkeypatch.setattr(series, "_is_as_expected", lambda: False)
    made = Series(provider.get_meter("test").create_histogram("duration"), {"tool": "add"})

    made.record(1.0, 13.0, 2.0, 13.0, 4.0)

    assert (made._found is None) is public  # pyright: ignore[reportPrivateUsage]
    point = _point(reader)
    assert (point.count, point.sum) == (3, 7.0)
    assert failures["record"] == 2
    provider.shutdown()
