"""The contract of every metric: name, unit, kind, attributes and their types; never an id, always bounded."""

from __future__ import annotations

from collections import Counter, deque
from itertools import product
from typing import Any, get_args

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from otel_mcp import MCPMiddleware, semconv
from otel_mcp.model.call import Call, Exchange
from otel_mcp.model.delta import EndedSession, SessionFacts
from otel_mcp.model.session import Interruption
from otel_mcp.model.task import TaskCensus, TaskEnd
from otel_mcp.model.verdict import SessionOutcome
from otel_mcp.runtime import Runtime
from otel_mcp.settings import load
from otel_mcp.telemetry.labels import MAX_CLIENTS, MAX_TENANTS
from otel_mcp.telemetry.series import Series
from otel_mcp.telemetry.session_metrics import MAX_SERIES, PROTOCOL_VERSIONS
from otel_mcp.types import Message, Receive, Send
from otel_mcp.wire.jsonrpc import FINE
from tests.support import registry
from tests.support.answers import FAILED, OK, Server, error, result
from tests.support.asgi import delete, get, post, read, respond, stream
from tests.support.messages import MODERN_HEADERS, ask, call, initialize, legacy_headers, modern, notify
from tests.support.providers import Clock, Telemetry, id_of, trace_of
from tests.unit.conftest import MakeRuntime
from tests.unit.identity.test_resolver import jwt

pytestmark = pytest.mark.anyio

DURATION = "mcp.server.operation.duration"
BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)
SESSION_BUCKETS = (*BUCKETS, 600, 1800, 3600, 7200, 14400, 43200, 86400)

