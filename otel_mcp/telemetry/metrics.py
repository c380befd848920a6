"""Record finished calls, and questions to clients, as measurements.

Only zeros are recorded before the first request: every child would export values from before a fork.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from math import inf
from typing import Any, Final

from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import NonRecordingSpan, set_span_in_context

from otel_mcp import semconv
from otel_mcp.bounded import BoundedNames
from otel_mcp.guard import quietly, report
from otel_mcp.model.call import Call, client_of
from otel_mcp.model.outcomes import failure_of
from otel_mcp.model.session import Session
from otel_mcp.telemetry.catalogue import Catalogues
from otel_mcp.telemetry.census import Census
from otel_mcp.telemetry.instruments import Instruments, Readings
from otel_mcp.telemetry.labels import Labels, has_worked
from otel_mcp.telemetry.listings import Listings
from otel_mcp.telemetry.series import Series
from otel_mcp.telemetry.session_metrics import PROTOCOL_VERSIONS, SessionMetrics
from otel_mcp.telemetry.spans import NO_SPAN
from otel_mcp.telemetry.tasks import Tasks
from otel_mcp.wire.catalogue import Page
from otel_mcp.wire.jsonrpc import FINE, STREAMS, Outcome

DROP_REASONS: Final = ("foreign", "full", "error", "ended", "principal", "shutdown", "interruptions", "rounds", "tasks")
_MAX_WAITING: Final = 1000
"""Maximum number of refusals and streams that wait to be recorded."""
_MAX_REMEMBERED: Final = 16
"""Maximum number of tools of a session whose last failure is remembered."""
_MAX_ERRORS: Final = 20
"""Maximum number of error codes of clients with label values of their own."""


class Metrics:
    """Records measurements, with bounded attributes."""

    def __init__(self, provider: MeterProvider | None, tenants: Iterable[str] = ()) -> None:
        """Initialize without measurements; `tenants` always have label values of their own."""
        self._on = Instruments(provider)
        self.catalogues, self.listings = Catalogues(), Listings()
        self.names = {"tools/call": self.catalogues.tools, "prompts/get": self.catalogues.prompts}
        self.census = Census(self.catalogues.tools)
        self.tasks = Tasks(self._on, self.catalogues.tools)
        self.labels = Labels(self._on, self.names, self.census, tenants)
        self.clients, self.tenants = self.labels.clients, self.labels.tenants
        self._store_series: dict[tuple[str, str], Series] = {}
        self._waiting: deque[tuple[Callable[..., None], float, str | None, dict[str, Any]]] = deque()
        self.sessions = SessionMetrics(self._on, self._of_client, self.tenants)
        self.audits: Sequence[str] = ()  # Why audit records may be dropped, if they are made.
        self.inputs = InputMetrics(self._on, self.catalogues.tools)
        self.registered = False
        self.forget()

    def watch(self, read: Callable[[], Readings] | None) -> None:
        """Let the observable instruments call `read`; a reader may collect before. ``None`` = show nothing any more."""
        self._on.read = read

    def forget(self) -> None:
        """Start again in a forked child: waiting measurements are the parent's."""
        self._waiting.clear()
        self.census.forget()
        self.tasks.forget()
        self.listings.forget()
        self.calls: Counter[str] = Counter()  # Of tools, by their bounded names.
        self._requests: Counter[Series] = Counter()
        """Requests of the current batch, by the series of client and method."""
        self._values: defaultdict[Series, list[float]] = defaultdict(list)
        """Durations and sizes of this batch, recorded together."""
        self._exemplified: set[tuple[Series, int]] = set()
        """Buckets that got an exemplar in this batch: they keep one, and each costs a record."""

    def register(self) -> None:
        """Create the series with value zero, once and early, so that the first increase of each is seen."""
        if self.registered:
            return
        self.registered = True
        self.sessions.register()
        for counter, attribute, values in (
            (self._on.refused, semconv.HTTP_RESPONSE_STATUS_CODE, (400, 401, 403, 404)),
            (self._on.dropped, semconv.REJECT_REASON, DROP_REASONS),
        ):
            for value in values:
                counter.add(0, {attribute: value}, NO_SPAN)
        for reason in self.audits:
            self.audit_dropped(0, reason)

    def record(self, call: Call) -> None:
        """Measure a finished call; the calls of a batch come oldest first."""
        if call.method in STREAMS:
            return
        try:
            outcome, session, exchange = call.outcome, call.session, call.exchange
            client = session.facts.client_name if session is not None else None
            usual = None
            key = call.target, client, call.tenant, exchange.protocol_version, exchange.http_version
            if outcome is FINE and call.trusted_name and call.method == "tools/call" and call.id is not None:
                usual = self.labels.usual.get(key)
            name, label, tenant, requests, duration, sizes = usual or self.labels.slow_find(call, key)
            if requests is not None:
                self._requests[requests] += 1
            if (
                (span := call.span_context) is not None
                and span.trace_flags.sampled
                and (bucket := (duration, bisect_left(semconv.OPERATION_BUCKETS, call.duration)))
                not in self._exemplified
            ):
                self._exemplified.add(bucket)
                context = set_span_in_context(call.span or NonRecordingSpan(span), NO_SPAN)
                duration.record(call.duration, context=context)
            else:
                self._values[duration].append(call.duration)
            if call.method == "tools/call":
                self.calls[name or semconv.OTHER] += call.round is None or not call.round.continues
                if call.result_bytes is not None:
                    size = sizes.get(tenant) or self.labels.slow_size(sizes, name, tenant)
                    self._values[size].append(call.result_bytes)
                    if call.result_bytes > self.labels.taken.get(label, inf) and (
                        outcome is None or outcome.asks is None
                    ):
                        self._slow_oversized(call, call.result_bytes, name, label)
                session = session.conversation or session if session is not None else None
                if call.failure is not None or (session is not None and session.failed):
                    self._slow_failure(call, session, name)
            elif call.listing is not None:
                owner = session.id if session is not None else ""
                self.listings.when_read(call.listing, partial(self._listed, owner, label))
        except Exception as failure:
            report("record", failure)

    def _listed(self, owner: str, client: str, cursor: str | None, page: Page) -> None:
        """Measure the catalogue if this page completes it."""
        if (size := self.catalogues.listed(cursor, page, owner)) is not None:
            self._on.catalogue_size.record(size, {semconv.CLIENT_NAME: client} if client else {}, NO_SPAN)

    def _slow_oversized(self, call: Call, size: int, tool: str | None, client: str) -> None:
        """Count an answer larger than its host accepts, unless the tool asks for a higher limit."""
        asks = call.outcome is not None and call.outcome.asks is not None
        if not asks and size > (self.catalogues.own_limit(call.target) or 0):
            self._on.oversized.add(1, {semconv.GEN_AI_TOOL_NAME: tool, semconv.CLIENT_NAME: client}, NO_SPAN)

    def close(self) -> None:
        """End a batch: record its counts, durations and sizes."""
        requests, values, self._requests, self._values = self._requests, self._values, Counter(), defaultdict(list)
        self._exemplified.clear()
        if self._waiting:
            quietly("record", self.settle)
        for series, count in requests.items():
            values[series].append(count)
        for series, several in values.items():
            try:
                series.record(*several)
            except Exception as failure:
                report("record", failure)

    def classify(self, call: Call, outcome: Outcome) -> None:
        """Set how a tool call failed."""
        if call.method == "tools/call":
            call.unlisted = call.unlisted or self.catalogues.is_unlisted(call)
            call.failure = failure_of(call, outcome, unlisted=call.unlisted)

    def _slow_failure(self, call: Call, session: Session | None, tool: str | None) -> None:
        """Count a tool call if it failed, or is the first that works after one in its session."""
        failed = session.failed if session is not None else None
        counter, failure = self._on.failures, call.failure
        if failure is None:
            if not has_worked(call.outcome) or not failed or call.target not in failed:
                return
            counter, failure = self._on.corrected, failed.pop(call.target)
        elif session is not None and call.target is not None:
            session.failed = failed = failed if failed is not None else {}
            if call.target not in failed and len(failed) >= _MAX_REMEMBERED:
                del failed[next(iter(failed))]
            failed[call.target] = failure
        attributes = {semconv.GEN_AI_TOOL_NAME: tool, semconv.FAILURE: failure}
        # This exemplar leads to a call with this failure; that of the duration is any call of its bucket.
        span = call.span or (NonRecordingSpan(call.span_context) if call.span_context is not None else None)
        context = set_span_in_context(span, NO_SPAN) if span is not None else NO_SPAN
        counter.add(1, self._of_client(client_of(call)[0], attributes), context)

    def _of_client(
        self, client: str | None, attributes: dict[str, Any], *, proven: bool = False, likely: bool = False
    ) -> dict[str, Any]:
        """Add the client's bounded name, if it has one."""
        if client is None:
            return attributes
        return attributes | {semconv.CLIENT_NAME: self.clients.bounded(client, proven=proven, likely=likely)}

    def request_refused(self, status: int, client: str | None) -> None:
        """Count a request that HTTP answered with a refusal."""
        self._record_later(self._on.refused.add, 1, client, {semconv.HTTP_RESPONSE_STATUS_CODE: status})

    def stream_ended(self, kind: str, client: str | None, seconds: float) -> None:
        """Measure a stream."""
        self._record_later(self._on.stream_duration.record, seconds, client, {semconv.STREAM_KIND: kind})

    def _record_later(self, record: Callable[..., None], value: float, client: str | None, by: dict[str, Any]) -> None:
        self._waiting.append((record, value, client, by))
        if len(self._waiting) > _MAX_WAITING:
            self.settle()

    def settle(self) -> None:
        """Record the measurements that waited until it was known which clients work. From any thread."""
        with suppress(IndexError):  # Empty: another thread may have taken the last one.
            while True:
                record, value, client, by = self._waiting.popleft()
                try:
                    record(value, self._of_client(client, by), NO_SPAN)
                except Exception as failure:  # The others are still recorded.
                    report("record", failure)

    def store_dropped(self, count: int, reason: str) -> None:
        self._on.dropped.add(count, {semconv.REJECT_REASON: reason}, NO_SPAN)

    def store_operation(self, operation: str, outcome: str, seconds: float) -> None:
        """Measure a use of the store."""
        if (series := self._store_series.get((operation, outcome))) is None:
            attributes = {semconv.STORE_OPERATION: operation, semconv.STORE_OUTCOME: outcome}
            series = self._store_series[operation, outcome] = Series(self._on.store_duration, attributes)
        series.record(seconds)

    def audit_dropped(self, count: int, reason: str) -> None:
        self._on.audit_dropped.add(count, {semconv.REJECT_REASON: reason}, NO_SPAN)

    def observer_dropped(self, observer: str, count: int) -> None:
        self._on.observer_dropped.add(count, {semconv.OBSERVER: observer}, NO_SPAN)


