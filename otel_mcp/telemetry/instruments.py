"""The instruments of one meter provider, and `Series`, the short way to record to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from importlib import import_module
from inspect import signature
from operator import attrgetter
from time import time_ns
from typing import Any, Final, NamedTuple

from opentelemetry import metrics
from opentelemetry.context import Context
from opentelemetry.metrics import CallbackOptions, Counter, Histogram, Meter, MeterProvider, Observation

from otel_mcp import guard, semconv
from otel_mcp.telemetry.census import Census, Served
from otel_mcp.telemetry.spans import NO_SPAN
from otel_mcp.version import __version__


class Readings(NamedTuple):
    """What the observable instruments show: read from memory, never from the store."""

    active: int | None
    local: int
    pending: int
    degraded: bool
    census: Census
    contradicted: Mapping[str, int]
    tools: int | None
    definitions: Mapping[str, int]
    tool_calls: Mapping[str, int]


class Instruments:
    """Those that are recorded to, and those that call `read` when they are collected."""

    def __init__(self, provider: MeterProvider | None) -> None:
        meter = metrics.get_meter(semconv.SCOPE, __version__, provider, semconv.SCHEMA_URL)
        self.read: Callable[[], Readings] | None = None
        """Set once there is something to read; a reader may collect before."""

        def histogram(name: str, unit: str, description: str, buckets: Sequence[float]) -> Histogram:
            return meter.create_histogram(name, unit, description, explicit_bucket_boundaries_advisory=buckets)

        self.duration = histogram(
            semconv.METRIC_OPERATION_DURATION,
            "s",
            "Duration of an MCP message from its arrival until its result is on its way.",
            semconv.OPERATION_BUCKETS,
        )
        self.session_duration = histogram(
            semconv.METRIC_SESSION_DURATION,
            "s",
            "Time from the first to the last activity of an ended session.",
            semconv.SESSION_BUCKETS,
        )
        self.tool_calls = histogram(
            semconv.METRIC_SESSION_TOOL_CALLS, "{call}", "Tool calls of an ended session.", semconv.TOOL_CALLS_BUCKETS
        )
        self.context_size = histogram(
            semconv.METRIC_SESSION_CONTEXT_SIZE,
            "By",
            "What an ended session gave its model: the list of tools and all results; of those that gave anything.",
            semconv.CONTEXT_BUCKETS,
        )
        self.result_size = histogram(
            semconv.METRIC_TOOL_RESULT_SIZE,
            "By",
            "Size of the answers of a tool: what it costs the model's context.",
            semconv.RESULT_SIZE_BUCKETS,
        )
        self.catalogue_size = histogram(
            semconv.METRIC_CATALOGUE_SIZE,
            "By",
            "Size of the definitions of all tools, each time that a client has listed them.",
            semconv.CATALOGUE_BUCKETS,
        )
        self.store_duration = histogram(
            semconv.METRIC_STORE_DURATION, "s", "Duration of an operation on the session store.", semconv.STORE_BUCKETS
        )
        self.stream_duration = histogram(
            semconv.METRIC_STREAM_DURATION, "s", "Duration of a stream that has ended.", semconv.SESSION_BUCKETS
        )
        counter = meter.create_counter
        self.started = counter(semconv.METRIC_SESSION_STARTED, "{session}", "Sessions that began.")
        self.resumed = counter(semconv.METRIC_SESSION_RESUMED, "{session}", "Sessions met again after a restart.")
        self.ended = counter(semconv.METRIC_SESSION_ENDED, "{session}", "Sessions that ended.")
        self.interrupted = counter(
            semconv.METRIC_SESSION_INTERRUPTED, "{session}", "Live sessions that a server refused as unknown."
        )
        self.returned = counter(
            semconv.METRIC_SESSION_RETURNED, "{session}", "Interrupted sessions whose clients came back."
        )
        self.findings = counter(
            semconv.METRIC_SESSION_FINDINGS, "{finding}", "Patterns that running sessions have shown, once a session."
        )
        self.rejected = counter(semconv.METRIC_SESSION_REJECTED, "{session}", "Claims to a session not followed.")
        self.clients_requests = counter(semconv.METRIC_CLIENT_REQUESTS, "{request}", "Requests by client.")
        self.failures = counter(semconv.METRIC_CALL_FAILURES, "{call}", "Tool calls that failed, by how.")
        self.corrected = counter(
            semconv.METRIC_CALL_CORRECTED,
            "{call}",
            "Failed tool calls after which the next call of that tool in the session worked.",
        )
        self.refused = counter(
            semconv.METRIC_REQUESTS_REFUSED, "{request}", "MCP requests that HTTP answered with a refusal."
        )
        self.oversized = counter(
            semconv.METRIC_TOOL_RESULT_OVERSIZED,
            "{call}",
            "Answers of a tool that are larger than what the client's host gives its model whole.",
        )
        self.dropped = counter(semconv.METRIC_STORE_DROPPED, "{call}", "Calls that the store will never hold.")
        self.observer_dropped = counter(semconv.METRIC_OBSERVER_DROPPED, "{call}", "Calls an observer did not get.")
        self._observe_all(meter)

    def _observe_all(self, meter: Meter) -> None:
        # What adds up over processes is an up-down counter, by the conventions; only `active` does not.
        adding, counting = meter.create_observable_up_down_counter, meter.create_observable_counter
        gauge = meter.create_observable_gauge
        requests = self._shows(lambda now: [_served(*item) for item in now.census.requests().items()])
        adding(semconv.METRIC_REQUESTS_ACTIVE, requests, "{request}", "Requests being served.")
        oldest = self._shows(lambda now: _by(semconv.GEN_AI_TOOL_NAME, now.census.oldest()))
        gauge(semconv.METRIC_CALL_OLDEST, oldest, "s", "How long the oldest call in flight has taken so far.")
        streams = self._shows(lambda now: _by(semconv.STREAM_KIND, now.census.open_streams()))
        adding(semconv.METRIC_STREAM_ACTIVE, streams, "{stream}", "Open streams.")
        held = self._shows(lambda now: _if_known(now.census.transport_sessions()))
        adding(semconv.METRIC_TRANSPORT_SESSIONS, held, "{session}", "Transport sessions that the SDK holds.")
        active = self._shows(lambda now: _if_known(now.active))
        gauge(semconv.METRIC_SESSION_ACTIVE, active, "{session}", "Live sessions in the shared store.")
        local = self._shows(lambda now: [Observation(now.local)])
        adding(semconv.METRIC_SESSION_LOCAL, local, "{session}", "Sessions in this process's memory.")
        pending = self._shows(lambda now: [Observation(now.pending)])
        adding(semconv.METRIC_STORE_PENDING, pending, "{call}", "Calls not yet written to the store.")
        degraded = self._shows(lambda now: [Observation(int(now.degraded))])
        adding(
            semconv.METRIC_STORE_DEGRADED,
            degraded,
            "{process}",
            "1 while the session store does not answer this process, else 0.",
        )
        contradicted = self._shows(lambda now: _by(semconv.HEADER, now.contradicted))
        counting(
            semconv.METRIC_HEADERS_CONTRADICTED,
            contradicted,
            "{request}",
            "Requests with a header that says something else than their body.",
        )
        tools = self._shows(lambda now: [] if now.tools is None else [Observation(now.tools)])
        meter.create_observable_gauge(
            semconv.METRIC_CATALOGUE_TOOLS, tools, "{tool}", "Tools that clients are shown, in all catalogues together."
        )
        definitions = self._shows(lambda now: _by(semconv.GEN_AI_TOOL_NAME, now.definitions))
        meter.create_observable_gauge(
            semconv.METRIC_TOOL_DEFINITION_SIZE,
            definitions,
            "By",
            "Size of a tool's definition, as last listed.",
        )
        calls = self._shows(lambda now: _by(semconv.GEN_AI_TOOL_NAME, now.tool_calls))
        counting(semconv.METRIC_TOOL_CALLS, calls, "{call}", "Calls of each tool that is listed: of some, none.")
        counting(semconv.METRIC_ERRORS, [_errors], "{error}", "Failures of the instrumentation itself.")

    def _shows(
        self, part: Callable[[Readings], Sequence[Observation]]
    ) -> list[Callable[[CallbackOptions], Iterable[Observation]]]:
        """Make the callback of an instrument: an error of ours shows nothing, and is no line in the user's log."""

        def observe(_: CallbackOptions) -> Iterable[Observation]:
            with guard.guarded("collect"):
                return [] if self.read is None else part(self.read())
            return []

        return [observe]