SOURCE = "otel_mcp.session.source"
COMMON: Message = {"network.protocol.version": "1.1"}
TOOL: Message = {"mcp.method.name": "tools/call", "gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "add"}


def _counted(telemetry: Telemetry, name: str) -> list[tuple[Message, Any]]:
    """The points that are more than the zero which they begin with."""
    return [(attributes, value) for attributes, value in telemetry.points(name) if value]


async def use_everything(runtime: Runtime, telemetry: Telemetry, failures: Any) -> None:
    """Have every instrument record something."""
    server = Server(session_id="own")
    app = MCPMiddleware(server, runtime)
    await post(app, initialize(name="claude-code"))
    server.results["tools/call"] = {"result": FAILED}
    await post(app, call(), legacy_headers("own"))
    server.results.clear()
    await post(app, call(), legacy_headers("own"))
    await post(app, ask("tools/list"), legacy_headers("own"))
    await post(app, ask("prompts/get", name="greet"), legacy_headers("own"))
    server.results["tools/call"] = {"result": {"content": [{"type": "text", "text": "x" * 60_000}]}}
    await post(app, call(), legacy_headers("own"))
    server.results["tools/call"] = {"result": {"task": {"taskId": "t", "status": "working"}}}
    await post(app, call(), legacy_headers("own"))
    await delete(app, legacy_headers("own"))
    metrics = runtime.metrics
    ends = [TaskEnd("add", "failed", 3.0), TaskEnd("add", "completed", None)]
    metrics.tasks.counted(TaskCensus({("add", "working"): 1}, {"add": 1.0}, ends))
    facts = SessionFacts("s", 1.0, 60.0, source="header", protocol_version="2025-11-25")
    metrics.sessions.started(facts)
    metrics.sessions.resumed()
    metrics.sessions.ended(EndedSession(SessionFacts("s", 1.0, 60.0, source="header"), "expired", 3.0, 5, 1, 9, 700))
    metrics.sessions.interrupted(Interruption(SessionFacts("s", 1.0, 60.0, client_name="c"), 2.0, "restart", True))
    metrics.sessions.returned(facts, 5.0)
    metrics.sessions.rejected("limit")
    metrics.inputs.given("add", 2.0)
    metrics.inputs.asked(
        "roots/list", "2025-11-25", dict.fromkeys((semconv.ERROR_TYPE, semconv.RPC_RESPONSE_STATUS_CODE), "-1"), 0.1
    )
    metrics.inputs.abandoned("add")
    metrics.store_dropped(3, "full")
    metrics.store_operation("flush", "ok", 0.001)
    metrics.audit_dropped(1, "export")
    metrics.observer_dropped("log", 1)
    metrics.stream_ended("get", "unit-client", 60.0)
    metrics.census.watch(metrics.labels, "usual")
    failures["parts"] += 1
    await runtime.shut_down()


async def test_metrics_are_those_of_the_registry(runtime: Runtime, telemetry: Telemetry, failures: Any) -> None:
    await use_everything(runtime, telemetry, failures)

    emitted = registry.Emitted(telemetry.metrics())
    problems = list(registry.metrics_are_defined(registry.load(), emitted))
    assert [each for each in problems if not each.startswith("otel_mcp.session.active is None")] == []  # Needs Redis.


async def test_no_id_is_a_metric_attribute(runtime: Runtime, telemetry: Telemetry, failures: Any) -> None:
    session_id = "7f0c1a52d3b64e0f9d5a"
    app = MCPMiddleware(Server(session_id=session_id), runtime)
    await post(app, initialize(request_id="request-77"))
    meta = {"openai/session": "conversation-77", "traceparent": "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"}
    reply = await post(app, call(request_id="request-78", meta=meta), legacy_headers(session_id))
    await use_everything(runtime, telemetry, failures)

    values = [
        str(value) for metric in telemetry.metrics().values() for attributes in metric.points for _, value in attributes
    ]
    for secret in (session_id, reply.session_id, "conversation-77", "request-77", "request-78", "ab" * 16, "127.0.0.1"):
        assert secret not in values


async def test_boundaries_are_those_that_the_conventions_advise(
    runtime: Runtime, telemetry: Telemetry, failures: Any
) -> None:
    await use_everything(runtime, telemetry, failures)

    found = telemetry.metrics()

    assert found[DURATION].bounds == BUCKETS
    assert found["mcp.server.session.duration"].bounds == SESSION_BUCKETS
    assert found["otel_mcp.session.tool_calls"].bounds[0] == 0


async def test_nothing_is_recorded_before_the_first_request(make_runtime: MakeRuntime, telemetry: Telemetry) -> None:
    make_runtime()

    recorded = {name for name, metric in telemetry.metrics().items() if metric.kind in {"Counter", "Histogram"}}
    assert recorded - {"otel_mcp.errors", "otel_mcp.headers.contradicted", "otel_mcp.tool.calls"} == set()


async def test_the_first_request_registers_the_series_that_may_stay_zero(
    runtime: Runtime, telemetry: Telemetry
) -> None:
    await post(MCPMiddleware(Server(), runtime), modern(), MODERN_HEADERS)

    assert telemetry.points("otel_mcp.session.ended") == [
        ({"otel_mcp.session.end.reason": reason, "otel_mcp.session.outcome": outcome}, 0)
        for reason in ("client_delete", "expired", "server_closed", "replaced")
        for outcome in ("worked", "no_call")
    ]
    assert telemetry.points("otel_mcp.session.resumed") == [({}, 0)]
    assert telemetry.points("otel_mcp.session.rejected") == [
        ({"otel_mcp.reason": reason}, 0) for reason in ("limit", "principal")
    ]
    assert telemetry.points("otel_mcp.store.dropped") == [
        ({"otel_mcp.reason": reason}, 0)
        for reason in ("foreign", "full", "error", "ended", "principal", "shutdown", "interruptions", "rounds", "tasks")
    ]


async def test_a_server_that_has_started_counts_from_zero(runtime: Runtime, telemetry: Telemetry) -> None:
    """So that a reader sees the first session as an increase, and not as where counting began."""
    await runtime.warm_up()

    started = telemetry.points("otel_mcp.session.started")
    assert {attributes[SOURCE] for attributes, _ in started} == {"header", "conversation", "inferred", "inferred_weak"}
    assert {value for _, value in started} == {0}
    await runtime.shut_down()


@pytest.mark.parametrize(
    ("answer", "changes"),
    [
        ({"result": {}}, {}),
        ({"result": FAILED}, {"error.type": "tool_error"}),
        (
            {"error": {"code": -32602, "message": "secret"}},
            {"rpc.response.status_code": "-32602"},
        ),
        (
            {"error": {"code": -32603, "message": "secret"}},
            {"error.type": "-32603", "rpc.response.status_code": "-32603"},
        ),
    ],
)
@pytest.mark.parametrize("sse", [False, True])
async def test_a_call_is_measured_once_with_what_is_known_of_it(
    clock: Clock, runtime: Runtime, telemetry: Telemetry, answer: Message, changes: Message, sse: bool
) -> None:
    server = Server({"tools/call": answer}, sse=sse)

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        clock.now += 0.25
        await server(scope, receive, send)

    wrapped = MCPMiddleware(app, runtime)
    await post(wrapped, ask("tools/list"), legacy_headers("x"))
    for _ in range(3):
        await post(wrapped, call(), legacy_headers("x"))

    points = telemetry.points(DURATION)
    wanted = {**COMMON, **TOOL, "mcp.protocol.version": "2025-11-25", **changes}
    assert [value for attributes, value in points if attributes == wanted] == [(3, pytest.approx(0.75))]
    assert len(points) == 2


async def test_messages_are_measured_by_method(runtime: Runtime, telemetry: Telemetry) -> None:
    app = MCPMiddleware(Server(), runtime)
    messages = [
        initialize(),
        notify("notifications/initialized"),
        ask("tools/list"),
        ask("ping"),
        ask("ping"),
        ask("made/up"),
        ask("prompts/get", name="greet"),
        ask("resources/read", uri="res://x"),
    ]

    for message in messages:
        await post(app, message, [("mcp-protocol-version", "2025-06-18")])

    counts: dict[str, int] = {}
    for attributes, (count, _) in telemetry.points(DURATION):
        counts[attributes["mcp.method.name"]] = counts.get(attributes["mcp.method.name"], 0) + count
    assert counts == {
        "initialize": 1,
        "notifications/initialized": 1,
        "tools/list": 1,
        "ping": 2,
        "_OTHER": 1,
        "prompts/get": 1,
        "resources/read": 1,
    }


async def test_subscriptions_and_streams_stay_out_of_the_durations(runtime: Runtime, telemetry: Telemetry) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await read(receive)
        await stream(send, [b": ping\r\n\r\n"])

    wrapped = MCPMiddleware(app, runtime)
    await post(wrapped, ask("subscriptions/listen", "listen:0"), MODERN_HEADERS)
    await get(wrapped, legacy_headers("own"))

    assert telemetry.points(DURATION) == []
    assert [span.name for span in telemetry.spans()] == ["subscriptions/listen"]


async def test_the_size_of_a_result_is_that_of_its_answer(runtime: Runtime, telemetry: Telemetry) -> None:
    for sse in (False, True):
        app = MCPMiddleware(Server({"tools/call": {"result": {"text": "x" * 1000}}}, sse=sse), runtime)
        reply = await post(app, call(), legacy_headers("x"))
        size = len(reply.body) - (len(b"event: message\r\ndata: \r\n\r\n") if sse else 0)
        assert 1000 < size < 1100

    assert telemetry.points("otel_mcp.tool.result.size") == [({"gen_ai.tool.name": "add"}, (2, 2 * size))]


async def test_a_name_becomes_an_attribute_once_it_worked(runtime: Runtime, telemetry: Telemetry) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        body = await read(receive)
        await respond(send, result() if b"real" in body else error(-32602))

    wrapped = MCPMiddleware(app, runtime)
    await post(wrapped, call("made-up"), legacy_headers("x"))
    await post(wrapped, call("real"), legacy_headers("x"))
    await post(wrapped, ask("prompts/get", name="made-up"), legacy_headers("x"))
    await post(wrapped, ask("prompts/get", name="real"), legacy_headers("x"))

    tools = [attributes.get("gen_ai.tool.name") for attributes, _ in telemetry.points(DURATION)]
    prompts = [attributes.get("gen_ai.prompt.name") for attributes, _ in telemetry.points(DURATION)]
    assert tools == ["_OTHER", "real", None, None]
    assert prompts == [None, None, "_OTHER", "real"]


async def test_a_listed_name_is_an_attribute_also_where_it_fails(runtime: Runtime, telemetry: Telemetry) -> None:
    app = MCPMiddleware(Server({"tools/call": {"result": FAILED}}), runtime)

    await post(app, call(), legacy_headers("x"))
    telemetry.metrics()
    await post(app, ask("tools/list"), legacy_headers("x"))
    await post(app, call(), legacy_headers("x"))

    found = [attributes.get("gen_ai.tool.name") for attributes, _ in telemetry.points(DURATION)]
    assert sorted(str(name) for name in found) == ["None", "_OTHER", "add"]


async def test_a_call_without_a_name_is_other(runtime: Runtime, telemetry: Telemetry) -> None:
    app = MCPMiddleware(Server(), runtime)

    await post(app, ask("tools/call"), legacy_headers("x"))
    await post(app, ask("prompts/get"), legacy_headers("x"))

    found = [attributes for attributes, _ in telemetry.points(DURATION)]
    assert found[0]["gen_ai.tool.name"] == "_OTHER"
    assert found[1].get("gen_ai.prompt.name") in (None, "_OTHER")


async def test_made_up_names_leave_a_bounded_number_of_series(make_runtime: MakeRuntime, telemetry: Telemetry) -> None:
    app = MCPMiddleware(Server(), make_runtime(max_new_sessions=1_000_000))

    for number in range(260):
        name = f"made-up-{number}"
        await post(app, modern(name, client=name), [("mcp-protocol-version", name), ("user-agent", name)])
        await post(app, ask("prompts/get", name=name), [("mcp-protocol-version", "2025-11-25")])
        await post(app, ask(name), [("mcp-protocol-version", "2025-11-25")])

    found = telemetry.metrics()
    values = {
        key: {value for attributes in found[name].points for attribute, value in attributes if attribute == key}
        for name, key in (
            (DURATION, "gen_ai.tool.name"),
            (DURATION, "gen_ai.prompt.name"),
            (DURATION, "mcp.method.name"),
            (DURATION, "mcp.protocol.version"),
            ("otel_mcp.client.requests", "otel_mcp.client.name"),
        )
    }
    assert {key: len(names) for key, names in values.items()} == {
        "gen_ai.tool.name": 101,
        "gen_ai.prompt.name": 101,
        "mcp.method.name": 3,
        "mcp.protocol.version": 2,
        "otel_mcp.client.name": 21,
    }
    assert all(len(metric.points) < 1000 for metric in found.values())


async def test_made_up_errors_leave_a_bounded_number_of_series(runtime: Runtime, telemetry: Telemetry) -> None:
    for number in (*range(200), -32602, -32603):
        server = Server({"tools/call": {"error": error(number)["error"]}})
        await post(MCPMiddleware(server, runtime), modern("add"), MODERN_HEADERS)

    points = [dict(attributes) for attributes in telemetry.metrics()[DURATION].points]
    types = {found.get("error.type") for found in points}
    codes = {found.get("rpc.response.status_code") for found in points}
    assert max(len(types), len(codes)) < 60
    assert {"_OTHER", "-32603"} <= types & codes
    assert ("-32602" in types, "-32602" in codes) == (False, True)


FAILURES, CORRECTED = "otel_mcp.call.failures", "otel_mcp.call.corrected"


async def test_failed_calls_are_counted_by_tool_kind_and_client(runtime: Runtime, telemetry: Telemetry) -> None:
    server = Server({"tools/list": {"result": {"tools": [{"name": "add"}]}}})
    app = MCPMiddleware(server, runtime)
    await post(app, ask("tools/list"), legacy_headers("x"))
    for answer in ({"result": FAILED}, {"error": {"code": -32602}}, {"error": {"code": -32603}}, {"result": OK}):
        server.results["tools/call"] = answer
        await post(app, modern("add"), MODERN_HEADERS)
        await post(app, modern("made_up"), MODERN_HEADERS)

    client = {"otel_mcp.client.name": "unit-client"}
    assert {frozenset(attributes.items()): value for attributes, value in telemetry.points(FAILURES)} == {
        frozenset({"gen_ai.tool.name": "add", "otel_mcp.failure": "tool", **client}.items()): 1,
        frozenset({"gen_ai.tool.name": "add", "otel_mcp.failure": "invalid_arguments", **client}.items()): 1,
        frozenset({"gen_ai.tool.name": "add", "otel_mcp.failure": "exception", **client}.items()): 1,
        frozenset({"gen_ai.tool.name": "_OTHER", "otel_mcp.failure": "unknown_tool", **client}.items()): 2,
        frozenset({"gen_ai.tool.name": "_OTHER", "otel_mcp.failure": "exception", **client}.items()): 1,
    }


async def test_a_call_is_corrected_by_the_next_of_its_tool_that_works(runtime: Runtime, telemetry: Telemetry) -> None:
    server = Server()
    app = MCPMiddleware(server, runtime)
    wrong: Message = {"error": {"code": -32602}}
    for answer, session, tool in (
        (wrong, "one", "add"),
        ({"result": OK}, "two", "add"),  # Another session.
        ({"result": OK}, "one", "list"),  # Another tool.
        ({"result": FAILED}, "one", "add"),
        ({"result": OK}, "one", "add"),  # This one.
        ({"result": OK}, "one", "add"),  # No failure since.
    ):
        server.results["tools/call"] = answer
        await post(app, call(tool), legacy_headers(session))
        telemetry.metrics()

    assert telemetry.points(CORRECTED) == [({"gen_ai.tool.name": "add", "otel_mcp.failure": "tool"}, 1)]


async def test_what_a_session_has_failed_at_is_remembered_of_few_tools(runtime: Runtime, telemetry: Telemetry) -> None:
    server = Server({"tools/call": {"result": FAILED}})
    app = MCPMiddleware(server, runtime)
    for number in range(20):
        await post(app, call(f"tool-{number}"), legacy_headers("own"))
    server.results.clear()
    for number in range(20):
        await post(app, call(f"tool-{number}"), legacy_headers("own"))

    assert {attributes["gen_ai.tool.name"] for attributes, _ in telemetry.points(CORRECTED)} == {
        f"tool-{number}" for number in range(4, 20)
    }


REFUSED = "otel_mcp.requests.refused"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 406, 413, 415, 421, 429])
async def test_refused_requests_are_counted_by_status_and_client(
    runtime: Runtime, telemetry: Telemetry, status: int
) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        if scope["path"] == "/mcp":
            await read(receive)
        await respond(send, b"no", status, content_type="text/plain")

    watched = MCPMiddleware(app, runtime)
    await post(MCPMiddleware(Server(), runtime), modern(), MODERN_HEADERS)  # A client that works has a label.
    await post(watched, modern(), MODERN_HEADERS)
    await post(watched, modern(client="somebody else"), MODERN_HEADERS)
    await post(watched, call(), path="/before-it-is-read")

    assert {frozenset(attributes.items()): value for attributes, value in _counted(telemetry, REFUSED)} == {
        frozenset({"http.response.status_code": status, "otel_mcp.client.name": "unit-client"}.items()): 1,
        frozenset({"http.response.status_code": status, "otel_mcp.client.name": "_OTHER"}.items()): 1,
        frozenset({"http.response.status_code": status}.items()): 1,
    }


