"""How a finished call, and the life of a session, become measurements.

Nothing but zeros is recorded before the first request: values recorded before a
fork would be exported again by every child.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from typing import Any, Final

from opentelemetry.context import Context
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import NonRecordingSpan, set_span_in_context

from otel_mcp import semconv
from otel_mcp.bounded import BoundedNames
from otel_mcp.guard import guarded
from otel_mcp.model.call import MODERN, Call, client_of
from otel_mcp.model.delta import EndedSession, SessionFacts
from otel_mcp.telemetry.failures import Failures
from otel_mcp.telemetry.instruments import Gauges, Instruments
from otel_mcp.telemetry.spans import NO_SPAN
from otel_mcp.wire.jsonrpc import CALLER_CODES, KNOWN_METHODS, STREAMS, field_of, listed_names

MAX_TOOLS: Final = 200
MAX_CLIENTS: Final = 20
MAX_ERRORS: Final = 50
"""Error types, and codes, that have label values of their own: a server may make them of what a client sent."""
_USUAL_CODES = ("-32700", "-32600", "-32601", "-32602", "-32603", "-32002", "-32001", "-32000")
_USUAL_ERRORS = (
    *(semconv.TOOL_ERROR, "cancelled", "disconnected"),
    *(code for code in _USUAL_CODES if code not in CALLER_CODES),
    *("400", "401", "403", "404", "500"),
)
"""These always have a label value of their own."""
_LEGACY_VERSIONS = ("2025-03-26", "2025-06-18", "2025-11-25")
_PROTOCOL_VERSIONS = frozenset({"2024-11-05", *_LEGACY_VERSIONS, MODERN})
_BEGINNINGS = {"header": _LEGACY_VERSIONS, "conversation": (MODERN,), "inferred": (MODERN,), "inferred_weak": (MODERN,)}
"""Session sources, with the protocol versions that their clients speak."""

_MAX_OPERATIONS = 1000
"""Uses of the store that wait to be recorded."""

_GUARD = guarded("record")

Bucket = tuple[tuple[str | None, ...], int]
"""A series of the durations, and the place of one of its buckets."""


class Batch:
    """Calls that are recorded together.

    A reservoir keeps one exemplar of each bucket, so of a batch only one sampled
    call of a bucket is offered: an offer costs as much as a record.
    """

    __slots__ = ("clients", "exemplified")

    def __init__(self) -> None:
        self.clients: Counter[tuple[str, str]] = Counter()
        """Requests by client and method."""
        self.exemplified: set[Bucket] = set()


class Metrics:
    """Measurements, with the bounds of their attributes."""

    def __init__(self, provider: MeterProvider | None) -> None:
        self._on = Instruments(provider)
        self.tools = BoundedNames(MAX_TOOLS)
        self.prompts = BoundedNames(MAX_TOOLS)
        self._clients = BoundedNames(MAX_CLIENTS)
        self.failures = Failures(self._on, self.tools, self._clients)
        self._error_types = BoundedNames(MAX_ERRORS)
        self._error_types.learn(_USUAL_ERRORS)
        self._error_codes = BoundedNames(MAX_ERRORS)
        self._error_codes.learn(_USUAL_CODES)
        self._operations: deque[tuple[str, str, float]] = deque()
        self.registered = False

    def watch(self, gauges: Gauges) -> None:
        """Let the observable instruments read; a reader may collect before."""
        self._on.gauges = gauges

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
                self._on.started.add(0, _session_attributes(source, version), NO_SPAN)
        for reason in ("client_delete", "expired", "server_closed", "replaced"):
            self._on.ended.add(0, {semconv.SESSION_END_REASON: reason}, NO_SPAN)
        self._on.resumed.add(0, None, NO_SPAN)
        self.failures.register()
        for reason in ("limit", "principal"):
            self._on.rejected.add(0, {semconv.REJECT_REASON: reason}, NO_SPAN)
        for reason in ("foreign", "full", "error", "ended", "principal", "shutdown"):
            self._on.dropped.add(0, {semconv.REJECT_REASON: reason}, NO_SPAN)

    def record(self, call: Call, batch: Batch) -> None:
        """Measure one finished call, of a batch the oldest first; and what has been put off, as little at a time."""
        with _GUARD:
            if call.method not in STREAMS:
                self._count_client(call, batch.clients)
                self._record(call, batch.exemplified)
            if self._operations:
                self.settle(2)

    def close(self, batch: Batch) -> None:
        """Count what is counted once for a whole batch."""
        self.failures.settle()
        for (client, method), count in batch.clients.items():
            attributes = {semconv.CLIENT_NAME: client, semconv.MCP_METHOD_NAME: method}
            self._on.clients_requests.add(count, attributes, NO_SPAN)

    def _record(self, call: Call, exemplified: set[Bucket]) -> None:
        key, attributes = self._attributes(call)
        context = NO_SPAN
        if call.span_context is not None and call.span_context.trace_flags.sampled:
            bucket = key, bisect_left(semconv.OPERATION_BUCKETS, call.duration)
            if bucket not in exemplified:
                exemplified.add(bucket)
                context = _exemplar_context(call)
        self._on.duration.record(call.duration, attributes, context)
        if call.method == "tools/call":
            if call.result_bytes is not None:
                self._on.result_size.record(call.result_bytes, {semconv.GEN_AI_TOOL_NAME: key[1]}, NO_SPAN)
            self.failures.count(call, key[1], worked=_worked(call))

    def _count_client(self, call: Call, clients: Counter[tuple[str, str]]) -> None:
        if call.id is not None and (client := client_of(call)[0]) is not None:
            taken = call.accepted or (call.exchange.status or 500) < 300
            # A client that has only introduced itself, which servers let anybody do, leaves room for those that work.
            works = taken and call.method == "tools/call" and _worked(call)
            clients[self._clients.bounded(client, proven=works, likely=taken), known_method(call.method)] += 1

    def _attributes(self, call: Call) -> tuple[tuple[str | None, ...], dict[str, Any]]:
        """What tells a call's series from others, and the attributes made of it."""
        outcome, exchange = call.outcome, call.exchange
        error_type = outcome.error_type if outcome is not None else None
        status_code = outcome.status_code if outcome is not None else None
        method, version = known_method(call.method), exchange.protocol_version
        known, worked = call.trusted_name and call.target is not None, _worked(call) and call.target is not None
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
            error_type = self._error_types.bounded(error_type, proven=call.accepted, likely=True)
            attributes[semconv.ERROR_TYPE] = error_type
        if status_code is not None:
            status_code = self._error_codes.bounded(status_code, proven=call.accepted, likely=True)
            attributes[semconv.RPC_RESPONSE_STATUS_CODE] = status_code
        if method == "tools/call":
            name = self.tools.bounded(call.target or "", proven=known, likely=worked)
            attributes[semconv.GEN_AI_OPERATION_NAME] = semconv.EXECUTE_TOOL
            attributes[semconv.GEN_AI_TOOL_NAME] = name
        elif method == "prompts/get":
            name = self.prompts.bounded(call.target or "", proven=known, likely=worked)
            attributes[semconv.GEN_AI_PROMPT_NAME] = name
        return (method, name, error_type, status_code, version, exchange.http_version), attributes

    def learn_listed(self, method: str, result: object) -> None:
        """What the server itself listed, where `method` asked for its tools or prompts."""
        if method == "tools/list":
            names = listed_names(result, "tools")
            self.tools.learn(names)
            # Of pages, the last one makes the list whole.
            if names and not field_of(result, "nextCursor"):
                self.failures.tools_listed = True
        elif method == "prompts/list":
            self.prompts.learn(listed_names(result, "prompts"))

    def session_started(self, facts: SessionFacts) -> None:
        self._on.started.add(1, _session_attributes(facts.source, facts.protocol_version), NO_SPAN)

    def session_resumed(self) -> None:
        self._on.resumed.add(1, None, NO_SPAN)

    def session_ended(self, ended: EndedSession) -> None:
        """Count an end, and measure the session unless its borders are guessed."""
        self._on.ended.add(1, {semconv.SESSION_END_REASON: ended.reason}, NO_SPAN)
        facts = ended.facts
        attributes = _session_attributes(facts.source, facts.protocol_version)
        self._on.tool_calls.record(ended.tool_call_count, {semconv.SESSION_SOURCE: facts.source or "none"}, NO_SPAN)
        if facts.source != "inferred_weak":
            attributes[semconv.SESSION_END_REASON] = ended.reason
            attributes[semconv.NETWORK_PROTOCOL_NAME] = "http"
            self._on.session_duration.record(max(0.0, ended.last_activity - facts.created_at), attributes, NO_SPAN)

    def session_rejected(self, reason: str) -> None:
        self._on.rejected.add(1, {semconv.REJECT_REASON: reason}, NO_SPAN)

    def store_dropped(self, count: int, reason: str) -> None:
        self._on.dropped.add(count, {semconv.REJECT_REASON: reason}, NO_SPAN)

    def store_operation(self, operation: str, outcome: str, seconds: float) -> None:
        """Measure a use of the store, but later: of what is asked on behalf of a request, that request waits."""
        self._operations.append((operation, outcome, seconds))
        if len(self._operations) > _MAX_OPERATIONS:
            self.settle(1)

    def settle(self, most: int = _MAX_OPERATIONS + 1) -> None:
        """Record what has been put off, the oldest first. From any thread."""
        while most > 0 and self._operations:
            most -= 1
            try:
                operation, outcome, seconds = self._operations.popleft()
            except IndexError:  # Another thread was faster.
                return
            self._on.store_duration.record(
                seconds, {semconv.STORE_OPERATION: operation, semconv.STORE_OUTCOME: outcome}, NO_SPAN
            )

    def forget(self) -> None:
        """Start again in a forked child: what has been put off is the parent's."""
        self._operations.clear()
        self.failures.forget()

    def observer_dropped(self, observer: str, count: int) -> None:
        self._on.observer_dropped.add(count, {semconv.OBSERVER: observer}, NO_SPAN)


def _worked(call: Call) -> bool:
    return call.outcome is not None and not call.outcome.failed and not call.outcome.unclassified


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
        return set_span_in_context(call.span, NO_SPAN)
    if call.span_context is not None:
        return set_span_in_context(NonRecordingSpan(call.span_context), NO_SPAN)
    return NO_SPAN
