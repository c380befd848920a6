"""The instruments, and how a finished call becomes measurements.

Nothing but zeros is recorded before the first request: values recorded before a
fork would be exported again by every child.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from opentelemetry import metrics
from opentelemetry.context import Context
from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation
from opentelemetry.trace import NonRecordingSpan, set_span_in_context

from otel_mcp import guard, semconv
from otel_mcp.names import MAX_CLIENTS, MAX_ERRORS, MAX_TOOLS, BoundedNames
from otel_mcp.request import MODERN, Call, client_of
from otel_mcp.sessions.delta import EndedSession, SessionFacts
from otel_mcp.version import __version__
from otel_mcp.wire.jsonrpc import KNOWN_METHODS, STREAMS

_GUARD = guard.guarded("record")
_NO_CONTEXT = Context()
_USUAL_CODES = ("-32700", "-32600", "-32601", "-32602", "-32603", "-32002", "-32001", "-32000")
_USUAL_ERRORS = (semconv.TOOL_ERROR, "cancelled", "disconnected", *_USUAL_CODES, "400", "401", "403", "404", "500")
"""These are told apart whatever else has come before."""
_LEGACY_VERSIONS = ("2025-03-26", "2025-06-18", "2025-11-25")
_PROTOCOL_VERSIONS = frozenset({"2024-11-05", *_LEGACY_VERSIONS, MODERN})
_BEGINNINGS = {"header": _LEGACY_VERSIONS, "conversation": (MODERN,), "inferred": (MODERN,), "inferred_weak": (MODERN,)}
"""Session sources, with the protocol versions that their clients speak."""


@dataclass(slots=True)
class Gauges:
    """Where the observable instruments read: memory only, never the store."""

    active: Callable[[], int | None]
    local: Callable[[], int]
    pending: Callable[[], int]
    degraded: Callable[[], bool]
    requests: Callable[[], Mapping[str, int]]
    collect: Callable[[], None]
    """Called before a reader collects, so that an export misses nothing that has finished."""


class Metrics:
    """Instruments of one meter provider, with the bounds of their attributes."""

    def __init__(self, provider: MeterProvider | None) -> None:
        meter = metrics.get_meter(semconv.SCOPE, __version__, provider, semconv.SCHEMA_URL)
        self.gauges: Gauges | None = None
        """Set when there is something to read; a reader may collect before."""
        self.tools = BoundedNames(MAX_TOOLS)
        self.prompts = BoundedNames(MAX_TOOLS)
        self._clients = BoundedNames(MAX_CLIENTS)
        self._error_types = BoundedNames(MAX_ERRORS)
        self._error_types.learn(_USUAL_ERRORS)
        self._error_codes = BoundedNames(MAX_ERRORS)
        self._error_codes.learn(_USUAL_CODES)
        self.registered = False
        self._duration = meter.create_histogram(
            semconv.METRIC_OPERATION_DURATION,
            "s",
            "Duration of an MCP message from its arrival until its result is on its way.",
            explicit_bucket_boundaries_advisory=semconv.OPERATION_BUCKETS,
        )
        self._session_duration = meter.create_histogram(
            semconv.METRIC_SESSION_DURATION,
            "s",
            "Time from the first to the last activity of an ended session.",
            explicit_bucket_boundaries_advisory=semconv.SESSION_BUCKETS,
        )
        self._tool_calls = meter.create_histogram(
            semconv.METRIC_SESSION_TOOL_CALLS,
            "{call}",
            "Tool calls of an ended session.",
            explicit_bucket_boundaries_advisory=semconv.TOOL_CALLS_BUCKETS,
        )
        self._result_size = meter.create_histogram(
            semconv.METRIC_TOOL_RESULT_SIZE,
            "By",
            "Size of the answers of a tool: what it costs the model's context.",
            explicit_bucket_boundaries_advisory=semconv.RESULT_SIZE_BUCKETS,
        )
        self._store_duration = meter.create_histogram(
            semconv.METRIC_STORE_DURATION,
            "s",
            "Duration of an operation on the session store.",
            explicit_bucket_boundaries_advisory=semconv.STORE_BUCKETS,
        )
        counter = meter.create_counter
        self._started = counter(semconv.METRIC_SESSION_STARTED, "{session}", "Sessions that began.")
        self._resumed = counter(semconv.METRIC_SESSION_RESUMED, "{session}", "Sessions met again after a restart.")
        self._ended = counter(semconv.METRIC_SESSION_ENDED, "{session}", "Sessions that ended.")
        self._rejected = counter(semconv.METRIC_SESSION_REJECTED, "{session}", "Claims to a session not followed.")
        self._clients_requests = counter(semconv.METRIC_CLIENT_REQUESTS, "{request}", "Requests by client.")
        self._dropped = counter(semconv.METRIC_STORE_DROPPED, "{call}", "Calls that the store will never hold.")
        self._observer_dropped = counter(semconv.METRIC_OBSERVER_DROPPED, "{call}", "Calls an observer did not get.")
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
            semconv.METRIC_ERRORS, [self._observe_errors], "{error}", "Failures of the instrumentation itself."
        )

    def register(self) -> None:
        """Create the zero-valued series, so that the first increase of each is seen. Only once, early.

        Where sessions begin, those that clients of today make: who else comes is
        seen from their second session on.
        """
        if self.registered:
            return
        self.registered = True
        for source, versions in _BEGINNINGS.items():
            for version in versions:
                self._started.add(0, _session_attributes(source, version))
        for reason in ("client_delete", "expired", "server_closed", "replaced"):
            self._ended.add(0, {semconv.SESSION_END_REASON: reason})
        self._resumed.add(0)
        for reason in ("limit", "principal"):
            self._rejected.add(0, {semconv.REJECT_REASON: reason})
        for reason in ("foreign", "full", "error", "shutdown"):
            self._dropped.add(0, {semconv.REJECT_REASON: reason})

    def record(self, call: Call) -> None:
        """Measure one finished call."""
        self.record_all((call,))

    def record_all(self, calls: Sequence[Call]) -> None:
        """Measure finished calls, oldest first.

        A reservoir keeps the last exemplar of each bucket, so only the last
        sampled call of a bucket is offered: an offer costs as much as a record.
        """
        clients: Counter[tuple[str, str]] = Counter()
        measured: list[tuple[Call, tuple[str | None, ...], dict[str, Any]]] = []
        last: dict[tuple[tuple[str | None, ...], int], Call] = {}
        for call in calls:
            with _GUARD:
                if call.method in STREAMS:
                    continue
                key, attributes = self._attributes(call)
                measured.append((call, key, attributes))
                if call.span_context is not None and call.span_context.trace_flags.sampled:
                    last[key, bisect_left(semconv.OPERATION_BUCKETS, call.duration)] = call
        exemplified = {id(call) for call in last.values()}
        for call, key, attributes in measured:
            with _GUARD:
                context = _exemplar_context(call) if id(call) in exemplified else _NO_CONTEXT
                self._duration.record(call.duration, attributes, context)
                if call.method == "tools/call" and call.result_bytes is not None:
                    self._result_size.record(call.result_bytes, {semconv.GEN_AI_TOOL_NAME: key[1]}, _NO_CONTEXT)
                if call.id is not None and (client := client_of(call)[0]) is not None:
                    proven = call.dispatched or (call.exchange.status or 500) < 300
                    clients[self._clients.bounded(client, proven=proven), known_method(call.method)] += 1
        for (client, method), count in clients.items():
            attributes = {semconv.CLIENT_NAME: client, semconv.MCP_METHOD_NAME: method}
            self._clients_requests.add(count, attributes, _NO_CONTEXT)

    def _attributes(self, call: Call) -> tuple[tuple[str | None, ...], dict[str, Any]]:
        """What tells a call's series from others, and the attributes made of it."""
        outcome, exchange = call.outcome, call.exchange
        error_type = outcome.error_type if outcome is not None else None
        status_code = outcome.status_code if outcome is not None else None
        method, version = known_method(call.method), exchange.protocol_version
        proven = call.trusted_name or (error_type is None and outcome is not None and not outcome.unclassified)
        name: str | None = None
        attributes: dict[str, Any] = {
            semconv.MCP_METHOD_NAME: method,
            semconv.NETWORK_TRANSPORT: "tcp",
            semconv.NETWORK_PROTOCOL_NAME: "http",
            semconv.NETWORK_PROTOCOL_VERSION: exchange.http_version,
        }
        if version:
            attributes[semconv.MCP_PROTOCOL_VERSION] = version if version in _PROTOCOL_VERSIONS else semconv.OTHER
        if error_type is not None:
            error_type = self._error_types.bounded(error_type, proven=True)
            attributes[semconv.ERROR_TYPE] = error_type
        if status_code is not None:
            status_code = self._error_codes.bounded(status_code, proven=True)
            attributes[semconv.RPC_RESPONSE_STATUS_CODE] = status_code
        if method == "tools/call":
            name = self.tools.bounded(call.target or "", proven=proven and call.target is not None)
            attributes[semconv.GEN_AI_OPERATION_NAME] = semconv.EXECUTE_TOOL
            attributes[semconv.GEN_AI_TOOL_NAME] = name
        elif method == "prompts/get":
            name = self.prompts.bounded(call.target or "", proven=proven and call.target is not None)
            attributes[semconv.GEN_AI_PROMPT_NAME] = name
        return (method, name, error_type, status_code, version, exchange.http_version), attributes

    def learn_tools(self, names: Iterable[str]) -> None:
        """Tool names that the server itself listed."""
        self.tools.learn(names)

    def session_started(self, facts: SessionFacts) -> None:
        self._started.add(1, _session_attributes(facts.source, facts.protocol_version))

    def session_resumed(self) -> None:
        self._resumed.add(1)

    def session_ended(self, ended: EndedSession) -> None:
        """Count an end, and measure the session unless its borders are guessed."""
        self._ended.add(1, {semconv.SESSION_END_REASON: ended.reason})
        attributes = _session_attributes(ended.source, ended.protocol_version)
        self._tool_calls.record(ended.tool_call_count, {semconv.SESSION_SOURCE: ended.source or "none"}, _NO_CONTEXT)
        if ended.source != "inferred_weak":
            attributes[semconv.SESSION_END_REASON] = ended.reason
            self._session_duration.record(max(0.0, ended.last_activity - ended.created_at), attributes, _NO_CONTEXT)

    def session_rejected(self, reason: str) -> None:
        self._rejected.add(1, {semconv.REJECT_REASON: reason})

    def store_dropped(self, count: int, reason: str) -> None:
        self._dropped.add(count, {semconv.REJECT_REASON: reason})

    def store_operation(self, operation: str, outcome: str, seconds: float) -> None:
        self._store_duration.record(
            seconds, {semconv.STORE_OPERATION: operation, semconv.STORE_OUTCOME: outcome}, _NO_CONTEXT
        )

    def observer_dropped(self, observer: str, count: int) -> None:
        self._observer_dropped.add(count, {semconv.OBSERVER: observer})

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

    def _observe_errors(self, _: CallbackOptions) -> Sequence[Observation]:
        return [Observation(count, {semconv.COMPONENT: name}) for name, count in list(guard.failures.items())]


def _collected(gauges: Gauges) -> Sequence[Observation]:
    gauges.collect()
    return []


def known_method(method: str) -> str:
    """The method, or ``_OTHER`` where it is none of the protocol's."""
    return method if method in KNOWN_METHODS else semconv.OTHER


def _session_attributes(source: str | None, protocol_version: str | None) -> dict[str, str]:
    attributes = {semconv.SESSION_SOURCE: source or "none"}
    if protocol_version:
        attributes[semconv.MCP_PROTOCOL_VERSION] = (
            protocol_version if protocol_version in _PROTOCOL_VERSIONS else semconv.OTHER
        )
    return attributes


def _exemplar_context(call: Call) -> Context:
    if call.span is not None:
        return set_span_in_context(call.span, _NO_CONTEXT)
    if call.span_context is not None:
        return set_span_in_context(NonRecordingSpan(call.span_context), _NO_CONTEXT)
    return _NO_CONTEXT