@pytest.mark.parametrize("status", [200, 202, 302, 418, 500, 503])
async def test_no_other_answer_is_a_refusal(runtime: Runtime, telemetry: Telemetry, status: int) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await read(receive)
        await respond(send, b"", status)

    await post(MCPMiddleware(app, runtime), modern(), MODERN_HEADERS)

    assert _counted(telemetry, REFUSED) == []


async def test_a_refused_request_has_the_client_of_its_own_session_only(runtime: Runtime, telemetry: Telemetry) -> None:
    refuses: list[bool] = []
    server = Server(session_id="own")

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        if not refuses:
            return await server(scope, receive, send)
        await read(receive)
        await respond(send, b"", 403)

    watched = MCPMiddleware(app, runtime)
    ann, bob = jwt("ann"), jwt("bob")
    await post(watched, initialize(), [ann])
    await post(watched, call(), [*legacy_headers("own"), ann])
    refuses.append(True)
    await post(watched, call(), [*legacy_headers("own"), bob])
    assert _counted(telemetry, REFUSED) == [({"http.response.status_code": 403}, 1)]

    await post(watched, call(), [*legacy_headers("own"), ann])
    ours = {"http.response.status_code": 403, "otel_mcp.client.name": "unit-client"}
    assert (ours, 1) in _counted(telemetry, REFUSED)


