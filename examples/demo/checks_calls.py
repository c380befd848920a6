"""Checks of the tool calls: nothing lost, nothing twice, everything under its session."""

from __future__ import annotations

from collections.abc import Iterator

from .evidence import Check, Evidence, at_least_one, equal
from .views import (
    CLIENT_DURATION,
    INPUT_WAIT,
    OPERATION_DURATION,
    TASK_DURATION,
    TASK_STATUS,
    TOOLS_CALL,
    children_of,
    session_of,
    tool_call_spans,
)


def counts(evidence: Evidence) -> Iterator[Check]:
    """Compare the tally with the spans, the histogram and the documents."""
    telemetry, calls = evidence.telemetry, evidence.tally.calls
    messages = calls + evidence.tally.rounds
    documents = [session.document for session in evidence.sessions]
    failed = {**TOOLS_CALL, "error.type": "tool_error"}
    yield equal("each round of a tool call is one SERVER span of tools/call", len(tool_call_spans(telemetry)), messages)
    yield equal(
        f"each round of a tool call is counted in {OPERATION_DURATION}",
        telemetry.total(OPERATION_DURATION, TOOLS_CALL),
        messages,
    )
    yield equal(
        "each tool call is counted once in the sessions' tool_call_count, however many rounds it took",
        sum(document.tool_call_count for document in documents),
        calls,
    )
    yield equal(
        "each failed call has error.type tool_error in the metrics",
        telemetry.total(OPERATION_DURATION, failed),
        evidence.tally.failures,
    )
    yield equal(
        "each failed call is counted in the sessions' error_count",
        sum(document.error_count for document in documents),
        evidence.tally.failures,
    )


def spans(evidence: Evidence) -> Iterator[Check]:
    """Look at what each tool call's span carries."""
    spans = tool_call_spans(evidence.telemetry)
    known = {session.session_id for session in evidence.sessions}
    failed = [span for span in spans if span.attributes.get("error.type") == "tool_error"]
    complete = {"gen_ai.tool.name", "gen_ai.operation.name", "otel_mcp.session.source"}
    yield equal(
        "each of these spans carries the session.id of a session in Redis",
        sum(session_of(span) in known for span in spans),
        len(spans),
    )
    yield equal(
        "each of these spans names its tool, its operation and the source of its session",
        sum(complete <= span.attributes.keys() for span in spans),
        len(spans),
    )
    yield equal(
        "each failed call is a span with status ERROR",
        sum(span.status == "ERROR" for span in failed),
        evidence.tally.failures,
    )


def patience(evidence: Evidence) -> Iterator[Check]:
    """Look at the calls that waited for a person, and at the tasks."""
    telemetry, tally = evidence.telemetry, evidence.tally
    calls = [call for session in evidence.sessions for call in session.document.tool_calls]
    question = {"mcp.method.name": "elicitation/create"}
    questions = [span for span in telemetry.spans() if question.items() <= span.attributes.items()]
    asking = {span.span_id for span in tool_call_spans(telemetry)}
    yield equal(
        f"each wait between two rounds of a call is measured in {INPUT_WAIT}",
        telemetry.total(INPUT_WAIT),
        tally.rounds,
    )
    yield equal(
        "the calls of several rounds stand in their sessions with all of them",
        sum(call.rounds - 1 for call in calls),
        tally.rounds,
    )
    yield equal(
        f"each question within a call is measured in {CLIENT_DURATION}",
        telemetry.total(CLIENT_DURATION, question),
        tally.answers,
    )
    yield equal(
        "each of these questions is a CLIENT span beneath that of its tool",
        sum(span.kind == "CLIENT" and span.parent_id in asking for span in questions),
        tally.answers,
    )
    yield equal(
        f"each task is measured in {TASK_DURATION}, with its last status",
        telemetry.total(TASK_DURATION, {TASK_STATUS: "completed"}),
        tally.tasks,
    )


def nesting(evidence: Evidence) -> Iterator[Check]:
    """Look at what the tools did beneath their spans."""
    all_spans = evidence.telemetry.spans()
    children = children_of(all_spans)
    tool_spans = {span.span_id: span for span in tool_call_spans(evidence.telemetry)}
    queries = [span for span in all_spans if span.name == "db.query"]
    searches = {span.span_id: span for span in all_spans if span.name == "orders.search"}
    beneath = [
        span
        for tool_span in tool_spans.values()
        for child in children.get(tool_span.span_id, [])
        for span in (child, *children.get(child.span_id, []))
        if span.name == "db.query" and session_of(span) == session_of(tool_span)
    ]
    yield equal(
        "each db.query stands beneath its tool's span, with the same session.id",
        len(beneath),
        len(queries),
    )
    yield at_least_one(
        "a query stands two levels beneath its tool's span",
        sum(span.parent_id in searches for span in beneath),
    )
