"""Exactly one server span for a message, complete, with its true times and the right parent."""

from __future__ import annotations

import os
from socket import gethostname
from typing import Any

import anyio
import pytest
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, TraceIdRatioBased

from otel_mcp import MCPMiddleware
from otel_mcp.model.call import Call, Exchange
from otel_mcp.runtime import Runtime
from otel_mcp.settings import load
from otel_mcp.telemetry import spans
from otel_mcp.telemetry.spans import Spans
from otel_mcp.types import Message, Receive, Send
from tests.support.answers import FAILED, Server, error, result
from tests.support.asgi import Reply, event, post, read, respond, stream
from tests.support.messages import MODERN, MODERN_HEADERS, ask, call, initialize, legacy_headers, modern, notify
from tests.support.providers import Clock, Telemetry, described, id_of, trace_of
from tests.unit.conftest import MakeRuntime

pytestmark = pytest.mark.anyio

TRACE = "0af7651916cd43dd8448eb211c80319c"
META_PARENT, HTTP_PARENT = "b7ad6b7169203331", "00f067aa0ba902b7"


def traceparent(span_id: str, *, sampled: bool = True, trace_id: str = TRACE) -> str:
    return f"00-{trace_id}-{span_id}-{'01' if sampled else '00'}"


def expected(reply: Reply, **changes: Any) -> Message:
    """The span of a successful modern tool call."""
    attributes: Message = {
        "mcp.method.name": "tools/call",
        "mcp.protocol.version": "2026-07-28",
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "add",
        "jsonrpc.request.id": "1",
        "network.transport": "tcp",
        "network.protocol.name": "http",
        "network.protocol.version": "1.1",
        "client.address": "127.0.0.1",
        "client.port": 50_000,
        "otel_mcp.client.name": "unit-client",
        "user_agent.name": "unit-client",
        "user_agent.version": "9",
        "otel_mcp.session.source": "inferred_weak",
        "session.id": reply.session_id,
    }
    return {
        "name": "tools/call add",
        "kind": "SERVER",
        "scope": "otel_mcp",
        "parent": None,
        "attributes": {**attributes, **changes.pop("attributes", {})},
        "status": ("UNSET", None),
        "events": [],
        "links": [],
        **changes,
    }


async def test_a_call_that_no_handler_saw_gets_its_span_afterwards_complete(
    runtime: Runtime, telemetry: Telemetry
) -> None:
    reply = await post(MCPMiddleware(Server(), runtime), modern(), MODERN_HEADERS)

    assert described(telemetry.span()) == expected(reply)


def test_a_process_is_named_as_its_telemetry_names_it() -> None:
    named = TracerProvider(resource=Resource({"service.instance.id": f"shop-{'0' * 64}"}))

    assert Spans(named).instance() == f"shop-{'0' * 59}"
    assert Spans(TracerProvider(resource=Resource({}))).instance() == f"{gethostname()}:{os.getpid()}"[:64]
    assert Spans(trace.NoOpTracerProvider()).instance() == f"{gethostname()}:{os.getpid()}"[:64]


async def test_the_scope_of_our_telemetry_names_version_and_schema(runtime: Runtime, telemetry: Telemetry) -> None:
    await post(MCPMiddleware(Server(), runtime), modern(), MODERN_HEADERS)

    scope = telemetry.span().instrumentation_scope
    assert scope is not None
    assert (scope.name, scope.version, scope.schema_url) == (
        "otel_mcp",
        "0.1.0",
        "https://opentelemetry.io/schemas/1.44.0",
    )


async def test_every_further_call_of_an_app_without_seams_has_the_same_span(
    runtime: Runtime, telemetry: Telemetry
) -> None:
    app = MCPMiddleware(Server(), runtime)

    replies = [await post(app, modern(request_id=number), MODERN_HEADERS) for number in (1, 2, 3)]

    assert [described(span) for span in telemetry.spans()] == [
        expected(reply, attributes={"jsonrpc.request.id": str(number)}) for number, reply in enumerate(replies, 1)
    ]


