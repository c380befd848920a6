"""Nothing but ``opentelemetry-instrument`` before the command: every way to start a server, SDK and FastMCP.

For each, four clients of both protocol revisions call tools, one says goodbye; then the server gets SIGTERM, and what
it has exported and stored is held against what the clients saw. Metrics are left at their interval
of a minute, so that what arrives was flushed by the shutdown.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from examples.demo.otlp_records import SpanRecord
from examples.demo.otlp_store import TelemetryStore
from tests.process.conftest import Servers
from tests.support.clients import LEGACY, MODERN, Caller, connect
from tests.support.documents import Document, Documents
from tests.support.servers import FASTMCP, PLAIN, SDK, TWO_WORKERS, Launch, Server
from tests.support.telemetry import OPERATION_DURATION, TOOLS_CALL, ancestors, counted, server_spans
from tests.support.waiting import wait_until

pytestmark = pytest.mark.process

GUNICORN = "gunicorn app:app -b=127.0.0.1:{port} -w 2 -k uvicorn_worker.UvicornWorker"
LAUNCHES = [
    launch
    for library in (SDK, FASTMCP)
    for launch in (
        Launch(library, "uvicorn", "uvicorn app:app --port={port}"),
        Launch(library, "uvicorn-workers", TWO_WORKERS, stateless=True, environment=PLAIN),
        Launch(library, "uvicorn-reload", "uvicorn app:app --port={port} --reload", environment=PLAIN),
        Launch(library, "uvicorn-run", "python main.py"),
        Launch(library, "mcp-run", "python run.py"),
        Launch(library, "gunicorn", GUNICORN, stateless=True),
        Launch(library, "gunicorn-preload", f"{GUNICORN} --preload", stateless=True),
        Launch(library, "fastapi-mount", "uvicorn mounted:app --port={port}", path="/shop/mcp"),
    )
] + [
    Launch(FASTMCP, "fastmcp-run", "fastmcp run app.py:mcp --transport=http --port={port}"),
    Launch(SDK, "hypercorn", "hypercorn app:app --bind=127.0.0.1:{port}"),
]

CLIENTS = (("desk", LEGACY, False), ("guest", LEGACY, True), ("planner", MODERN, False), ("report", MODERN, False))
"""Name, protocol revision, and whether the client ends its session."""
FLUSHED_WITHIN = 8.0
"""Seconds from SIGTERM until everything has arrived, and as many more as the start took: a busy machine ends slowly."""


@dataclass
class Run:
    """What the clients did with one server, and what it left behind."""

    launch: Launch
    callers: list[Caller]
    documents: dict[str, Document | None]
    """As they stood while the server ran, by name of the client."""
    telemetry: TelemetryStore
    started_after: float
    ended_after: float
    log: str

    @property
    def calls(self) -> Counter[str]:
        """Tool calls of all clients by tool."""
        return sum((caller.calls for caller in self.callers), Counter[str]())

    def tool_spans(self, caller: Caller | None = None) -> list[SpanRecord]:
        """SERVER spans of tool calls, of one client's session or of all."""
        spans = server_spans(self.telemetry, "tools/call")
        return [span for span in spans if caller is None or span.attributes.get("session.id") == caller.session_id]


async def _use(url: str) -> list[Caller]:
    callers: list[Caller] = []
    for name, mode, goodbye in CLIENTS:
        async with connect(url, name=name, mode=mode, goodbye=goodbye) as caller:
            callers.append(caller)
            assert "3" in str((await caller.call("add", a=1, b=2)).content)
            await asyncio.gather(caller.call("add", a=3, b=4), caller.call("worker"))
            assert (await caller.call("fail", text="closed")).is_error
    return callers


@pytest.fixture(scope="module", params=LAUNCHES, ids=str)
def run(request: pytest.FixtureRequest, servers: Servers, documents: Documents) -> Iterator[Run]:
    """One server, used, looked at and ended."""
    with servers.running(request.param) as server:
        yield _observed(server, documents)