class InputMetrics:
    """Records measurements of questions to clients."""

    def __init__(self, on: Instruments, tools: BoundedNames) -> None:
        self._on = on
        self._tools = tools
        self._errors = BoundedNames(_MAX_ERRORS, ("unanswered", "-1", "-32601", "-32602", "-32603"))

    def given(self, tool: str, seconds: float) -> None:
        """Measure how long a tool call waited for its input."""
        self._on.input_wait.record(seconds, self._of_tool(tool), NO_SPAN)

    def abandoned(self, tool: str) -> None:
        """Count a tool call that still waits for input when its session is over."""
        self._on.input_abandoned.add(1, self._of_tool(tool), NO_SPAN)

    def asked(self, method: str, version: str | None, failure: Mapping[str, str], seconds: float) -> None:
        """Measure a request of the server to its client, with the attributes of its failure."""
        attributes = {semconv.MCP_METHOD_NAME: method}
        if version is not None:
            attributes[semconv.MCP_PROTOCOL_VERSION] = version if version in PROTOCOL_VERSIONS else semconv.OTHER
        for key, error in failure.items():  # Clients may invent codes.
            attributes[key] = self._errors.bounded(error, proven=False, likely=True)
        self._on.client_duration.record(seconds, attributes, NO_SPAN)

    def _of_tool(self, tool: str) -> dict[str, str]:
        # A new process has not seen its tools work yet, but the store has.
        return {semconv.GEN_AI_TOOL_NAME: self._tools.bounded(tool, proven=False, likely=True)}