async def test_a_span_lasts_from_the_request_until_its_answer(
    clock: Clock, runtime: Runtime, telemetry: Telemetry
) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        clock.now += 0.5
        await read(receive)
        clock.now += 1.25
        await stream(send, [event(result())])
        clock.now += 10

    for _ in range(2):
        began = clock.now_ns
        await post(MCPMiddleware(app, runtime), call())
        span = telemetry.spans()[-1]
        assert span.start_time == began
        assert span.end_time == pytest.approx(began + 1_750_000_000, abs=1000)


async def test_a_legacy_session_stands_on_its_spans_from_initialize_on(runtime: Runtime, telemetry: Telemetry) -> None:
    app = MCPMiddleware(Server(session_id="own"), runtime)

    await post(app, initialize())
    await post(app, notify("notifications/initialized"), legacy_headers("own"))
    await post(app, call(request_id=0), legacy_headers("own"))

    common = {
        "network.transport": "tcp",
        "network.protocol.name": "http",
        "network.protocol.version": "1.1",
        "client.address": "127.0.0.1",
        "client.port": 50_000,
        "otel_mcp.client.name": "unit-client",
        "user_agent.name": "unit-client",
        "user_agent.version": "9",
        "otel_mcp.session.source": "header",
        "session.id": "own",
        "mcp.session.id": "own",
        "mcp.protocol.version": "2025-11-25",
        "jsonrpc.request.id": "0",
    }
    assert [(span.name, dict(span.attributes or {})) for span in telemetry.spans()] == [
        ("initialize", {**common, "mcp.method.name": "initialize"}),
        (
            "tools/call add",
            {
                **common,
                "mcp.method.name": "tools/call",
                "gen_ai.operation.name": "execute_tool",
                "gen_ai.tool.name": "add",
            },
        ),
    ]


async def test_an_id_that_we_minted_is_the_session_and_the_transport_id(runtime: Runtime, telemetry: Telemetry) -> None:
    app = MCPMiddleware(Server(), runtime)
    session_id = (await post(app, initialize())).headers["mcp-session-id"]

    await post(app, call(), legacy_headers(session_id))

    for span in telemetry.spans():
        attributes = dict(span.attributes or {})
        assert (attributes["session.id"], attributes["mcp.session.id"]) == (session_id, session_id)


async def test_without_a_session_the_span_says_so_and_invents_nothing(runtime: Runtime, telemetry: Telemetry) -> None:
    reply = await post(MCPMiddleware(Server(), runtime), modern(), [*MODERN_HEADERS, ("via", "1.1 proxy")])

    wanted = expected(reply, attributes={"otel_mcp.session.source": "none"})
    del wanted["attributes"]["session.id"]
    assert described(telemetry.span()) == wanted


async def test_a_client_says_who_it_is_also_without_a_session(runtime: Runtime, telemetry: Telemetry) -> None:
    await post(MCPMiddleware(Server(), runtime), modern(), [*MODERN_HEADERS, ("via", "1.1 proxy")])

    attributes = dict(telemetry.span().attributes or {})
    assert attributes.get("otel_mcp.client.name") == "unit-client"


async def test_a_conversation_and_its_transport_session_are_both_attributes(
    runtime: Runtime, telemetry: Telemetry
) -> None:
    app = MCPMiddleware(Server(session_id="own"), runtime)

    reply = await post(app, call(meta={"openai/session": "v1/abc"}), legacy_headers("own"))

    attributes = dict(telemetry.span().attributes or {})
    assert attributes["session.id"] == reply.session_id != "own"
    assert attributes["gen_ai.conversation.id"] == "v1/abc"
    assert attributes["mcp.session.id"] == "own"
    assert attributes["otel_mcp.session.source"] == "conversation"


async def test_a_revision_without_sessions_has_no_transport_id_on_its_spans(
    runtime: Runtime, telemetry: Telemetry
) -> None:
    await post(MCPMiddleware(Server(), runtime), modern(), [*MODERN_HEADERS, ("mcp-session-id", "stray")])

    assert "mcp.session.id" not in (telemetry.span().attributes or {})