async def test_clients_are_counted_by_name_method_and_revision(runtime: Runtime, telemetry: Telemetry) -> None:
    app = MCPMiddleware(Server(session_id="own"), runtime)

    await post(app, initialize())
    await post(app, notify("notifications/initialized"), legacy_headers("own"))
    await post(app, call(), legacy_headers("own"))
    await post(app, call(), legacy_headers("own"))

    spoken = {"otel_mcp.client.name": "unit-client", "mcp.protocol.version": "2025-11-25"}
    assert telemetry.points("otel_mcp.client.requests") == [
        (spoken | {"mcp.method.name": "initialize"}, 1),
        (spoken | {"mcp.method.name": "tools/call"}, 2),
    ]


async def test_a_client_that_the_server_refused_leaves_no_name(runtime: Runtime, telemetry: Telemetry) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await read(receive)
        await respond(send, b"", 401)

    wrapped = MCPMiddleware(app, runtime)
    for number in range(3):
        await post(wrapped, initialize(name=f"stranger-{number}"))
        await post(wrapped, modern(client=f"stranger-{number}"), MODERN_HEADERS)

    names = {attributes["otel_mcp.client.name"] for attributes, _ in telemetry.points("otel_mcp.client.requests")}
    assert names <= {"_OTHER"}


REQUESTS, SIZE = "otel_mcp.client.requests", "otel_mcp.tool.result.size"