def _observed(server: Server, documents: Documents) -> Run:
    callers = asyncio.run(_use(server.url))
    total = sum(sum(caller.calls.values()) for caller in callers)
    (guest,) = (caller for caller in callers if caller.name == "guest")

    def written() -> bool:
        counted = sum(documents.count(caller.session_id) for caller in callers)
        left = documents.get(guest.session_id)
        return counted >= total and left is not None and "ended" in left.fields and all(map(shaken_hands, callers))

    def shaken_hands(caller: Caller) -> bool:
        # What a process knows of a session but its handshake, it writes last.
        document = documents.get(caller.session_id)
        return document is not None and document.fields["request_count"] >= sum(caller.wire.requests.values())

    wait_until(written)
    stored = {caller.name: documents.get(caller.session_id) for caller in callers}
    telemetry = server.telemetry

    def complete() -> bool:
        return (
            len(server_spans(telemetry, "tools/call")) >= total
            and telemetry.total(OPERATION_DURATION, TOOLS_CALL) >= total
            and server.has_ended()
        )

    began = time.monotonic()
    server.terminate()
    wait_until(complete)
    ended_after = time.monotonic() - began
    server.stop()
    return Run(server.launch, callers, stored, telemetry, server.started_after, ended_after, server.log())


def test_each_tool_call_is_one_server_span_with_its_tool(run: Run) -> None:
    spans = run.tool_spans()

    assert Counter(span.attributes.get("gen_ai.tool.name") for span in spans) == run.calls
    assert Counter(span.name for span in spans) == Counter({f"tools/call {t}": n for t, n in run.calls.items()})
    assert {span.attributes.get("gen_ai.operation.name") for span in spans} == {"execute_tool"}


def test_each_message_with_an_answer_is_one_server_span(run: Run) -> None:
    sent = sum((caller.wire.requests for caller in run.callers), Counter[str]())

    spans = Counter(span.attributes["mcp.method.name"] for span in server_spans(run.telemetry))

    assert {method: count for method, count in spans.items() if not str(method).startswith("notifications/")} == +sent


def test_session_of_a_legacy_client_is_the_header_that_it_got(run: Run) -> None:
    legacy = [caller for caller in run.callers if caller.mode == LEGACY]

    assert len({caller.session_id for caller in legacy}) == 2
    for caller in legacy:
        (header,) = caller.wire.transport_ids
        spans = run.tool_spans(caller)
        assert len(spans) == sum(caller.calls.values())
        assert {span.attributes.get("mcp.session.id") for span in spans} == {header}
        assert {span.attributes.get("otel_mcp.session.source") for span in spans} == {"header"}
        assert caller.wire.public_ids == {header}
        assert header.startswith("om1.") is run.launch.stateless


def test_each_sessionless_client_has_one_session_of_its_own(run: Run) -> None:
    modern = [caller for caller in run.callers if caller.mode == MODERN]

    assert [len(caller.wire.public_ids) for caller in modern] == [1, 1]
    assert len({caller.session_id for caller in run.callers}) == len(CLIENTS)
    for caller in modern:
        spans = run.tool_spans(caller)
        assert len(spans) == sum(caller.calls.values())
        assert {span.attributes.get("otel_mcp.session.source") for span in spans} == {"inferred_weak"}
        assert not any("mcp.session.id" in span.attributes for span in spans)
        assert caller.wire.transport_ids == set()


def test_a_tools_own_span_lies_beneath_its_call_in_its_session(run: Run) -> None:
    spans = run.telemetry.spans()
    calls = {span.span_id: span for span in run.tool_spans()}
    inner = [span for span in spans if span.name in {"adding", "looking"}]

    assert len(inner) == run.calls["add"] + run.calls["worker"]
    served: Counter[str] = Counter()
    for span in inner:
        above = [other for other in ancestors(span, spans) if other.span_id in calls]
        assert len(above) == 1
        assert span.attributes.get("session.id") == above[0].attributes["session.id"]
        served[above[0].span_id] += 1
    assert set(served.values()) == {1}