@pytest.mark.parametrize(
    ("answer", "attributes", "status"),
    [
        ({"result": FAILED}, {"error.type": "tool_error", "otel_mcp.failure": "tool"}, "ERROR"),
        *(
            (
                {"error": {"code": code, "message": "m"}},
                {"rpc.response.status_code": str(code), "otel_mcp.failure": failure},
                "UNSET",
            )
            for code, failure in (
                (-32700, "refused"),
                (-32600, "refused"),
                (-32601, "refused"),
                (-32602, "invalid_arguments"),
                (-32002, "refused"),
            )
        ),
        *(
            (
                {"error": {"code": code, "message": "m"}},
                {"error.type": str(code), "rpc.response.status_code": str(code), "otel_mcp.failure": failure},
                "ERROR",
            )
            for code, failure in (
                (-32603, "exception"),
                (-32000, "tool"),
                (-32042, "tool"),
                (-32022, "refused"),
                (0, "exception"),
                (7, "tool"),
            )
        ),
        ({"result": {}}, {}, "UNSET"),
    ],
)
@pytest.mark.parametrize("sse", [False, True])
async def test_an_error_is_on_the_span_without_its_text(
    runtime: Runtime, telemetry: Telemetry, answer: Message, attributes: Message, status: str, sse: bool
) -> None:
    app = MCPMiddleware(Server({"tools/call": answer}, sse=sse), runtime)
    replies = [await post(app, modern(), MODERN_HEADERS) for _ in range(2)]

    wanted = [expected(reply, attributes=attributes, status=(status, None)) for reply in replies]
    assert [described(span) for span in telemetry.spans()] == wanted
    assert "secret" not in telemetry.everything()


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 500, 503])
async def test_a_refusal_of_http_is_an_error_of_its_status(runtime: Runtime, telemetry: Telemetry, status: int) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await read(receive)
        await respond(send, b"no", status, content_type="text/plain")

    for _ in range(2):
        await post(MCPMiddleware(app, runtime), call(), legacy_headers("lost"))

    for span in telemetry.spans():
        attributes = dict(span.attributes or {})
        assert attributes["error.type"] == str(status)
        assert span.status.status_code.name == "ERROR"
        assert "rpc.response.status_code" not in attributes
        assert (attributes["otel_mcp.session.source"], "session.id" in attributes) == ("none", False)


@pytest.mark.parametrize("reply_id", [None, "server-error", 1])
async def test_a_refusal_that_names_another_id_is_still_the_answer(
    runtime: Runtime, telemetry: Telemetry, reply_id: object
) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await read(receive)
        await respond(send, error(-32600, reply_id), 400)

    await post(MCPMiddleware(app, runtime), call(), legacy_headers("lost"))

    attributes = dict(telemetry.span().attributes or {})
    assert ("error.type" in attributes, attributes["rpc.response.status_code"]) == (False, "-32600")


async def test_a_notification_gets_no_span_afterwards(runtime: Runtime, telemetry: Telemetry) -> None:
    for _ in range(2):
        await post(MCPMiddleware(Server(), runtime), notify("notifications/initialized"), legacy_headers("x"))

    assert telemetry.spans() == []


@pytest.mark.parametrize(
    ("message", "name", "attributes"),
    [
        (ask("tools/list"), "tools/list", {}),
        (ask("prompts/get", name="greet"), "prompts/get greet", {"gen_ai.prompt.name": "greet"}),
        (ask("resources/read", uri="res://x", name="n"), "resources/read", {"mcp.resource.uri": "res://x"}),
        (ask("resources/list", uri="res://x"), "resources/list", {"mcp.resource.uri": None}),
        (ask("tools/call", name=7), "tools/call", {"gen_ai.operation.name": "execute_tool"}),
        (ask("ping", "an-id"), "ping", {"jsonrpc.request.id": "an-id"}),
        (ask("made/up"), "made/up", {}),
    ],
)
async def test_a_span_is_called_by_method_and_target(
    runtime: Runtime, telemetry: Telemetry, message: Message, name: str, attributes: Message
) -> None:
    await post(MCPMiddleware(Server(), runtime), message, legacy_headers("x"))

    span = telemetry.span()
    found = dict(span.attributes or {})
    assert span.name == name
    assert found["mcp.method.name"] == message["method"]
    assert {key: found.get(key) for key in attributes} == attributes