def of_tenant(name: str) -> list[tuple[str, str]]:
    return [*MODERN_HEADERS, ("x-org", name)]


def by_tenant(telemetry: Telemetry, name: str) -> dict[str | None, int]:
    """How much there is of a counter, or how many values of a histogram, by tenant."""
    counts: dict[str | None, int] = {}
    for attributes, value in telemetry.points(name):
        tenant = attributes.get("otel_mcp.tenant")
        counts[tenant] = counts.get(tenant, 0) + (value[0] if isinstance(value, tuple) else value)
    return counts


async def test_requests_and_sizes_are_told_apart_by_tenant(make_runtime: MakeRuntime, telemetry: Telemetry) -> None:
    app = MCPMiddleware(Server(), make_runtime(tenant="header:X-Org"))

    await post(app, modern(), MODERN_HEADERS)
    for tenant in ("acme", "umbrella", "acme"):
        await post(app, modern(), of_tenant(tenant))

    counted = {None: 1, "acme": 2, "umbrella": 1}
    assert (by_tenant(telemetry, REQUESTS), by_tenant(telemetry, SIZE)) == (counted, counted)
    assert by_tenant(telemetry, DURATION) == {None: 4}


async def test_sessions_are_told_apart_by_tenant(make_runtime: MakeRuntime, telemetry: Telemetry) -> None:
    server, runtime = Server(session_id="own"), make_runtime(tenant="header:x-org")
    app = MCPMiddleware(server, runtime)

    for session_id, tenant in (("one", "acme"), ("two", "acme"), ("three", "umbrella"), ("four", None)):
        server.session_id = session_id
        org = [("x-org", tenant)] if tenant is not None else []
        await post(app, initialize(), org)
        await post(app, call(), [*legacy_headers(session_id), *org])
        await post(app, call(), [*legacy_headers(session_id), ("x-org", "another")])
        if session_id != "two":
            await delete(app, [*legacy_headers(session_id), *org])
    await runtime.shut_down()

    # A session is that of its first tenant; one that begins without any takes the first that is named.
    assert by_tenant(telemetry, "otel_mcp.session.started") == {None: 0, "acme": 2, "umbrella": 1, "another": 1}
    assert by_tenant(telemetry, "otel_mcp.session.ended") == {None: 0, "acme": 1, "umbrella": 1, "another": 1}
    assert by_tenant(telemetry, REQUESTS) == {None: 2, "acme": 4, "umbrella": 2, "another": 4}


