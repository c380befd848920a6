"""The life of a session in events, metrics, and the span of a whole session."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

import pytest

from otel_mcp import MCPMiddleware
from otel_mcp.model.delta import EndedSession, SessionDelta, SessionFacts
from otel_mcp.runtime import Runtime
from otel_mcp.telemetry.events import SessionReporter
from otel_mcp.telemetry.metrics import Metrics
from tests.support.answers import FAILED, Server, error
from tests.support.asgi import delete, post, respond
from tests.support.messages import call, initialize, legacy_headers
from tests.support.providers import Telemetry, described, id_of
from tests.unit.conftest import MakeRuntime

pytestmark = pytest.mark.anyio

FACTS = SessionFacts(
    "own",
    100.0,
    60.0,
    client_name="client",
    client_version="9",
    protocol_version="2025-11-25",
    source="header",
    previous_id="before",
)
ENDED = EndedSession(FACTS, "expired", 130.5, 7, 2, 9, 4096, outcome="corrected")


@pytest.fixture
def reporter(runtime: Runtime, telemetry: Telemetry) -> SessionReporter:
    """A reporter with the session span switched on."""
    metrics: Metrics = runtime.metrics
    return SessionReporter(metrics, telemetry.tracer_provider, telemetry.logger_provider, session_span=True)


def test_the_start_of_a_session_is_an_event(reporter: SessionReporter, telemetry: Telemetry) -> None:
    reporter.started(
        SessionFacts("own", 100.25, 3600.0, "agent", "client", "9", "2025-11-25", "header", "talk", "before")
    )

    (record,) = telemetry.log_exporter.get_finished_logs()
    assert record.log_record.timestamp == 100_250_000_000
    assert record.log_record.severity_number is not None
    assert record.log_record.severity_number.name == "INFO"
    assert record.log_record.body is None
    assert record.log_record.trace_id in (None, 0)
    assert telemetry.events() == [
        {
            "name": "session.start",
            "attributes": {
                "session.id": "own",
                "otel_mcp.session.source": "header",
                "session.previous_id": "before",
                "otel_mcp.client.name": "client",
                "user_agent.name": "client",
                "otel_mcp.client.version": "9",
                "user_agent.version": "9",
                "user_agent.original": "agent",
                "mcp.protocol.version": "2025-11-25",
            },
        }
    ]


def test_an_event_belongs_to_no_span(reporter: SessionReporter, telemetry: Telemetry) -> None:
    tracer = telemetry.tracer_provider.get_tracer("another request")

    with tracer.start_as_current_span("POST /mcp"):
        reporter.started(SessionFacts("own", 100.0, 3600.0))
        reporter.ended(ENDED)

    assert {record.log_record.trace_id for record in telemetry.log_exporter.get_finished_logs()} <= {None, 0}
    assert next(span for span in telemetry.spans() if span.name == "mcp.session").parent is None


def test_what_is_not_known_of_a_session_is_left_out(reporter: SessionReporter, telemetry: Telemetry) -> None:
    reporter.started(SessionFacts("own", 100.0, 3600.0))

    assert telemetry.events() == [{"name": "session.start", "attributes": {"session.id": "own"}}]


def test_the_end_of_a_session_is_an_event_with_its_sums(reporter: SessionReporter, telemetry: Telemetry) -> None:
    reporter.ended(ENDED)

    (record,) = telemetry.log_exporter.get_finished_logs()
    assert record.log_record.timestamp == 130_500_000_000
    assert telemetry.events() == [
        {
            "name": "session.end",
            "attributes": {
                "session.id": "own",
                "otel_mcp.session.source": "header",
                "session.previous_id": "before",
                "otel_mcp.client.name": "client",
                "user_agent.name": "client",
                "otel_mcp.client.version": "9",
                "user_agent.version": "9",
                "mcp.protocol.version": "2025-11-25",
                "otel_mcp.session.end.reason": "expired",
                "otel_mcp.session.outcome": "corrected",
                "otel_mcp.session.tool_calls": 7,
                "otel_mcp.session.requests": 9,
                "otel_mcp.session.errors": 2,
                "otel_mcp.session.context.size": 4096,
            },
        }
    ]


def test_the_span_of_a_session_lasts_from_first_to_last_activity(
    reporter: SessionReporter, telemetry: Telemetry
) -> None:
    reporter.ended(ENDED)

    span = telemetry.span()
    found = described(span)
    assert {key: found[key] for key in ("name", "kind", "scope", "parent", "status")} == {
        "name": "mcp.session",
        "kind": "INTERNAL",
        "scope": "otel_mcp",
        "parent": None,
        "status": ("UNSET", None),
    }
    assert found["attributes"] == telemetry.events()[0]["attributes"]
    assert (span.start_time, span.end_time) == (100_000_000_000, 130_500_000_000)


def test_a_session_whose_clock_went_back_has_no_negative_length(
    reporter: SessionReporter, telemetry: Telemetry
) -> None:
    reporter.ended(EndedSession(SessionFacts("own", 100.0, 60.0, source="header"), "expired", 90.0, 0, 0, 1))

    span = telemetry.span()
    assert span.start_time == span.end_time == 100_000_000_000
    assert [value for _, value in telemetry.points("mcp.server.session.duration")] == [(1, 0.0)]


async def test_without_being_asked_for_there_is_no_span_of_a_session(runtime: Runtime, telemetry: Telemetry) -> None:
    app = MCPMiddleware(Server(session_id="own"), runtime)
    await post(app, initialize())
    await delete(app, legacy_headers("own"))
    await runtime.shut_down()

    assert [span.name for span in telemetry.spans()] == ["initialize"]


async def test_a_session_is_reported_from_its_start_to_its_end(runtime: Runtime, telemetry: Telemetry) -> None:
    server = Server(session_id="own")
    app = MCPMiddleware(server, runtime)
    await post(app, initialize())
    await post(app, call(), legacy_headers("own"))
    server.results["tools/call"] = {"result": FAILED}
    await post(app, call(), legacy_headers("own"))
    await delete(app, legacy_headers("own"))
    await runtime.shut_down()

    facts = {
        "session.id": "own",
        "otel_mcp.session.source": "header",
        "otel_mcp.client.name": "unit-client",
        "user_agent.name": "unit-client",
        "otel_mcp.client.version": "9",
        "user_agent.version": "9",
        "mcp.protocol.version": "2025-11-25",
    }
    assert telemetry.events() == [
        {"name": "session.start", "attributes": {**facts, "user_agent.original": "unit/1"}},
        {
            "name": "session.end",
            "attributes": {
                **facts,
                "otel_mcp.session.end.reason": "client_delete",
                "otel_mcp.session.outcome": "gave_up",
                "otel_mcp.session.tool_calls": 2,
                "otel_mcp.session.requests": 3,
                "otel_mcp.session.errors": 1,
                "otel_mcp.session.context.size": 213,
            },
        },
    ]
    state = await runtime.sessions.load("own")
    assert state is not None
    assert state.ended is not None
    assert (state.ended.reason, state.outcome) == ("client_delete", "gave_up")
    assert isinstance(state.ended.at, datetime)


async def test_a_repeated_end_is_reported_once(runtime: Runtime, telemetry: Telemetry) -> None:
    app = MCPMiddleware(Server(session_id="own"), runtime)
    await post(app, initialize())
    for _ in range(5):
        await delete(app, legacy_headers("own"))
    await runtime.shut_down()

    assert [event["name"] for event in telemetry.events()] == ["session.start", "session.end"]


async def test_a_delete_that_the_server_refuses_ends_nothing(runtime: Runtime, telemetry: Telemetry) -> None:
    server = Server(session_id="own")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["method"] == "DELETE":
            await respond(send, b"", 405)
        else:
            await server(scope, receive, send)

    wrapped = MCPMiddleware(app, runtime)
    await post(wrapped, initialize())
    await delete(wrapped, legacy_headers("own"))
    await runtime.shut_down()

    assert [event["name"] for event in telemetry.events()] == ["session.start"]


@pytest.mark.parametrize(
    ("status", "ends"),
    [(200, True), (204, True), (404, True), (405, True), (400, False), (401, False), (429, False), (500, False)],
)
async def test_a_delete_that_a_server_without_sessions_refuses_as_such_ends_ours(
    runtime: Runtime, telemetry: Telemetry, status: int, ends: bool
) -> None:
    server = Server()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["method"] == "DELETE":
            await respond(send, b"", status)
        else:
            await server(scope, receive, send)

    wrapped = MCPMiddleware(app, runtime)
    session_id = (await post(wrapped, initialize())).headers["mcp-session-id"]
    await delete(wrapped, legacy_headers(session_id))
    await runtime.shut_down()

    assert [event["name"] for event in telemetry.events()] == ["session.start", *(["session.end"] if ends else [])]
    assert telemetry.events()[-1]["attributes"]["session.id"] == session_id


async def test_a_delete_of_a_session_that_nobody_knows_begins_none(runtime: Runtime, telemetry: Telemetry) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, b"", 200)

    for session_id in ("unknown", "a{b}", "x" * 500):
        await delete(MCPMiddleware(app, runtime), legacy_headers(session_id))
    await runtime.shut_down()

    assert telemetry.events() == []
    assert runtime.sessions.local == 0


@pytest.mark.parametrize("ids", ["raw", "hashed"])
async def test_a_delete_at_another_replica_ends_the_session(make_runtime: MakeRuntime, ids: str) -> None:
    opened = make_runtime(hash_key="shared", session_id=ids)
    session_id = (await post(MCPMiddleware(Server(), opened), initialize())).headers["mcp-session-id"]
    replica = make_runtime(hash_key="shared", session_id=ids)
    ended: list[tuple[str, Any]] = []

    def submit(delta: SessionDelta) -> None:
        ended.append((delta.facts.session_id, delta.ended))

    replica.sessions.submit = submit
    await delete(MCPMiddleware(Server(), replica), legacy_headers(session_id))
    await replica.shut_down()

    ((stored, end),) = ended
    assert end[1] == "client_delete"
    assert stored == session_id if ids == "raw" else re.fullmatch(r"h_[0-9a-f]{32}", stored)


async def test_a_storm_of_404_for_a_lost_session_is_one_end(runtime: Runtime, telemetry: Telemetry) -> None:
    server = Server(session_id="own")
    app = MCPMiddleware(server, runtime)
    await post(app, initialize())
    await post(app, call(), legacy_headers("own"))
    server.session_id = "another"

    for number in range(200):
        await post(app, call(request_id=number), legacy_headers("own"))
    await delete(app, legacy_headers("own"))
    await runtime.shut_down()

    ends = [event["attributes"] for event in telemetry.events() if event["name"] == "session.end"]
    assert [(end["session.id"], end["otel_mcp.session.end.reason"]) for end in ends] == [("own", "server_closed")]
    assert [event["name"] for event in telemetry.events()].count("session.start") == 1


async def test_a_404_for_another_reason_ends_no_session(runtime: Runtime, telemetry: Telemetry) -> None:
    """A 2026-07-28 server answers unknown methods so; a wrong path does as well."""
    server = Server(session_id="own")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/mcp":
            await server(scope, receive, send)
        else:
            await respond(send, error(-32601), 404)

    wrapped = MCPMiddleware(app, runtime)
    await post(wrapped, initialize())
    await post(wrapped, call(), legacy_headers("own"))
    await post(wrapped, call(), legacy_headers("own"), path="/wrong")
    reply = await post(wrapped, call(), legacy_headers("own"))
    await runtime.shut_down()

    assert reply.session_id == "own"
    assert [event["name"] for event in telemetry.events()] == ["session.start"]


async def test_the_span_of_a_session_leads_to_its_sampled_calls(
    make_runtime: MakeRuntime, telemetry: Telemetry
) -> None:
    runtime = make_runtime(session_span=True)
    app = MCPMiddleware(Server(session_id="own"), runtime)
    await post(app, initialize())
    for number in range(3):
        await post(app, call(request_id=number), legacy_headers("own"))
    await delete(app, legacy_headers("own"))
    await runtime.shut_down()

    session = next(span for span in telemetry.spans() if span.name == "mcp.session")
    calls = [id_of(span) for span in telemetry.spans() if span.name == "tools/call add"]
    assert described(session)["links"] == calls
