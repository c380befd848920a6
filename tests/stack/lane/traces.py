"""What must be true of the traces that went through."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from functools import partial
from typing import Final

import redis

from otel_mcp import semconv as names
from otel_mcp.store.base import BRIEF
from tests.stack import dashboards

from .ask import tags
from .seen import SERVICE, VALUES, Proof, Seen, eventually

AT_MOST: Final = 25
"""Exemplars and sessions looked at; one wrong one is enough."""


def exemplars_lead_to_traces(seen: Seen) -> Iterator[str]:
    """Follow the exemplars of every panel that shows them to Jaeger."""
    asked = 0
    for name, dashboard in dashboards.load().items():
        for query in dashboards.queries(name, dashboard):
            if not query.exemplars:
                continue
            asked += 1
            found = seen.prometheus.exemplars(query.filled(VALUES), seen.began, time.time())
            if not found:
                yield f"{query.where}: no exemplars"
            for trace_id in list(found)[:AT_MOST]:
                if not eventually(lambda trace_id=trace_id: bool(seen.traces.trace(trace_id)), 5):
                    yield f"{query.where}: exemplar {trace_id} leads to no trace"
    if not asked:
        yield "no panel shows exemplars"


def sessions_are_found_by_id(seen: Seen) -> Iterator[str]:
    """Take sessions as Redis holds them, and find each one's calls in Jaeger."""
    client = redis.Redis.from_url(seen.stack.valkey_url, decode_responses=True)
    found = [json.loads(str(client.get(key))) for key in client.scan_iter("mcp_session:*")]
    client.close()
    called = [session for session in found if session["tool_call_count"]]
    if not called:
        yield "no session with tool calls in the store"
    for session in called[:AT_MOST]:
        wanted = {names.SESSION_ID: session["session_id"]}
        stored = {call["trace_id"] for call in session["tool_calls"]}

        def missing(wanted: dict[str, str] = wanted, stored: set[str] = stored) -> set[str]:
            return stored - {trace["traceID"] for trace in seen.traces.search(SERVICE, tags=wanted)}

        if eventually(lambda: not missing(), 10):
            continue
        # A call that was made before its transport session turned out to go on with this one has that one's id.
        left = missing()
        source = str(session["source"])
        if not source.startswith("inferred") or not all(map(seen.traces.trace, left)):
            yield f"Jaeger's search by {wanted} ({source}) does not find {sorted(left)} of {len(stored)} calls"


def sessions_are_listed(seen: Seen) -> Iterator[str]:
    """Search as the sessions dashboard does: one span for each session that ended."""

    def listed() -> bool:
        return bool(seen.traces.search(SERVICE, operation=names.SPAN_SESSION))

    if not eventually(listed):
        yield f"Jaeger lists no {names.SPAN_SESSION} spans"


def sessions_are_found_by_outcome(seen: Seen) -> Iterator[str]:
    """Search as the list of the sessions dashboard does, by an outcome; and find those of it alone."""
    for outcome in ("worked", "looped", "probe"):
        wanted = {names.SESSION_OUTCOME: outcome}
        search = partial(seen.traces.search, SERVICE, operation=names.SPAN_SESSION, tags=wanted)
        # The end of a session with a call at most is reported a minute later: its client may go on in another one.
        if not eventually(lambda search=search: bool(search()), BRIEF + 15):
            yield f"Jaeger lists no {names.SPAN_SESSION} spans of {wanted}"
        for trace in search()[:AT_MOST]:
            named = {tags(span).get(names.SESSION_OUTCOME) for span in trace["spans"]}
            if outcome not in named:
                yield f"trace {trace['traceID']} is one of {named}"


def failures_are_searchable(seen: Seen) -> Iterator[str]:
    """Search as the link of a tool's row does.

    It asks for `error=true`, which Jaeger understands from 2.17 on (the pinned image does); the one
    that Go can build takes the kind of error only.
    """
    wanted = {names.GEN_AI_TOOL_NAME: "charge_card", names.ERROR_TYPE: names.TOOL_ERROR}
    found = seen.traces.search(SERVICE, tags=wanted)
    if not found:
        yield f"Jaeger's search by {wanted} finds nothing"
    for trace in found:
        if not any(tags(span).get(names.SESSION_ID) for span in trace["spans"]):
            yield f"trace {trace['traceID']} has no {names.SESSION_ID}"


def reads_are_found(seen: Seen) -> Iterator[str]:
    """Search as the dashboard of resources does: reads, and those of what is not there, each with its resource."""
    for wanted in ({}, {names.RPC_RESPONSE_STATUS_CODE: "-32602"}):
        found = seen.traces.search(SERVICE, operation="resources/read", tags=wanted)
        if not any(tags(span).get(names.MCP_RESOURCE_URI) for trace in found for span in trace["spans"]):
            yield f"no resources/read with {wanted} says which resource"


PROOFS: Final[dict[str, Proof]] = {
    "exemplars lead to traces": exemplars_lead_to_traces,
    "sessions are found by their id": sessions_are_found_by_id,
    "sessions are listed": sessions_are_listed,
    "sessions are found by their outcome": sessions_are_found_by_outcome,
    "a tool's failures are found": failures_are_searchable,
    "reads of resources are found": reads_are_found,
}