async def test_sessions_beyond_what_the_sdk_keeps_keep_their_tenants(runtime: Runtime, telemetry: Telemetry) -> None:
    metrics = runtime.metrics
    metrics.register()
    metrics.tenants.learn(f"tenant-{number}" for number in range(MAX_TENANTS))
    metrics.clients.learn(f"client-{number}" for number in range(MAX_CLIENTS))
    sources = ("header", "cookie", "conversation", "inferred", "inferred_weak", None)
    versions, outcomes = (*sorted(PROTOCOL_VERSIONS), "2099-01-01", None), get_args(SessionOutcome)
    made = Counter[str]()

    for number, source, version in product(range(MAX_TENANTS), sources, versions):
        tenant = f"tenant-{number}"
        client = f"client-{made.total() % 25}"
        facts = SessionFacts("s", 1.0, 60.0, client_name=client, tenant=tenant, source=source, protocol_version=version)
        metrics.sessions.started(facts)
        for reason, outcome in product(("expired", "client_delete", "replaced"), outcomes[:2]):
            metrics.sessions.ended(EndedSession(facts, reason, 3.0, 5, 1, 9, 700, outcome=outcome))
        made[tenant] += 1

    for name, each in (("otel_mcp.session.started", 1), ("otel_mcp.session.ended", 6)):
        counted = by_tenant(telemetry, name)
        assert counted == {None: 0, **{tenant: count * each for tenant, count in made.items()}}
        assert MAX_SERIES <= len(telemetry.points(name)) < 2000


async def test_requests_of_clients_without_a_name_count_for_their_tenant(
    make_runtime: MakeRuntime, telemetry: Telemetry
) -> None:
    app = MCPMiddleware(Server(), make_runtime(tenant="header:x-org"))

    await post(app, call(), [("mcp-protocol-version", "2025-11-25"), ("x-org", "acme")])
    await post(app, call(), [("mcp-protocol-version", "2025-11-25")])

    assert by_tenant(telemetry, REQUESTS) == {"acme": 1}


async def test_without_the_setting_there_is_no_tenant(runtime: Runtime, telemetry: Telemetry) -> None:
    await post(MCPMiddleware(Server(), runtime), modern(), of_tenant("acme"))

    assert by_tenant(telemetry, REQUESTS) == {None: 1}


async def test_made_up_tenants_are_bounded_and_add_up(make_runtime: MakeRuntime, telemetry: Telemetry) -> None:
    runtime = make_runtime(tenant="header:x-org", tenant_names="acme,umbrella", max_new_sessions=1_000_000)
    app = MCPMiddleware(Server(), runtime)

    for number in range(400):
        await post(app, modern(), of_tenant(f"tenant-{number}"))
    await post(app, modern(), of_tenant("umbrella"))

    for name in (REQUESTS, SIZE):
        counted = by_tenant(telemetry, name)
        assert (len(counted), sum(counted.values()), counted["umbrella"]) == (50, 401, 1)  # Nobody was `acme`.
        assert counted["_OTHER"] == 401 - 49


