"""Records to an instrument of the SDK with less work: each series is looked up once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from inspect import signature
from operator import attrgetter
from time import time_ns
from typing import Any, Final, NamedTuple

from opentelemetry.context import Context
from opentelemetry.metrics import Counter, Histogram
from opentelemetry.sdk.metrics import TraceBasedExemplarFilter

from otel_mcp.guard import report
from otel_mcp.telemetry.spans import NO_SPAN

_SDK: Final = "opentelemetry.sdk.metrics._internal"
_SIGNATURES: Final = (
    ("measurement_consumer", "SynchronousMeasurementConsumer.consume_measurement", "self measurement"),
    ("_view_instrument_match", "_ViewInstrumentMatch._get_or_create_aggregation", "self aggr_key attributes"),
    ("_view_instrument_match", "_hash_attributes", "value"),
    ("exemplar", "ExemplarFilter.should_sample", "self value time_unix_nano attributes context"),
    ("aggregation", "_Aggregation.aggregate", "self measurement should_sample_exemplar"),
)
"""Private functions of the SDK that `Series` calls or replaces, as they are in 1.45."""


class Series:
    """One set of attributes of one instrument, which is looked up in the SDK once, not with each record.

    Most of a record is copying, cleaning, sorting and hashing its attributes. Only
    here private parts of the SDK are used; where they are not as expected, or the
    provider is another, records take the public way.
    """

    __slots__ = ("_attributes", "_found", "_instrument", "_public")

    def __init__(self, instrument: Histogram | Counter, attributes: Mapping[str, Any]) -> None:
        self._instrument = instrument
        self._attributes = attributes
        self._public = instrument.record if isinstance(instrument, Histogram) else instrument.add
        self._found: _Found | None = None

    def record(self, *values: float, context: Context = NO_SPAN) -> None:
        """Record non-negative values, or add them to a counter. A failure of one does not affect the others."""
        found = self._found
        if found is None or found.consumer._reader_storages is not found.storages:
            found = self._found = _find(self._instrument, self._attributes)
            if found is None:
                for value in values:
                    try:
                        self._public(value, self._attributes, context)
                    except Exception as failure:
                        report("record", failure)
                return
        if found.is_enabled():
            kept, renewed, now = found.kept, found.renewed, time_ns()
            measurement: Any = object.__new__(found.kind)
            fields = measurement.__dict__
            fields.update(found.fields, time_unix_nano=now, context=context)
            asks, sampled = found.always_asks or context is not NO_SPAN, False
            for value in values:
                fields["value"] = value
                try:  # Filters and reservoirs of exemplars may be the user's.
                    if asks:
                        sampled = found.should_sample(value, now, fields["attributes"], context)
                    for aggregation in kept:
                        aggregation.aggregate(measurement, sampled)
                    for match, key, attributes in renewed:
                        with match._lock:
                            match._get_or_create_aggregation(key, attributes).aggregate(measurement, sampled)
                except Exception as failure:
                    report("record", failure)


class _Found(NamedTuple):
    """A series in the SDK; valid as long as the provider has the same readers."""

    consumer: Any
    storages: Mapping[Any, Any]
    is_enabled: Callable[[], bool]
    should_sample: Callable[..., bool]
    always_asks: bool
    """Whether the exemplar filter is another than the SDK's trace-based one."""
    kind: type[Any]
    """The SDK's `Measurement`; its constructor would clean all attributes again."""
    fields: Mapping[str, Any]
    """The fields of a `Measurement` with clean attributes."""
    kept: list[Any]
    """Aggregations of cumulative readers, which last as long as the reader."""
    renewed: list[tuple[Any, Any, Mapping[str, Any]]]
    """Tables of aggregations of delta readers, which replace them with each collection."""


def _find(instrument: Any, attributes: Mapping[str, Any]) -> _Found | None:
    """Look up a series as the SDK does for each record; ``None`` = use the public API."""
    real = getattr(instrument, "_real_instrument", instrument)
    if not type(real).__module__.startswith(_SDK) or not _is_as_expected():
        return None
    try:
        consumer, storages = real._measurement_consumer, real._measurement_consumer._reader_storages
        measurement = import_module(f"{_SDK}.measurement").Measurement(0, 0, real, NO_SPAN, attributes)
        kept: list[Any] = []
        renewed: list[tuple[Any, Any, Mapping[str, Any]]] = []
        for storage in storages.values():
            for match in storage._get_or_init_view_instrument_match(real):
                names = match._view._attribute_keys
                shown = {
                    name: value for name, value in measurement.attributes.items() if names is None or name in names
                }
                key = import_module(f"{_SDK}._view_instrument_match")._hash_attributes(shown)
                if match._reset_on_collect:
                    renewed.append((match, key, shown))
                else:
                    with match._lock:
                        kept.append(match._get_or_create_aggregation(key, shown))
        asked = consumer._sdk_config.exemplar_filter
        functions = real._is_enabled, asked.should_sample, type(asked) is not TraceBasedExemplarFilter
    except Exception:  # Private parts may be anything.
        return None
    return _Found(consumer, storages, *functions, type(measurement), vars(measurement), kept, renewed)


@cache
def _is_as_expected() -> bool:
    try:
        return all(
            list(signature(attrgetter(name)(import_module(f"{_SDK}.{module}"))).parameters) == parameters.split()
            for module, name, parameters in _SIGNATURES
        )
    except Exception:
        return False
