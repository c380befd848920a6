"""Turn reports of the session store into metrics, events and the optional session span."""

from __future__ import annotations

import time
from typing import Any

from opentelemetry import _logs, trace
from opentelemetry._logs import LoggerProvider, LogRecord, SeverityNumber
from opentelemetry.trace import Link, SpanContext, SpanKind, TracerProvider

from otel_mcp import semconv
from otel_mcp.guard import guarded
from otel_mcp.model.delta import FACTS, EndedSession, OpenCall, SessionDelta, SessionFacts, WriteResult
from otel_mcp.model.session import Interruption, within
from otel_mcp.model.state import SessionState
from otel_mcp.model.task import Followed, TaskCensus, TaskNews
from otel_mcp.model.verdict import Finding
from otel_mcp.telemetry.catalogue import change
from otel_mcp.telemetry.metrics import Metrics
from otel_mcp.telemetry.spans import NO_SPAN
from otel_mcp.version import __version__

_GUARD = guarded("session events")


class SessionReporter:
    """Receives lifecycle and store events; every method is called at most once for each event."""

    def __init__(
        self,
        metrics: Metrics,
        tracer_provider: TracerProvider | None,
        logger_provider: LoggerProvider | None,
        *,
        session_span: bool,
    ) -> None:
        self._metrics = metrics
        self._logger = _logs.get_logger(
            semconv.SCOPE, __version__, logger_provider=logger_provider, schema_url=semconv.SCHEMA_URL
        )
        self._tracer = trace.get_tracer(semconv.SCOPE, __version__, tracer_provider, semconv.SCHEMA_URL)
        self._session_span = session_span
        self.store_operation = metrics.store_operation

    def calls_of(self, session_id: str) -> list[SpanContext]:
        """Return the contexts of the session's sampled calls in this process."""
        return []

    def written(self, delta: SessionDelta, result: WriteResult) -> SessionDelta | None:
        if result.created:
            self.started(delta.facts)
        if result.resumed:
            self.resumed(delta.facts)
        if result.back_after is not None:
            self.returned(delta.facts, result.back_after)
        for tool, seconds in result.waits:
            with _GUARD:
                self._metrics.inputs.given(tool, seconds)
        return None

    def started(self, facts: SessionFacts) -> None:
        with _GUARD:
            self._metrics.sessions.started(facts)
            self._emit(semconv.EVENT_SESSION_START, facts.created_at, _facts_attributes(facts))

    def resumed(self, facts: SessionFacts) -> None:
        with _GUARD:
            self._metrics.sessions.resumed()

    def ended(self, session: EndedSession) -> None:
        with _GUARD:
            self._metrics.sessions.ended(session)
            for call in session.calls:
                if call.waiting is not None:
                    self._metrics.inputs.abandoned(call.tool_name)
            attributes = {
                **_facts_attributes(session.facts),
                semconv.SESSION_END_REASON: session.reason,
                semconv.SESSION_OUTCOME: session.outcome or semconv.OTHER,
                semconv.SESSION_TOOL_CALLS: session.tool_call_count,
                semconv.SESSION_REQUESTS: session.request_count,
                semconv.SESSION_ERRORS: session.error_count,
                semconv.SESSION_CONTEXT_SIZE: session.context_bytes,
            }
            self._emit(semconv.EVENT_SESSION_END, session.last_activity, attributes)
            if self._session_span:
                self._write_span(session, attributes)

    def listed(self) -> list[tuple[str, str]]:
        with _GUARD:
            return self._metrics.catalogues.summaries()
        return []

    def met(self, digest: str, summary: str, others: list[str]) -> None:
        with _GUARD:
            self._metrics.catalogues.noted(digest)
            if (attributes := change(summary, others)) is not None and self._metrics.catalogues.may_report():
                self._emit(semconv.EVENT_CATALOGUE_CHANGED, time.time(), attributes)

    def tasks_seen(self, most: int) -> list[TaskNews]:
        with _GUARD:
            return self._metrics.tasks.take(most)
        return []

    def tasks_followed(self, answer: Followed) -> None:
        with _GUARD:
            self._metrics.tasks.followed(answer)

    def tasks_abandoned(self) -> None:
        with _GUARD:
            self._metrics.tasks.abandon()

    def tasks_counted(self, census: TaskCensus | None) -> None:
        with _GUARD:
            self._metrics.tasks.counted(census)

    def in_flight(self) -> list[OpenCall]:
        """Return the tool calls that have been in flight for long."""
        return []

    def interrupted(self, cut: Interruption) -> None:
        with _GUARD:
            self._metrics.sessions.interrupted(cut)
            attributes = {**_facts_attributes(cut.facts), semconv.SESSION_INTERRUPTED_CAUSE: cut.cause}
            self._emit(semconv.EVENT_SESSION_INTERRUPTED, cut.at, attributes)

    def returned(self, facts: SessionFacts, after: float) -> None:
        with _GUARD:
            self._metrics.sessions.returned(facts, after)
            attributes = {**_facts_attributes(facts), semconv.SESSION_RETURNED_WITHIN: within(after)}
            self._emit(semconv.EVENT_SESSION_RETURNED, time.time(), attributes)

    def found(self, finding: Finding, state: SessionState) -> None:
        with _GUARD:
            at = time.time()
            facts = SessionFacts.of(state, at, 0.0).at_end()
            self._metrics.sessions.found(finding.name, facts.client_name)
            attributes = {
                **_facts_attributes(facts),
                semconv.SESSION_FINDING: finding.name,
                semconv.SESSION_FINDING_CALLS: finding.calls,
                semconv.GEN_AI_TOOL_NAME: finding.tool_name,
            }
            self._emit(semconv.EVENT_SESSION_FINDING, at, attributes, SeverityNumber.WARN)

    def dropped(self, count: int, reason: str) -> None:
        with _GUARD:
            self._metrics.store_dropped(count, reason)

    def _emit(
        self, name: str, at: float, attributes: dict[str, Any], severity: SeverityNumber = SeverityNumber.INFO
    ) -> None:
        self._logger.emit(
            LogRecord(
                timestamp=int(at * 1e9),
                context=NO_SPAN,
                severity_number=severity,
                event_name=name,
                attributes=attributes,
            )
        )

    def _write_span(self, ended: EndedSession, attributes: dict[str, Any]) -> None:
        span = self._tracer.start_span(
            semconv.SPAN_SESSION,
            NO_SPAN,
            SpanKind.INTERNAL,
            attributes,
            [Link(context) for context in self.calls_of(ended.session_id)],
            start_time=int(ended.facts.created_at * 1e9),
        )
        span.end(int(max(ended.last_activity, ended.facts.created_at) * 1e9))


def _facts_attributes(facts: SessionFacts) -> dict[str, Any]:
    named = {fact.attribute: value for fact in FACTS if fact.attribute and (value := getattr(facts, fact.name))}
    if facts.client_name is not None:
        named[semconv.USER_AGENT_NAME] = facts.client_name
        if facts.client_version is not None:
            named[semconv.USER_AGENT_VERSION] = facts.client_version
    return {semconv.SESSION_ID: facts.session_id, **named}