async def test_beyond_what_the_sdk_keeps_the_tenants_stay_exact(
    make_runtime: MakeRuntime, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("otel_mcp.telemetry.labels.MAX_SERIES", 20)
    app = MCPMiddleware(Server(), make_runtime(tenant="header:x-org", max_new_sessions=1_000_000))

    for number in range(300):
        named = f"tool-{number % 60}"
        headers = [*MODERN_HEADERS[:2], ("mcp-name", named), ("x-org", f"tenant-{number % 3}")]
        await post(app, modern(named, client=f"client-{number % 15}"), headers)

    for name in (REQUESTS, SIZE):
        assert by_tenant(telemetry, name) == dict.fromkeys(("tenant-0", "tenant-1", "tenant-2"), 100)
        assert len(telemetry.points(name)) <= 24


async def test_a_tenant_that_the_server_refuses_leaves_no_name(make_runtime: MakeRuntime, telemetry: Telemetry) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await read(receive)
        await respond(send, b"", 401)

    wrapped = MCPMiddleware(app, make_runtime(tenant="header:x-org"))
    for number in range(3):
        await post(wrapped, modern(), of_tenant(f"stranger-{number}"))

    assert by_tenant(telemetry, REQUESTS) == {"_OTHER": 3}


def _exemplars(reader: InMemoryMetricReader, name: str) -> list[tuple[str, str]]:
    """Trace and span of the exemplars of a metric."""
    data = reader.get_metrics_data()
    assert data is not None
    return [
        (f"{exemplar.trace_id:032x}", f"{exemplar.span_id:016x}")
        for scope in data.resource_metrics[0].scope_metrics
        for metric in scope.metrics
        if metric.name == name
        for point in metric.data.data_points
        for exemplar in point.exemplars  # type: ignore[union-attr]
    ]


@pytest.mark.parametrize(
    ("name", "led_to"),
    [
        (DURATION, ["tools/call add"]),
        (FAILURES, ["tools/call add"]),
        ("otel_mcp.tool.result.size", []),
        ("otel_mcp.client.requests", []),
        ("otel_mcp.session.started", []),
    ],
    ids=["duration", "failures", "size", "requests", "started"],
)
@pytest.mark.usefixtures("clock")
async def test_exemplars_lead_to_the_spans_of_their_calls_wherever_they_are_drained(
    name: str, led_to: list[str]
) -> None:
    telemetry = Telemetry()
    reader = InMemoryMetricReader()
    runtime = Runtime(load(service_name="unit"), telemetry.tracer_provider, MeterProvider([reader]))
    app = MCPMiddleware(Server({"tools/call": {"result": FAILED}}), runtime)
    tracer = telemetry.tracer_provider.get_tracer("http instrumentation")

    with tracer.start_as_current_span("POST /mcp", kind=trace.SpanKind.SERVER):
        for _ in range(3):
            await post(app, modern(), MODERN_HEADERS)
    with tracer.start_as_current_span("POST /another", kind=trace.SpanKind.SERVER):
        runtime.recorder.drain()  # As in the request that fills a batch.
        await runtime.sessions.flush()  # As in a tool that saves its session.

    names = {(trace_of(span), id_of(span)): span.name for span in telemetry.spans()}
    assert [names[exemplar] for exemplar in _exemplars(reader, name)] == led_to
    runtime.disable()
    telemetry.shut_down()


async def test_the_gauge_of_all_sessions_is_absent_while_nobody_knows(
    make_runtime: MakeRuntime, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = make_runtime()
    monkeypatch.setattr(type(runtime.sessions), "active", property(lambda _: None))
    await post(MCPMiddleware(Server(), runtime), modern(), MODERN_HEADERS)

    assert telemetry.points("otel_mcp.session.active") == []
    monkeypatch.setattr(type(runtime.sessions), "active", property(lambda _: 7))
    assert telemetry.points("otel_mcp.session.active") == [({}, 7)]


async def test_a_session_whose_borders_are_guessed_stays_out_of_the_session_duration(
    runtime: Runtime, telemetry: Telemetry
) -> None:
    for source in ("header", "inferred", "inferred_weak", None):
        runtime.metrics.sessions.ended(
            EndedSession(SessionFacts("s", 100.0, 60.0, source=source), "expired", 130.0, 4, 0, 9, outcome="worked")
        )
    ended = {"otel_mcp.session.end.reason": "expired"}

    assert telemetry.points("mcp.server.session.duration") == [
        ({SOURCE: "header", **ended}, (1, 30.0)),
        ({SOURCE: "inferred", **ended}, (1, 30.0)),
        ({SOURCE: "none", **ended}, (1, 30.0)),
    ]
    assert telemetry.points("otel_mcp.session.ended") == [({**ended, "otel_mcp.session.outcome": "worked"}, 4)]
    assert len(telemetry.points("otel_mcp.session.tool_calls")) == 4


async def test_the_life_of_a_session_is_measured(runtime: Runtime, telemetry: Telemetry) -> None:
    app = MCPMiddleware(Server(session_id="own"), runtime)
    await post(app, initialize())
    for _ in range(3):
        await post(app, call(), legacy_headers("own"))
    await delete(app, legacy_headers("own"))
    await runtime.shut_down()

    version = {"mcp.protocol.version": "2025-11-25"}
    assert _counted(telemetry, "otel_mcp.session.started") == [({SOURCE: "header", **version}, 1)]
    how = {"otel_mcp.session.outcome": "worked", "otel_mcp.client.name": "unit-client"}
    assert _counted(telemetry, "otel_mcp.session.ended") == [
        ({"otel_mcp.session.end.reason": "client_delete", **how}, 1)
    ]
    assert telemetry.points("otel_mcp.session.tool_calls") == [({SOURCE: "header"}, (1, 3))]
    (((attributes, (count, _))),) = telemetry.points("mcp.server.session.duration")
    ended = {"otel_mcp.session.end.reason": "client_delete"}
    assert (attributes, count) == ({SOURCE: "header", **version, **ended}, 1)


async def test_our_own_failures_are_counted_by_component(runtime: Runtime, telemetry: Telemetry, failures: Any) -> None:
    failures["send"] += 2
    failures["record"] += 1

    assert telemetry.points("otel_mcp.errors") == [
        ({"otel_mcp.component": "send"}, 2),
        ({"otel_mcp.component": "record"}, 1),
    ]


STORE = "otel_mcp.store.operation.duration"


async def test_each_use_of_the_store_is_measured(runtime: Runtime, telemetry: Telemetry) -> None:
    for number in range(2500):
        runtime.metrics.store_operation("flush", "error" if number % 5 else "ok", number / 1e6)

    operation = {"otel_mcp.store.operation": "flush"}
    assert telemetry.points(STORE) == [
        ({**operation, "otel_mcp.store.outcome": "ok"}, (500, pytest.approx(0.62375))),
        ({**operation, "otel_mcp.store.outcome": "error"}, (2000, pytest.approx(2.5))),
    ]


def test_a_child_counts_no_refusal_of_its_parent(runtime: Runtime, telemetry: Telemetry) -> None:
    runtime.metrics.request_refused(403, None)

    runtime.recorder.clear()

    assert telemetry.points(REFUSED) == []


def test_refusals_that_wait_are_bounded(runtime: Runtime, telemetry: Telemetry) -> None:
    for _ in range(1500):
        runtime.metrics.request_refused(403, None)
    assert len(runtime.metrics._waiting) < 1000  # pyright: ignore[reportPrivateUsage]

    assert telemetry.points(REFUSED) == [({"http.response.status_code": 403}, 1500)]


def test_a_series_that_fails_costs_no_other_of_its_batch(
    runtime: Runtime, telemetry: Telemetry, failures: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, failed = Series.record, list[Series]()

    def broken(self: Series, *values: float, **options: Any) -> None:
        if not failed or self in failed:
            failed.append(self)
            raise RuntimeError("secret")
        record(self, *values, **options)

    for number in range(20):
        measured = Call(Exchange("POST", "/mcp", {}), "tools/call", number, f"tool{number % 4}", {}, {})
        measured.outcome, measured.finished, measured.trusted_name, measured.result_bytes = FINE, True, True, 10
        runtime.metrics.record(measured)
    monkeypatch.setattr(Series, "record", broken)

    runtime.metrics.close()

    recorded = sum(telemetry.counts(DURATION).values()) + sum(
        telemetry.counts(semconv.METRIC_TOOL_RESULT_SIZE).values()
    )
    assert recorded == 35
    assert failures["record"] == 1


def test_a_refusal_that_fails_costs_no_other(runtime: Runtime, telemetry: Telemetry, failures: Any) -> None:
    def broken(*_: Any) -> None:
        raise IndexError

    runtime.metrics._record_later(broken, 1, None, {})  # pyright: ignore[reportPrivateUsage]
    runtime.metrics.request_refused(403, None)

    runtime.metrics.settle()

    assert _counted(telemetry, REFUSED) == [({"http.response.status_code": 403}, 1)]
    assert failures["record"] == 1


def test_two_threads_may_record_what_waits(runtime: Runtime) -> None:
    class Faster(deque[tuple[Any, ...]]):
        """Another thread takes the last one first."""

        def popleft(self) -> tuple[Any, ...]:
            self.clear()
            return super().popleft()

    runtime.metrics._waiting = Faster([(print, 1.0, None, {})])  # pyright: ignore[reportPrivateUsage]

    runtime.metrics.settle()

    assert not runtime.metrics._waiting  # pyright: ignore[reportPrivateUsage]