async def test_names_of_strangers_are_bounded_on_a_span(runtime: Runtime, telemetry: Telemetry) -> None:
    huge = "x" * 200_000
    message = call(huge, huge)
    message["method"] = "tools/call"
    await post(MCPMiddleware(Server(), runtime), message, [("mcp-session-id", huge), ("user-agent", huge)])
    await post(MCPMiddleware(Server(), runtime), ask(huge), [("mcp-protocol-version", huge)])

    for span in telemetry.spans():
        assert len(span.name) <= 600
        assert all(len(str(value)) <= 600 for value in (span.attributes or {}).values())


async def test_the_context_in_meta_is_the_parent(runtime: Runtime, telemetry: Telemetry) -> None:
    app = MCPMiddleware(Server(), runtime)

    for _ in range(2):
        await post(app, modern(traceparent=traceparent(META_PARENT), tracestate="a=b"), MODERN_HEADERS)

    for span in telemetry.spans():
        assert (trace_of(span), described(span)["parent"]) == (TRACE, META_PARENT)
        assert described(span)["links"] == []
        assert span.context is not None
        assert span.context.trace_state.get("a") == "b"


async def test_http_headers_give_the_parent_where_meta_has_none(runtime: Runtime, telemetry: Telemetry) -> None:
    app = MCPMiddleware(Server(), runtime)

    for _ in range(2):
        await post(app, modern(), [*MODERN_HEADERS, ("traceparent", traceparent(HTTP_PARENT))])

    for span in telemetry.spans():
        assert (trace_of(span), described(span)["parent"], described(span)["links"]) == (TRACE, HTTP_PARENT, [])


async def test_where_both_exist_meta_is_the_parent_and_http_is_linked(runtime: Runtime, telemetry: Telemetry) -> None:
    app = MCPMiddleware(Server(), runtime)
    headers = [*MODERN_HEADERS, ("traceparent", traceparent(HTTP_PARENT))]

    for _ in range(2):
        await post(app, modern(traceparent=traceparent(META_PARENT)), headers)

    for span in telemetry.spans():
        assert (described(span)["parent"], described(span)["links"]) == (META_PARENT, [HTTP_PARENT])


async def test_an_http_context_that_is_not_sampled_is_not_linked(runtime: Runtime, telemetry: Telemetry) -> None:
    app = MCPMiddleware(Server(), runtime)
    headers = [*MODERN_HEADERS, ("traceparent", traceparent(HTTP_PARENT, sampled=False))]

    await post(app, modern(traceparent=traceparent(META_PARENT)), headers)

    assert described(telemetry.span())["links"] == []


