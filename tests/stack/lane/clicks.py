"""From an alert to the session in three clicks, followed with what the stack holds."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Final

from grafana.boards import contract, query
from otel_mcp import semconv as names
from tests.stack import clicks, dashboards

from .seen import SERVICE, VALUES, Proof, Seen, eventually

_ALERTS: Final[dict[str, dict[str, str]]] = {
    "MCPToolErrorRateHigh": {query.TOOL: "charge_card"},
    "MCPWrongCallsHigh": {query.TOOL: "stock_level", query.CLIENT: "new-agent"},
    "MCPSessionsStruggling": {query.CLIENT: "stuck-agent"},
}
_CHOSEN: Final = VALUES | {"outcome": "looped", "code": "-32602", "session_id": "", "trace_id": ""}
_AT_MOST: Final = 5
"""Traces followed from each alert."""


def alerts_lead_to_sessions(seen: Seen) -> Iterator[str]:
    """Click on the link of an alert, on a trace of that dashboard, and on the session of that trace."""
    rules = {rule["name"]: rule for rule in seen.prometheus.rules()}
    for alert, labels in _ALERTS.items():
        link = rules[alert]["annotations"]["dashboard_url"]
        name, chosen = clicks.opened(clicks.filled(link, labels | {query.SERVICE: SERVICE}))
        traces = list(_traces_on(seen, name, _CHOSEN | chosen))[:_AT_MOST]
        if not traces:
            yield f"{alert}: no trace on {name} with {chosen}"
        for trace_id in traces:
            found = partial(_sessions_of, seen, trace_id)
            if not eventually(lambda found=found: bool(found()), 5):
                yield f"{alert}: trace {trace_id} names no session"
            for session in found():
                calls = seen.traces.search(SERVICE, tags={names.SESSION_ID: session})
                if trace_id not in {trace["traceID"] for trace in calls}:
                    yield f"{alert}: trace {trace_id} is not among those of its session {session}"


def _traces_on(seen: Seen, name: str, chosen: Mapping[str, str]) -> Iterator[str]:
    """Yield what a dashboard shows of failed calls and of sessions that went as chosen."""
    board = dashboards.load()[name]
    for asked in dashboards.queries(name, board):
        if asked.exemplars and contract.CALL_FAILURES.series in asked.expr:
            yield from seen.prometheus.exemplars(asked.filled(chosen), seen.began, time.time())
    for panel in dashboards.panels(board):
        for target in dashboards.targets(panel, "jaeger"):
            if "$outcome" in target.get("tags", ""):
                wanted = {names.SESSION_OUTCOME: chosen["outcome"]}
                found = seen.traces.search(SERVICE, operation=target["operation"], tags=wanted)
                yield from (trace["traceID"] for trace in found)


def _sessions_of(seen: Seen, trace_id: str) -> set[str]:
    spans: list[dict[str, Any]] = seen.traces.trace(trace_id)
    return {id for span in spans for id in clicks.sessions_in(json.dumps(span["tags"], separators=(",", ":")))}


PROOFS: Final[dict[str, Proof]] = {"three clicks lead from an alert to its session": alerts_lead_to_sessions}