def _by(attribute: str, values: Mapping[str, float]) -> list[Observation]:
    return [Observation(value, {attribute: name}) for name, value in list(values.items())]


def _if_known(value: int | None) -> list[Observation]:
    return [] if value is None else [Observation(value)]


def _served(what: Served, count: int) -> Observation:
    method, tool = what
    named = {} if tool is None else {semconv.GEN_AI_TOOL_NAME: tool}
    return Observation(count, {semconv.MCP_METHOD_NAME: method, **named})


def _errors(_: CallbackOptions) -> list[Observation]:
    return _by(semconv.COMPONENT, guard.failures)


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

    def record(self, value: float, context: Context = NO_SPAN) -> None:
        """Record a value, or add it to a counter; neither may be negative."""
        found = self._found
        if found is None or found.consumer._reader_storages is not found.storages:
            found = self._found = _find(self._instrument, self._attributes)
            if found is None:
                return self._public(value, self._attributes, context)
        if found.is_enabled():
            now = time_ns()
            measurement: Any = object.__new__(found.kind)
            measurement.__dict__.update(found.fields, value=value, time_unix_nano=now, context=context)
            sampled = found.should_sample(value, now, found.fields["attributes"], context)
            for aggregation in found.kept:
                aggregation.aggregate(measurement, sampled)
            for match, key, attributes in found.renewed:
                with match._lock:
                    match._get_or_create_aggregation(key, attributes).aggregate(measurement, sampled)
        return None


class _Found(NamedTuple):
    """A series in the SDK; holds as long as the provider has the same readers."""

    consumer: Any
    storages: Mapping[Any, Any]
    is_enabled: Callable[[], bool]
    should_sample: Callable[..., bool]
    kind: type[Any]
    """The SDK's `Measurement`; its constructor would clean all attributes again."""
    fields: Mapping[str, Any]
    """Of one of them, whose attributes are clean."""
    kept: list[Any]
    """Aggregations of readers that accumulate: they last as long as the reader."""
    renewed: list[tuple[Any, Any, Mapping[str, Any]]]
    """Where readers of deltas keep theirs, which begin again with each collection."""


def _find(instrument: Any, attributes: Mapping[str, Any]) -> _Found | None:
    """Look up a series as the SDK does at each record; ``None`` where only the public way is certain."""
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
        functions = real._is_enabled, consumer._sdk_config.exemplar_filter.should_sample
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
