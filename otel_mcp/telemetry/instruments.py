"""The instruments of one meter provider."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Histogram, Meter, MeterProvider, Observation

from otel_mcp import guard, semconv
from otel_mcp.telemetry.census import Census, Served
from otel_mcp.version import __version__


class Readings(NamedTuple):
    """The values of the observable instruments: read from memory, never from the store."""

    active: int | None
    callers: int | None
    local: int
    pending: int
    degraded: bool
    census: Census
    contradicted: Mapping[str, int]
    tools: int | None
    definitions: Mapping[str, int]
    tool_calls: Mapping[str, int]
    tasks: Mapping[tuple[str, str], int]
    oldest_tasks: Mapping[str, float]


class Instruments:
    """The instruments for recording, and observable ones that call `read` when collected."""

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
        self.client_duration = histogram(
            semconv.METRIC_CLIENT_DURATION,
            "s",
            "Duration of a request of the server to its client, until the answer: elicitation, sampling, roots.",
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
        self.input_wait = histogram(
            semconv.METRIC_CALL_INPUT_WAIT,
            "s",
            "What a tool call waited for input: from the answer that asked for it to the request that brought it.",
            semconv.SESSION_BUCKETS,
        )
        self.task_duration = histogram(
            semconv.METRIC_TASK_DURATION,
            "s",
            "Time from the tool call that began a task until it was finished.",
            semconv.SESSION_BUCKETS,
        )
        counter = meter.create_counter
        self.tasks_started = counter(semconv.METRIC_TASK_STARTED, "{task}", "Tasks that tool calls have begun.")
        self.tasks_unfetched = counter(
            semconv.METRIC_TASK_UNFETCHED, "{task}", "Tasks whose time was over before their result was fetched."
        )
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
        self.input_abandoned = counter(
            semconv.METRIC_CALL_INPUT_ABANDONED,
            "{call}",
            "Tool calls whose session ended before anybody brought their input.",
        )
        self.dropped = counter(semconv.METRIC_STORE_DROPPED, "{call}", "Calls that the store will never hold.")
        self.audit_dropped = counter(
            semconv.METRIC_AUDIT_DROPPED, "{record}", "Audit records that an exporter has not taken."
        )
        self.observer_dropped = counter(semconv.METRIC_OBSERVER_DROPPED, "{call}", "Calls an observer did not get.")
        self._observe_all(meter)

    def _observe_all(self, meter: Meter) -> None:
        # Values that add up over processes are up-down counters, by the conventions; only `active` does not.
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
        callers = self._shows(lambda now: _if_known(now.callers))
        gauge(semconv.METRIC_CALLERS_ACTIVE, callers, "{caller}", "Callers that have called tools today, by UTC.")
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
        tasks = self._shows(lambda now: [_task(*item) for item in now.tasks.items()])
        gauge(semconv.METRIC_TASK_ACTIVE, tasks, "{task}", "Tasks that have not ended, in the shared store.")
        since = self._shows(lambda now: _by(semconv.GEN_AI_TOOL_NAME, now.oldest_tasks))
        gauge(semconv.METRIC_TASK_OLDEST, since, "s", "Age of the oldest task that has not ended.")
        calls = self._shows(lambda now: _by(semconv.GEN_AI_TOOL_NAME, now.tool_calls))
        counting(semconv.METRIC_TOOL_CALLS, calls, "{call}", "Calls of each tool that is listed: of some, none.")
        counting(semconv.METRIC_ERRORS, [_errors], "{error}", "Failures of the instrumentation itself.")

    def _shows(
        self, part: Callable[[Readings], Sequence[Observation]]
    ) -> list[Callable[[CallbackOptions], Iterable[Observation]]]:
        """Make the callback of an instrument; after an error of ours it shows nothing, and the SDK logs nothing."""

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


def _task(of: tuple[str, str], count: int) -> Observation:
    return Observation(count, {semconv.GEN_AI_TOOL_NAME: of[0], semconv.TASK_STATUS: of[1]})


def _errors(_: CallbackOptions) -> list[Observation]:
    return _by(semconv.COMPONENT, guard.failures)
