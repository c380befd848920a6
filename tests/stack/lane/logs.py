"""What must be true of the logs that went through."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any, Final

import redis

from otel_mcp import semconv as names
from tests.stack import dashboards

from .ask import Loki
from .seen import SERVICE, VALUES, Proof, Seen, eventually


def log_panels_show_a_session(seen: Seen) -> Iterator[str]:
    """Ask the queries of log panels for sessions that Redis has seen end: each from its beginning to its end."""
    if (loki := seen.stack.logs) is None:
        return
    ended = [session for session in _documents(seen) if session.get("outcome")]  # Its end is reported.
    queries = [query for query in _queries() if "$session_id" in query.expr]
    if not ended or not queries:
        yield f"{len(ended)} sessions have ended, {len(queries)} panels show logs"
    for query in queries:
        for session in ended[:10]:
            expr = query.filled(VALUES | {"session_id": session["session_id"]})
            wanted = {names.EVENT_SESSION_START, names.EVENT_SESSION_END}
            if not eventually(
                lambda expr=expr, wanted=wanted: wanted <= {line for line, _ in _ask(seen, loki, expr)}, 10
            ):
                yield f"{query.where}: {sorted(line for line, _ in _ask(seen, loki, expr))} for {expr}"


def audit_panels_show_callers(seen: Seen) -> Iterator[str]:
    """Ask the queries of all other log panels: each has an answer, and lines have client, tool, seconds and session."""
    if (loki := seen.stack.logs) is None:
        return
    queries = [query for query in _queries() if "$session_id" not in query.expr]
    if len(queries) < 4:
        yield f"only {len(queries)} panels show audit records"
    for query in queries:
        expr = query.filled(VALUES)
        if not eventually(lambda expr=expr: bool(_ask(seen, loki, expr)), 10):
            yield f"{query.where}: nothing for {expr}"
        if "line_format" in expr and not any(len(line.split()) >= 4 for line, _ in _ask(seen, loki, expr)):
            yield f"{query.where}: {_ask(seen, loki, expr)[:1]}"


def records_lead_to_traces(seen: Seen) -> Iterator[str]:
    """Follow what a tool has logged to its trace, by the label that Grafana makes a link of."""
    if (loki := seen.stack.logs) is None:
        return
    of_calls = [known for _, known in _ask(seen, loki, f'{{service_name="{SERVICE}"}} | trace_id!=""')]
    if not of_calls:
        yield "no record carries a trace"
    for known in of_calls[:10]:
        if not eventually(lambda trace_id=known["trace_id"]: bool(seen.traces.trace(trace_id)), 5):
            yield f"record of {known['trace_id']} leads to no trace"


def _queries() -> list[dashboards.Query]:
    return [query for name, board in dashboards.load().items() for query in dashboards.log_queries(name, board)]


def _ask(seen: Seen, loki: Loki, expr: str) -> list[tuple[str, dict[str, str]]]:
    return loki.query(expr, seen.began - 60, time.time() + 60)


def _documents(seen: Seen) -> list[dict[str, Any]]:
    client = redis.Redis.from_url(seen.stack.valkey_url, decode_responses=True)
    found = [json.loads(str(client.get(key))) for key in client.scan_iter("mcp_session:*")]
    client.close()
    return found


PROOFS: Final[dict[str, Proof]] = {
    "log panels show a session": log_panels_show_a_session,
    "audit panels show callers": audit_panels_show_callers,
    "log records lead to traces": records_lead_to_traces,
}