def test_the_duration_histogram_counts_each_request_in_seconds(run: Run) -> None:
    sent = sum((caller.wire.messages for caller in run.callers), Counter[str]())
    points = run.telemetry.points(OPERATION_DURATION)

    assert {point.unit for point in points} == {"s"}
    assert counted(run.telemetry, "gen_ai.tool.name") == run.calls
    assert counted(run.telemetry, "mcp.method.name") == sent
    assert counted(run.telemetry, "error.type") == {"tool_error": run.calls["fail"]}
    assert all(0 < point.sum < 10 * point.count for point in points)


def test_each_listing_is_measured_and_restarts_and_replicas_change_nothing(run: Run) -> None:
    listings = sum(caller.wire.requests["tools/list"] for caller in run.callers)
    definitions = run.telemetry.points("otel_mcp.tool.definition.size")
    found = run.telemetry.points("otel_mcp.catalogue.size")
    whole = sum({point.attributes["gen_ai.tool.name"]: point.value for point in definitions}.values())

    assert sum(point.count for point in found) == listings
    assert sum(point.sum for point in found) == listings * whole
    assert run.telemetry.events("catalogue.changed") == []


def test_no_metric_attribute_holds_an_id(run: Run) -> None:
    ids = {caller.session_id for caller in run.callers}
    ids |= {span.trace_id for span in run.telemetry.spans()} | {span.span_id for span in run.telemetry.spans()}
    points = run.telemetry.points()

    assert points
    assert not [point for point in points if ids & {str(value) for value in point.attributes.values()}]
    assert not [name for point in points for name in point.attributes if name.endswith(("session.id", "request.id"))]


def test_redis_holds_each_session_as_one_document(run: Run) -> None:
    for caller in run.callers:
        document = run.documents[caller.name]
        assert document is not None
        fields = document.fields
        assert fields["session_id"] == caller.session_id
        assert {"user_agent", "created_at", "last_activity"} <= fields.keys()
        assert Counter(document.tools) == caller.calls
        assert fields["tool_call_count"] == sum(caller.calls.values())
        assert fields["error_count"] == caller.failed
        assert fields["request_count"] == sum(caller.wire.requests.values())
        assert fields["client_name"] == caller.name
        assert ("ended" in fields) is (caller.name == "guest")
        assert document.expires_in <= 600 if "ended" in fields else 3500 < document.expires_in <= 3600


def test_calls_in_redis_name_the_spans_that_were_exported(run: Run) -> None:
    stored = {
        (call["trace_id"], call["span_id"])
        for document in run.documents.values()
        if document is not None
        for call in document.fields["tool_calls"]
    }

    assert stored == {(span.trace_id, span.span_id) for span in run.tool_spans()}


def test_sessions_begin_once_and_only_the_deleted_one_ends(run: Run) -> None:
    (guest,) = (caller for caller in run.callers if caller.name == "guest")
    begun = run.telemetry.events("session.start")
    (end,) = run.telemetry.events("session.end")

    assert sorted(str(event.attributes["session.id"]) for event in begun) == sorted(c.session_id for c in run.callers)
    assert run.telemetry.total("otel_mcp.session.started") == len(CLIENTS)
    assert end.attributes["session.id"] == guest.session_id
    assert end.attributes["otel_mcp.session.end.reason"] == "client_delete"
    assert run.telemetry.total("otel_mcp.session.ended", {"otel_mcp.session.end.reason": "client_delete"}) == 1
    assert run.telemetry.total("otel_mcp.session.ended") == 1
    assert run.telemetry.total("otel_mcp.session.resumed") == 0


def test_everything_has_arrived_soon_after_sigterm(run: Run) -> None:
    assert run.ended_after < FLUSHED_WITHIN + run.started_after
    assert "otel_mcp:" not in run.log
