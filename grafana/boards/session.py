"""The story of one session, from traces and logs, since metrics have no session ids."""

from __future__ import annotations

import re

from grafana_foundation_sdk.builders import dashboard, table
from grafana_foundation_sdk.models import dashboard as models

from otel_mcp import semconv as names

from . import links, panels, query
from .board import Board
from .targets import JAEGER, logs, search, trace

THIS_SESSION = f'{names.SESSION_ID}="$session_id"'

_ID = "session"
TAG = rf'/"key":"{re.escape(names.SESSION_ID)}"[^}}]*"value":"(?<{_ID}>[^"]+)"/'
"""Finds the session among the attributes of a span, as JSON."""

HOW_TO = f"""
**By session**: put the id of a session into the field above: an `Mcp-Session-Id`, an `X-Session-Id`, or
`{names.SESSION_ID}` of any span. Its calls are listed on the left, those that failed on the right.
**By trace**: a click on a trace id, or on a dot in a graph of another dashboard, shows the trace below and its session
on the right; a click on the session lists all its calls.
`otel-mcp show <id>` tells the session's story from Redis, with its outcome.
"""


def board() -> Board:
    """Return the dashboard that explains one session."""
    b = Board(
        "otel-mcp-session",
        "MCP / Session explorer",
        "The story of one session: its calls, its failures, and each of them as a trace.",
    )
    b.traces().logs().service().textbox("session_id", "Session").textbox("trace_id", "Trace")
    b.add(panels.note("How to find a session", HOW_TO), 14, 5)
    b.add(_of_this_trace(), 10, 5)
    opens = panels.prop("links", [links.session_story("traceID")])
    for title, description, tags, width in (
        (
            "Calls of this session",
            "All traces with a span of this session, newest first; a click on the id shows the trace below.",
            THIS_SESSION,
            12,
        ),
        (
            "Failed calls of this session",
            "The same, but only traces in which a span of this session failed.",
            f"{THIS_SESSION} error=true",
            12,
        ),
    ):
        b.add(panels.found(title, description, search(tags=tags)).override_by_name("traceID", [opens]), width, 9)
    b.add(
        panels.found(
            "The session as one span",
            "From its first to its last activity, with links to its calls; written when it ends.",
            search(operation=names.SPAN_SESSION, tags=THIS_SESSION),
        ).override_by_name("traceID", [opens]),
        24,
        4,
    )
    b.add(
        dashboard.Panel()
        .type("traces")
        .title("Trace")
        .description("What happened in one call: the tool, its requests to others, and its waits.")
        .datasource(JAEGER)
        .with_target(trace("$trace_id")),
        24,
        18,
    )
    b.add(
        panels.lines_of_text(
            "Logs of this session",
            "The session's events (`session.start`, findings, `session.end`), and log records of its calls; a record "
            "leads to its trace. Needs Loki with the servers' logs (OTEL_LOGS_EXPORTER=otlp; "
            "collector/config/to-loki.yaml).",
            logs(f'{{{query.SERVICE}="$service"}} | {query.SESSION}="$session_id"'),
        ),
        24,
        9,
    )
    return b


def _of_this_trace() -> table.Panel:
    """Return a table of the sessions in the shown trace, from the attributes of its spans."""
    panel = panels.found(
        "Session of this trace",
        "A click on the id lists all of its calls. Needs Grafana 11.5; before, the id is found in the attributes of "
        "the trace's spans.",
        trace("$trace_id"),
    ).unit(panels.COUNT)
    grouped = {name: {"operation": "groupby", "aggregations": []} for name in (_ID, "serviceName")}
    counted = {"operationName": {"operation": "aggregate", "aggregations": ["count"]}}
    there = {"fieldName": _ID, "config": {"id": "isNotNull", "options": {}}}
    for kind, options in (
        ("convertFieldType", {"fields": {}, "conversions": [{"targetField": "tags", "destinationType": "string"}]}),
        ("extractFields", {"source": "tags", "format": "regexp", "regExp": TAG}),
        ("filterByValue", {"type": "include", "match": "all", "filters": [there]}),
        ("groupBy", {"fields": grouped | counted}),
        ("organize", {"renameByName": {"operationName (count)": "spans"}}),
    ):
        panel = panel.with_transformation(models.DataTransformerConfig(id_val=kind, options=options))
    return panel.override_by_name(_ID, [panels.prop("links", [links.whole_session(_ID, "serviceName")])])