@pytest.mark.parametrize(
    "wrong", ["", "nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "00-xyz-abc-01", 7, None, ["00"], {"a": 1}]
)
async def test_a_context_that_is_none_leaves_it_to_http(runtime: Runtime, telemetry: Telemetry, wrong: object) -> None:
    headers = [*MODERN_HEADERS, ("traceparent", traceparent(HTTP_PARENT))]

    await post(MCPMiddleware(Server(), runtime), modern(traceparent=wrong), headers)

    assert (described(telemetry.span())["parent"], described(telemetry.span())["links"]) == (HTTP_PARENT, [])


@pytest.mark.parametrize("in_meta", [False, True])
async def test_an_http_span_around_us_is_the_parent_or_the_link(
    runtime: Runtime, telemetry: Telemetry, in_meta: bool
) -> None:
    tracer = telemetry.tracer_provider.get_tracer("http instrumentation")
    app = MCPMiddleware(Server(), runtime)
    meta = {"traceparent": traceparent(META_PARENT)} if in_meta else {}

    for _ in range(2):
        with tracer.start_as_current_span("POST /mcp", kind=trace.SpanKind.SERVER):
            await post(app, modern(**meta), [*MODERN_HEADERS, ("traceparent", traceparent(HTTP_PARENT))])

    http = [span for span in telemetry.spans() if span.name == "POST /mcp"]
    ours = [span for span in telemetry.spans() if span.name == "tools/call add"]
    for outer, inner in zip(http, ours, strict=True):
        wanted = (META_PARENT, [id_of(outer)]) if in_meta else (id_of(outer), [])
        assert (described(inner)["parent"], described(inner)["links"]) == wanted


async def test_an_http_span_is_not_touched(runtime: Runtime, telemetry: Telemetry) -> None:
    tracer = telemetry.tracer_provider.get_tracer("http instrumentation")
    app = MCPMiddleware(Server(), runtime)

    for _ in range(2):
        with tracer.start_as_current_span("POST /mcp", kind=trace.SpanKind.SERVER, attributes={"a": 1}):
            await post(app, modern(), MODERN_HEADERS)

    for span in telemetry.spans():
        if span.name == "POST /mcp":
            attributes = dict(span.attributes or {})
            assert "mcp.method.name" not in attributes
            assert "gen_ai.tool.name" not in attributes


async def test_the_session_outlives_other_attributes_under_a_limit(runtime: Runtime, telemetry: Telemetry) -> None:
    await post(MCPMiddleware(Server(), runtime), modern(), MODERN_HEADERS)

    names = list(telemetry.span().attributes or {})
    assert names.index("session.id") > max(names.index(name) for name in ("client.address", "otel_mcp.client.name"))


async def test_what_an_app_without_seams_does_lies_beneath_its_call(runtime: Runtime, telemetry: Telemetry) -> None:
    tracer = telemetry.tracer_provider.get_tracer("a library")

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await read(receive)
        with tracer.start_as_current_span("SELECT"):
            await respond(send, result())

    replies = [await post(MCPMiddleware(app, runtime), modern(), MODERN_HEADERS) for _ in range(2)]

    calls = [span for span in telemetry.spans() if span.name == "tools/call add"]
    works = [span for span in telemetry.spans() if span.name == "SELECT"]
    assert len(calls) == len(works) == 2
    assert described(works[1])["parent"] == id_of(calls[1])
    assert (works[1].attributes or {})["session.id"] == replies[1].session_id


async def test_the_context_of_the_caller_is_as_it_was(runtime: Runtime) -> None:
    app = MCPMiddleware(Server(), runtime)
    key = otel_context.create_key("k")
    token = otel_context.attach(otel_context.set_value(key, "mine"))
    before = otel_context.get_current()

    for _ in range(3):
        await post(app, modern(traceparent=traceparent(META_PARENT)), MODERN_HEADERS)
        assert otel_context.get_current() == before

    otel_context.detach(token)


async def test_sampling_is_decided_once_and_by_the_parent(make_runtime: MakeRuntime) -> None:
    telemetry = Telemetry(ParentBased(ALWAYS_OFF))
    runtime = Runtime(load(service_name="unit", http_span="off"), telemetry.tracer_provider, telemetry.meter_provider)
    app = MCPMiddleware(Server(), runtime)

    for _ in range(2):
        await post(app, modern(traceparent=traceparent(META_PARENT)), MODERN_HEADERS)
        await post(app, modern(traceparent=traceparent(META_PARENT, sampled=False)), MODERN_HEADERS)
        await post(app, modern(), MODERN_HEADERS)

    assert [described(span)["parent"] for span in telemetry.spans()] == [META_PARENT] * 2
    assert sum(telemetry.counts("mcp.server.operation.duration").values()) == 6
    runtime.disable()
    telemetry.shut_down()


async def test_calls_that_are_not_sampled_are_counted_all_the_same() -> None:
    telemetry = Telemetry(TraceIdRatioBased(0.5))
    runtime = Runtime(load(service_name="unit", http_span="off"), telemetry.tracer_provider, telemetry.meter_provider)
    app = MCPMiddleware(Server(), runtime)

    async with anyio.create_task_group() as group:
        for number in range(100):
            group.start_soon(post, app, modern(request_id=number), MODERN_HEADERS)

    assert 10 < len(telemetry.spans()) < 90
    assert sum(telemetry.counts("mcp.server.operation.duration").values()) == 100
    runtime.disable()
    telemetry.shut_down()


async def test_hashed_ids_appear_nowhere_as_they_are(make_runtime: MakeRuntime, telemetry: Telemetry) -> None:
    app = MCPMiddleware(Server(session_id="servers-own-id"), make_runtime(session_id="hashed", session_span=True))

    await post(app, initialize())
    reply = await post(app, call(), legacy_headers("servers-own-id"))

    assert reply.headers["mcp-session-id"] == "servers-own-id"
    assert reply.session_id is not None
    assert reply.session_id.startswith("h_")
    assert "servers-own-id" not in telemetry.everything()


@pytest.mark.parametrize("left", [True, False], ids=["the client leaves", "the server ends it"])
async def test_a_subscription_that_ends_is_no_error(runtime: Runtime, telemetry: Telemetry, left: bool) -> None:
    gone = anyio.Event()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await read(receive)
        head = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
        await send(head)
        acknowledged = event(notify("notifications/subscriptions/acknowledged"))
        await send({"type": "http.response.body", "body": acknowledged, "more_body": True})
        if left:
            gone.set()
            assert (await receive())["type"] == "http.disconnect"
        else:
            await send({"type": "http.response.body", "body": event(result("listen:0", {})), "more_body": False})

    headers = [("mcp-protocol-version", MODERN), ("mcp-method", "subscriptions/listen")]
    await post(MCPMiddleware(app, runtime), ask("subscriptions/listen", "listen:0"), headers, left=gone)

    assert telemetry.span().status.status_code.name == "UNSET"
    assert "error.type" not in (telemetry.span().attributes or {})


@pytest.mark.parametrize("revision", ["modern", "legacy"])
async def test_a_span_has_the_tenant_of_its_own_request(
    make_runtime: MakeRuntime, telemetry: Telemetry, revision: str
) -> None:
    is_modern = revision == "modern"
    app = MCPMiddleware(Server(session_id=None if is_modern else "own"), make_runtime(tenant="header:x-org"))
    message, headers = (modern(), list(MODERN_HEADERS)) if is_modern else (call(), legacy_headers("own"))

    for tenant in ("acme", "acme", "umbrella"):
        await post(app, message, [*headers, ("x-org", tenant)])
    await post(app, message, headers)

    found = [dict(span.attributes or {}) for span in telemetry.spans()]
    assert [attributes.get("otel_mcp.tenant") for attributes in found] == ["acme", "acme", "umbrella", None]
    # Where nothing names a session, two tenants behind one gateway are two clients.
    sessions = [attributes["session.id"] for attributes in found]
    assert len(set(sessions)) == (3 if is_modern else 1)
    assert sessions[0] == sessions[1]


@pytest.mark.parametrize(
    "limits",
    [
        SpanLimits(),
        SpanLimits(max_span_attributes=5),
        SpanLimits(max_span_attributes=9),
        SpanLimits(max_attribute_length=4),
        SpanLimits(max_attributes=SpanLimits.UNSET),
    ],
    ids=["as they are", "too few", "just enough", "cut", "none"],
)
@pytest.mark.parametrize("state", ["fresh", "described", "ended"])
def test_the_short_way_to_attributes_leaves_the_same_span(
    monkeypatch: pytest.MonkeyPatch, limits: SpanLimits, state: str
) -> None:
    found: list[tuple[object, int]] = []
    for short in (True, False):
        monkeypatch.setattr(spans, "QUICK", spans.QUICK if short else None)
        exchange = Exchange("POST", "/mcp", {}, client="192.0.2.7", client_port=50_000, protocol_version="2026-07-28")
        tracer = TracerProvider(span_limits=limits, shutdown_on_exit=False).get_tracer("mcp-python-sdk")
        given = {"mcp.method.name": "tools/call", "gen_ai.tool.name": "add"}
        span = tracer.start_span("tools/call add", attributes=given)
        if state == "described":
            span.set_attributes({"network.transport": "pipe", "client.port": 1})
        elif state == "ended":
            span.end()
        spans.adopt(Call(exchange, "tools/call", 1, "add", {}, {}), span, "mcp-python-sdk")
        assert isinstance(span, ReadableSpan)
        found.append((list((span.attributes or {}).items()), span.dropped_attributes))
    assert found[0] == found[1]
    assert spans.QUICK is None
