"""The instruments of one meter provider: names, units and what they measure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation

from otel_mcp import guard, semconv
from otel_mcp.version import __version__


@dataclass(slots=True)
class Gauges:
    """Where the observable instruments read: memory only, never the store."""

    active: Callable[[], int | None]
    local: Callable[[], int]
    pending: Callable[[], int]
    degraded: Callable[[], bool]
    requests: Callable[[], Mapping[str, int]]
    contradicted: Callable[[], Mapping[str, int]]
    collect: Callable[[], None]
    """Called before a reader collects, so that an export misses nothing that has finished."""


class Instruments:
    """Those that are recorded to, and those that read the `gauges` when they are asked."""

    def __init__(self, provider: MeterProvider | None) -> None:
        meter = metrics.get_meter(semconv.SCOPE, __version__, provider, semconv.SCHEMA_URL)
        self.gauges: Gauges | None = None
        """Set when there is something to read; a reader may collect before."""
        self.duration = meter.create_histogram(
            semconv.METRIC_OPERATION_DURATION,
            "s",
            "Duration of an MCP message from its arrival until its result is on its way.",
            explicit_bucket_boundaries_advisory=semconv.OPERATION_BUCKETS,
        )
        self.session_duration = meter.create_histogram(
            semconv.METRIC_SESSION_DURATION,
            "s",
            "Time from the first to the last activity of an ended session.",
            explicit_bucket_boundaries_advisory=semconv.SESSION_BUCKETS,
        )
        self.tool_calls = meter.create_histogram(
            semconv.METRIC_SESSION_TOOL_CALLS,
            "{call}",
            "Tool calls of an ended session.",
            explicit_bucket_boundaries_advisory=semconv.TOOL_CALLS_BUCKETS,
        )
        self.result_size = meter.create_histogram(
            semconv.METRIC_TOOL_RESULT_SIZE,
            "By",
            "Size of the answers of a tool: what it costs the model's context.",
            explicit_bucket_boundaries_advisory=semconv.RESULT_SIZE_BUCKETS,
        )
        self.store_duration = meter.create_histogram(
            semconv.METRIC_STORE_DURATION,
            "s",
            "Duration of an operation on the session store.",
            explicit_bucket_boundaries_advisory=semconv.STORE_BUCKETS,
        )
        self._count(meter)
        self._observe_all(meter)

    def _count(self, meter: Meter) -> None:
        counter = meter.create_counter
        self.started = counter(semconv.METRIC_SESSION_STARTED, "{session}", "Sessions that began.")
        self.resumed = counter(semconv.METRIC_SESSION_RESUMED, "{session}", "Sessions met again after a restart.")
        self.ended = counter(semconv.METRIC_SESSION_ENDED, "{session}", "Sessions that ended.")
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
        self.dropped = counter(semconv.METRIC_STORE_DROPPED, "{call}", "Calls that the store will never hold.")
        self.observer_dropped = counter(semconv.METRIC_OBSERVER_DROPPED, "{call}", "Calls an observer did not get.")

    def _observe_all(self, meter: Meter) -> None:
        meter.create_observable_up_down_counter(
            semconv.METRIC_REQUESTS_ACTIVE, [self._observe_requests], "{request}", "Requests being served."
        )
        meter.create_observable_gauge(
            semconv.METRIC_SESSION_ACTIVE, [self._observe_active], "{session}", "Live sessions in the shared store."
        )
        # What adds up over processes is an up-down counter, by the conventions; only `active` does not.
        meter.create_observable_up_down_counter(
            semconv.METRIC_SESSION_LOCAL, [self._observe_local], "{session}", "Sessions in this process's memory."
        )
        meter.create_observable_up_down_counter(
            semconv.METRIC_STORE_PENDING, [self._observe_pending], "{call}", "Calls not yet written to the store."
        )
        meter.create_observable_up_down_counter(
            semconv.METRIC_STORE_DEGRADED,
            [self._observe_degraded],
            "{process}",
            "1 while the session store does not answer this process, else 0.",
        )
        meter.create_observable_counter(
            semconv.METRIC_HEADERS_CONTRADICTED,
            [self._observe_contradicted],
            "{request}",
            "Requests with a header that says something else than their body.",
        )
        meter.create_observable_counter(
            semconv.METRIC_ERRORS, [self._observe_errors], "{error}", "Failures of the instrumentation itself."
        )

    def _observe(self, read: Callable[[Gauges], Sequence[Observation]]) -> Sequence[Observation]:
        """Read memory for an instrument that is asked; nothing, rather than an error in the user's log."""
        with guard.guarded("collect"):
            return [] if self.gauges is None else read(self.gauges)
        return []

    def _observe_active(self, _: CallbackOptions) -> Sequence[Observation]:
        def read(gauges: Gauges) -> Sequence[Observation]:
            active = gauges.active()
            return [] if active is None else [Observation(active)]

        self._observe(_collected)
        return self._observe(read)

    def _observe_local(self, _: CallbackOptions) -> Sequence[Observation]:
        return self._observe(lambda gauges: [Observation(gauges.local())])

    def _observe_pending(self, _: CallbackOptions) -> Sequence[Observation]:
        return self._observe(lambda gauges: [Observation(gauges.pending())])

    def _observe_degraded(self, _: CallbackOptions) -> Sequence[Observation]:
        return self._observe(lambda gauges: [Observation(int(gauges.degraded()))])

    def _observe_requests(self, _: CallbackOptions) -> Sequence[Observation]:
        return self._observe(
            lambda gauges: [
                Observation(count, {semconv.MCP_METHOD_NAME: method})
                for method, count in dict(gauges.requests()).items()
            ]
        )

    def _observe_contradicted(self, _: CallbackOptions) -> Sequence[Observation]:
        return self._observe(
            lambda gauges: [
                Observation(count, {semconv.HEADER: name}) for name, count in dict(gauges.contradicted()).items()
            ]
        )

    def _observe_errors(self, _: CallbackOptions) -> Sequence[Observation]:
        return [Observation(count, {semconv.COMPONENT: name}) for name, count in list(guard.failures.items())]


def _collected(gauges: Gauges) -> Sequence[Observation]:
    gauges.collect()
    return []
