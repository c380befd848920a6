"""Where the SDK 2.x hands a message to its handler: its span is adopted, and ours opened only where there is none.

The stand-in for the SDK is in `tests.support.sdk2`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from contextvars import copy_context
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from opentelemetry.trace import SpanKind

import otel_mcp
from otel_mcp import MCPMiddleware, current
from otel_mcp.exchange.request import Requests
from otel_mcp.identity.reconcile import learn
from otel_mcp.integrations import mcp_v2, tools
from otel_mcp.integrations.patching import Patches
from otel_mcp.model.delta import Known
from otel_mcp.runtime import Runtime
from otel_mcp.settings import load
from otel_mcp.types import Message, Receive, Send
from tests.support.answers import OK
from tests.support.asgi import JSON_HEADERS, make_scope, post, read, request, respond
from tests.support.messages import MODERN_HEADERS, ask, call, initialize, legacy_headers, modern, notify
from tests.support.providers import Telemetry, described, id_of, trace_of
from tests.support.sdk2 import OpenTelemetryMiddleware, Sdk2, make_runner, otel

pytestmark = pytest.mark.anyio

TRACE, META_PARENT, HTTP_PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", "00f067aa0ba902b7"
META = {"traceparent": f"00-{TRACE}-{META_PARENT}-01"}
HTTP = ("traceparent", f"00-{TRACE}-{HTTP_PARENT}-01")
Handler = Callable[[Any], Awaitable[Any]]


async def ok(_: Any) -> Any:
    return OK


async def leave_early(app: MCPMiddleware, begun: asyncio.Event) -> None:
    """A client that goes away as soon as `begun`; the server cancels its call."""
    serving = asyncio.ensure_future(post(app, modern(), MODERN_HEADERS))
    await begun.wait()
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving


@pytest.fixture
def runner(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The patched stand-in of the SDK 2.x."""
    monkeypatch.setattr(current, "runtime", runtime)
    module, patches = make_runner(), Patches()
    mcp_v2.runner(module, patches)
    mcp_v2.native_span(otel, patches)
    yield module
    patches.restore()


@pytest.mark.parametrize(
    "scope",
    ["mcp-python-sdk", "fastmcp"],
    ids=["SDK", "FastMCP"],
)
async def test_a_native_span_is_adopted_and_no_other_is_made(
    runner: ModuleType, runtime: Runtime, telemetry: Telemetry, scope: str
) -> None:
    app = MCPMiddleware(Sdk2(runner, [OpenTelemetryMiddleware(telemetry, scope)], ok))

    replies = [await post(app, modern(request_id=number), MODERN_HEADERS) for number in (1, 2)]

    assert [described(span) for span in telemetry.spans()] == [
        {
            "name": "tools/call add",
            "kind": "SERVER",
            "scope": scope,
            "parent": None,
            "attributes": {
                "mcp.protocol.version": "2026-07-28",
                "mcp.method.name": "tools/call",
                "gen_ai.operation.name": "execute_tool",
                "gen_ai.tool.name": "add",
                "jsonrpc.request.id": str(number),
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
            },
            "status": ("UNSET", None),
            "events": [],
            "links": [],
        }
        for number, reply in enumerate(replies, 1)
    ]
    assert replies[0].session_id == replies[1].session_id is not None
    assert sum(telemetry.counts("mcp.server.operation.duration").values()) == 2


async def test_the_span_of_the_sdk_is_adopted_without_a_span_processor(
    monkeypatch: pytest.MonkeyPatch, telemetry: Telemetry
) -> None:
    provider = SimpleNamespace(get_tracer=telemetry.tracer_provider.get_tracer)
    runtime = Runtime(load(service_name="unit", http_span="off"), provider, telemetry.meter_provider)  # type: ignore[arg-type]
    monkeypatch.setattr(current, "runtime", runtime)
    module, patches = make_runner(), Patches()
    mcp_v2.runner(module, patches)
    app = MCPMiddleware(Sdk2(module, [OpenTelemetryMiddleware(telemetry)], ok))

    reply = await post(app, modern(), MODERN_HEADERS)

    span = telemetry.span()
    assert described(span)["scope"] == "mcp-python-sdk"
    assert (span.attributes or {})["session.id"] == reply.session_id
    patches.restore()
    runtime.disable()


async def test_a_span_of_another_scope_is_a_child_and_not_adopted(runner: ModuleType, telemetry: Telemetry) -> None:
    app = MCPMiddleware(Sdk2(runner, [OpenTelemetryMiddleware(telemetry, "somebody else")], ok))

    await post(app, modern(), MODERN_HEADERS)

    ours, theirs = sorted(telemetry.spans(), key=lambda span: described(span)["scope"])
    assert (described(ours)["scope"], described(theirs)["scope"]) == ("otel_mcp", "somebody else")


async def test_where_the_sdk_opens_no_span_ours_lies_around_the_handler(
    runner: ModuleType, telemetry: Telemetry
) -> None:
    tracer = telemetry.tracer_provider.get_tracer("a library")

    async def handler(_: Any) -> Any:
        with tracer.start_as_current_span("SELECT"):
            return OK

    reply = await post(MCPMiddleware(Sdk2(runner, [], handler)), modern(), MODERN_HEADERS)

    work, message = sorted(telemetry.spans(), key=lambda span: span.name)
    assert (message.name, described(message)["scope"], message.kind) == ("tools/call add", "otel_mcp", SpanKind.SERVER)
    assert described(work)["parent"] == id_of(message)
    assert (work.attributes or {})["session.id"] == (message.attributes or {})["session.id"] == reply.session_id


@pytest.mark.parametrize("native", [False, True])
async def test_an_answer_of_the_users_middleware_has_one_span(
    runner: ModuleType, telemetry: Telemetry, native: bool
) -> None:
    async def answers(_: Any, __: Handler) -> Any:
        return OK

    middleware = [*([OpenTelemetryMiddleware(telemetry)] if native else []), answers]
    tracer = telemetry.tracer_provider.get_tracer("http instrumentation")
    with tracer.start_as_current_span("POST", kind=SpanKind.SERVER):
        reply = await post(MCPMiddleware(Sdk2(runner, middleware, ok)), modern(), MODERN_HEADERS)

    by_name = {span.name: span for span in telemetry.spans()}
    message = by_name.pop("tools/call add")
    assert described(message)["scope"] == ("mcp-python-sdk" if native else "otel_mcp")
    assert (message.attributes or {})["session.id"] == reply.session_id
    assert described(message)["parent"] == id_of(by_name.pop("POST"))
    assert by_name == {}


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("meta", [{}, META])
@pytest.mark.parametrize("http", [(), (HTTP,)])
async def test_the_parent_is_that_of_meta_else_that_of_http(
    runner: ModuleType,
    telemetry: Telemetry,
    native: bool,
    meta: Message,
    http: tuple[tuple[str, str], ...],
) -> None:
    middleware = [OpenTelemetryMiddleware(telemetry)] if native else []

    await post(MCPMiddleware(Sdk2(runner, middleware, ok)), modern(**meta), [*MODERN_HEADERS, *http])

    span = telemetry.span()
    parent = META_PARENT if meta else HTTP_PARENT if http else None
    assert described(span)["parent"] == parent
    assert described(span)["links"] == ([HTTP_PARENT] if meta and http else [])
    assert (trace_of(span) == TRACE) is bool(meta or http)


@pytest.mark.parametrize("native", [False, True])
async def test_a_stale_context_of_the_task_counts_for_nothing(
    runner: ModuleType, telemetry: Telemetry, native: bool
) -> None:
    tracer = telemetry.tracer_provider.get_tracer("http instrumentation")
    server = Sdk2(runner, [OpenTelemetryMiddleware(telemetry)] if native else [], ok, session_id="own")
    app = MCPMiddleware(server)
    with tracer.start_as_current_span("POST first", kind=SpanKind.SERVER):
        await post(app, initialize())
        server.context = copy_context()

    for number in (1, 2):
        with tracer.start_as_current_span(f"POST {number}", kind=SpanKind.SERVER):
            await post(app, call(request_id=number), legacy_headers("own"))

    by_name = {span.name: span for span in telemetry.spans() if span.name.startswith("POST")}
    calls = [span for span in telemetry.spans() if span.name == "tools/call add"]
    assert [described(span)["parent"] for span in calls] == [id_of(by_name["POST 1"]), id_of(by_name["POST 2"])]


async def test_messages_that_run_together_keep_their_own_context(runner: ModuleType, telemetry: Telemetry) -> None:
    tracer = telemetry.tracer_provider.get_tracer("a library")
    arrived: list[str] = []
    everybody = asyncio.Event()

    async def handler(ctx: Any) -> Any:
        arrived.append(ctx.params["name"])
        if len(arrived) == 10:
            everybody.set()
        await everybody.wait()
        with tracer.start_as_current_span(f"work of {ctx.params['name']}"):
            return OK

    app = MCPMiddleware(Sdk2(runner, [OpenTelemetryMiddleware(telemetry)], handler, session_id="own"))
    await asyncio.gather(
        *(post(app, call(f"tool-{number}", request_id=number), legacy_headers("own")) for number in range(10))
    )

    ids = {span.name.removeprefix("tools/call "): id_of(span) for span in telemetry.spans() if "call" in span.name}
    works = {span.name: described(span)["parent"] for span in telemetry.spans() if "work" in span.name}
    assert works == {f"work of {name}": span_id for name, span_id in ids.items()}
    assert len(works) == 10


async def test_the_session_of_initialize_is_known_before_its_span_ends(
    runner: ModuleType, telemetry: Telemetry
) -> None:
    app = MCPMiddleware(Sdk2(runner, [OpenTelemetryMiddleware(telemetry)], ok, session_id="own"))

    await post(app, initialize())

    attributes = telemetry.span().attributes or {}
    assert (attributes["session.id"], attributes["mcp.session.id"]) == ("own", "own")
    assert attributes["otel_mcp.client.name"] == "unit-client"


async def test_an_inner_listing_of_the_sdk_is_neither_span_nor_count(runner: ModuleType, telemetry: Telemetry) -> None:
    tracer = telemetry.tracer_provider.get_tracer("a library")
    servers: list[Sdk2] = []

    async def handler(ctx: Any) -> Any:
        if ctx.method == "tools/list":
            with tracer.start_as_current_span("read the catalogue"):
                return {"tools": [{"name": "listed"}]}
        hidden = SimpleNamespace(**{**vars(ctx), "method": "tools/list", "params": None})
        await servers[0].runner._compose_server_middleware(handler)(hidden)
        return OK

    servers.append(Sdk2(runner, [OpenTelemetryMiddleware(telemetry)], handler))
    await post(MCPMiddleware(servers[0]), modern(), MODERN_HEADERS)

    names = [span.name for span in telemetry.spans()]
    assert names == ["tools/call add", "read the catalogue"]
    methods = {attributes["mcp.method.name"] for attributes, _ in telemetry.points("mcp.server.operation.duration")}
    assert methods == {"tools/call"}


async def test_a_span_that_was_sampled_out_is_not_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    telemetry = Telemetry(ParentBased(ALWAYS_OFF))
    runtime = Runtime(load(service_name="unit", http_span="off"), telemetry.tracer_provider, telemetry.meter_provider)
    monkeypatch.setattr(current, "runtime", runtime)
    module, patches = make_runner(), Patches()
    mcp_v2.runner(module, patches)

    for middleware in ([OpenTelemetryMiddleware(telemetry)], []):
        app = MCPMiddleware(Sdk2(module, middleware, ok))
        await post(app, modern(), MODERN_HEADERS)
        await post(app, modern(traceparent=f"00-{TRACE}-{META_PARENT}-00"), MODERN_HEADERS)

    assert telemetry.spans() == []
    assert sum(telemetry.counts("mcp.server.operation.duration").values()) == 4
    patches.restore()
    runtime.disable()
    telemetry.shut_down()


class SdkError(Exception):
    """How handlers of the SDK end with an error of the protocol."""

    def __init__(self, code: int) -> None:
        super().__init__("secret")
        self.error = SimpleNamespace(code=code, message="secret")


@pytest.mark.parametrize(
    ("problem", "attributes"),
    [
        (SdkError(-32002), {"error.type": None, "rpc.response.status_code": "-32002"}),
        (SdkError(-32603), {"error.type": "-32603", "rpc.response.status_code": "-32603"}),
        (ValueError("secret"), {"error.type": "-32603", "otel_mcp.tool.exception.type": "ValueError"}),
    ],
)
async def test_an_exception_of_a_handler_passes_untouched_and_names_the_error(
    runner: ModuleType, telemetry: Telemetry, problem: Exception, attributes: Message
) -> None:
    async def handler(_: Any) -> Any:
        raise problem

    reply = await post(MCPMiddleware(Sdk2(runner, [], handler)), modern(), MODERN_HEADERS)

    assert reply.error is problem
    found = dict(telemetry.span().attributes or {})
    assert {name: found.get(name) for name in attributes} == attributes
    assert "secret" not in telemetry.everything()


@pytest.mark.parametrize(
    "value",
    [{"isError": True}, SimpleNamespace(isError=True), SimpleNamespace(is_error=True)],
)
async def test_an_error_result_is_a_tool_error_on_our_span(
    runner: ModuleType, telemetry: Telemetry, value: Any
) -> None:
    async def handler(_: Any) -> Any:
        return value

    class Plain(Sdk2):
        async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
            async def quiet(message: Any) -> None:
                await send(message)

            message = json.loads(await read(receive))
            ctx = SimpleNamespace(
                request=SimpleNamespace(scope=scope),
                request_id=message["id"],
                method=message["method"],
                params=message["params"],
                protocol_version="2026-07-28",
                session=None,
            )
            await self.runner._compose_server_middleware(self.handler)(ctx)
            await respond(quiet, {"jsonrpc": "2.0", "id": message["id"], "result": {"isError": True}})

    await post(MCPMiddleware(Plain(runner, [], handler)), modern(), MODERN_HEADERS)

    span = telemetry.span()
    assert (span.attributes or {})["error.type"] == "tool_error"
    assert span.status.status_code.name == "ERROR"


async def test_a_cancelled_handler_is_cancelled_everywhere(runner: ModuleType, telemetry: Telemetry) -> None:
    started = asyncio.Event()

    async def handler(_: Any) -> Any:
        started.set()
        await asyncio.Event().wait()

    app = MCPMiddleware(Sdk2(runner, [], handler))
    await leave_early(app, started)

    assert (telemetry.span().attributes or {})["error.type"] == "cancelled"
    (point,) = telemetry.points("mcp.server.operation.duration")
    assert point[0]["error.type"] == "cancelled"


async def test_a_client_leaving_during_the_session_lookup_cancels_its_call(
    runner: ModuleType, runtime: Runtime, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = asyncio.Event()

    async def never(_: Any) -> None:
        asked.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(runtime.resolver, "resolve", never)
    app = MCPMiddleware(Sdk2(runner, [OpenTelemetryMiddleware(telemetry)], ok))
    await leave_early(app, asked)

    assert runtime.metrics.census.calls == {}
    (point,) = telemetry.points("mcp.server.operation.duration")
    assert point[0]["error.type"] == "cancelled"


async def test_a_session_that_cannot_be_found_keeps_no_span_from_being_adopted(
    runner: ModuleType, runtime: Runtime, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch, failures: Any
) -> None:
    async def broken(_: Any) -> None:
        raise LookupError

    monkeypatch.setattr(runtime.resolver, "resolve", broken)

    reply = await post(MCPMiddleware(Sdk2(runner, [OpenTelemetryMiddleware(telemetry)], ok)), modern(), MODERN_HEADERS)

    attributes = telemetry.span().attributes or {}
    assert (reply.status, attributes["client.address"], runtime.metrics.census.calls) == (200, "127.0.0.1", {})


@pytest.mark.parametrize("cut_off", [False, True])
async def test_a_span_that_was_not_sampled_is_not_decided_on_again(
    runner: ModuleType, telemetry: Telemetry, cut_off: bool
) -> None:
    class Unsampled(OpenTelemetryMiddleware):
        def __init__(self) -> None:
            self.tracer = TracerProvider(sampler=ALWAYS_OFF).get_tracer("mcp-python-sdk")
            self.says_all = True

    Unsampled.__name__ = "OpenTelemetryMiddleware"

    async def answers(_: Any, __: Handler) -> Any:
        return OK

    middleware = [Unsampled(), *([answers] if cut_off else [])]
    await post(MCPMiddleware(Sdk2(runner, middleware, ok)), modern(), MODERN_HEADERS)

    assert telemetry.spans() == []
    assert sum(telemetry.counts("mcp.server.operation.duration").values()) == 1


async def test_a_cancelled_tool_is_cancelled_on_the_native_span(runner: ModuleType, telemetry: Telemetry) -> None:
    started = asyncio.Event()

    class Tool:
        async def run(self) -> None:
            started.set()
            await asyncio.Event().wait()

    async def handler(_: Any) -> Any:
        await Tool().run()

    patches, module = Patches(), ModuleType("fake_tools")
    module.__dict__["Tool"] = Tool
    tools.tool_base(module, patches)
    app = MCPMiddleware(Sdk2(runner, [OpenTelemetryMiddleware(telemetry)], handler))
    await leave_early(app, started)
    patches.restore()

    span = telemetry.span()
    assert (described(span)["scope"], (span.attributes or {})["error.type"]) == ("mcp-python-sdk", "cancelled")
    assert span.status.status_code.name == "ERROR"


async def test_listed_prompts_are_named_even_where_they_fail(runner: ModuleType, telemetry: Telemetry) -> None:
    async def handler(ctx: Any) -> Any:
        if ctx.method == "prompts/list":
            return {"prompts": [{"name": "greet"}]}
        raise ValueError

    app = MCPMiddleware(Sdk2(runner, [], handler))
    await post(app, ask("prompts/list"), [*MODERN_HEADERS[:1]])
    for name in ("greet", "made-up"):
        await post(app, ask("prompts/get", name=name), [*MODERN_HEADERS[:1]])

    points = telemetry.points("mcp.server.operation.duration")
    names = sorted(str(attributes.get("gen_ai.prompt.name")) for attributes, _ in points)
    assert names == ["None", "_OTHER", "greet"]


async def test_a_transport_session_id_is_ignored_from_2026_07_28_on(
    runner: ModuleType, runtime: Runtime, telemetry: Telemetry
) -> None:
    app = MCPMiddleware(Sdk2(runner, [], ok, "own"))
    await post(app, initialize(), legacy_headers("own"))
    message = modern()
    del message["params"]["_meta"]["io.modelcontextprotocol/clientInfo"]

    await post(app, message, [*MODERN_HEADERS, ("mcp-session-id", "own")])

    (session,) = [held for held in runtime.resolver.registry.sessions.values() if held.id != "own"]
    assert (session.facts.client_name, session.facts.protocol_version) == (None, "2026-07-28")


async def test_a_tool_that_the_server_knows_is_named_even_where_it_fails(
    runner: ModuleType, telemetry: Telemetry
) -> None:
    async def handler(_: Any) -> Any:
        return {"isError": True}

    app = MCPMiddleware(Sdk2(runner, [], handler))
    await post(app, modern("add"), MODERN_HEADERS)
    await post(app, modern("made-up"), [*MODERN_HEADERS[:2], ("mcp-name", "made-up")])

    names = sorted(
        attributes["gen_ai.tool.name"] for attributes, _ in telemetry.points("mcp.server.operation.duration")
    )
    assert names == ["_OTHER", "add"]


async def test_a_notification_adopts_the_span_of_the_sdk_and_opens_none(
    runner: ModuleType, telemetry: Telemetry
) -> None:
    message = notify("notifications/initialized")

    await post(MCPMiddleware(Sdk2(runner, [], ok, "own")), message, legacy_headers("own"))
    assert telemetry.spans() == []
    await post(
        MCPMiddleware(Sdk2(runner, [OpenTelemetryMiddleware(telemetry)], ok, "own")), message, legacy_headers("own")
    )

    assert [described(span)["scope"] for span in telemetry.spans()] == ["mcp-python-sdk"]


async def test_outside_of_an_observed_request_the_chain_is_as_it_was(runner: ModuleType, telemetry: Telemetry) -> None:
    server = Sdk2(runner, [OpenTelemetryMiddleware(telemetry)], ok)

    reply = await post(server, modern(), MODERN_HEADERS)

    assert reply.status == 200
    attributes = described(telemetry.span())["attributes"]
    assert attributes["mcp.method.name"] == "tools/call"
    assert not [name for name in attributes if name.startswith(("session.", "otel_mcp."))]


async def test_the_handler_names_a_message_too_large_to_be_read(runner: ModuleType, telemetry: Telemetry) -> None:
    message = call("add", request_id=7)
    message["params"]["arguments"] = {"text": "x" * 2_000_000}
    app = MCPMiddleware(Sdk2(runner, [], ok, session_id="own"))

    await post(app, message, legacy_headers("own"))

    span = telemetry.span()
    assert span.name == "tools/call add"
    assert (span.attributes or {})["jsonrpc.request.id"] == "7"
    assert (span.attributes or {})["session.id"] == "own"


async def test_the_session_is_known_to_the_tool(runner: ModuleType) -> None:
    seen: list[str | None] = []

    async def handler(_: Any) -> Any:
        state = otel_mcp.current_session()
        seen.append(state.session_id if state is not None else None)
        return OK

    reply = await post(MCPMiddleware(Sdk2(runner, [], handler)), modern(), MODERN_HEADERS)

    assert seen == [reply.session_id]
    assert otel_mcp.current_session() is None


async def test_where_our_patch_fails_the_span_of_the_sdk_stays(
    runner: ModuleType, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch, failures: Any
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(Requests, "call_of", broken)
    app = MCPMiddleware(Sdk2(runner, [OpenTelemetryMiddleware(telemetry)], ok))

    reply = await post(app, modern(), MODERN_HEADERS)

    assert reply.status == 200
    assert "mcp-python-sdk" in [described(span)["scope"] for span in telemetry.spans()]
    assert failures.pop("dispatch") == 1
    failures.clear()


async def test_a_server_whose_tool_lookup_raises_has_one_span_and_session(
    runner: ModuleType, telemetry: Telemetry, failures: Any
) -> None:
    """The SDK swallows what a `get_tool_input_schema` of the user's raises, and so do we."""

    class Raising(Sdk2):
        def get_tool_input_schema(self, name: str) -> object:
            raise KeyError(name)

    app = MCPMiddleware(Raising(runner, [OpenTelemetryMiddleware(telemetry)], ok))

    await post(app, call(), legacy_headers("own"))

    assert (telemetry.span().attributes or {})["session.id"] == "own"
    assert failures == {}


async def test_a_failed_lookup_before_the_handler_costs_neither_span_nor_session(
    runner: ModuleType, telemetry: Telemetry, failures: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(mcp_v2, "_is_tool", broken)
    app = MCPMiddleware(Sdk2(runner, [OpenTelemetryMiddleware(telemetry)], ok))

    await post(app, call(), legacy_headers("own"))

    assert (telemetry.span().attributes or {})["session.id"] == "own"
    assert failures.pop("dispatch") == 1


@pytest.mark.parametrize(
    ("scope", "method", "shown"),
    [
        ("mcp-python-sdk", "resources/read", "res://host/x"),
        ("fastmcp", "resources/read", "res://host/x"),
        ("fastmcp", "resources/subscribe", "res://host/x"),
    ],
)
async def test_a_native_span_gets_the_resource(
    runner: ModuleType, telemetry: Telemetry, scope: str, method: str, shown: str
) -> None:
    app = MCPMiddleware(Sdk2(runner, [OpenTelemetryMiddleware(telemetry, scope)], ok))

    await post(app, ask(method, uri="res://user@host/x?token=secret"), legacy_headers("own"))

    assert (telemetry.span().attributes or {}).get("mcp.resource.uri") == shown
    assert "secret" not in telemetry.everything()


async def test_the_class_of_a_tools_exception_is_shown_without_its_text(
    runner: ModuleType, telemetry: Telemetry
) -> None:
    class ToolError(Exception):
        pass

    class Tool:
        async def run(self, problem: Exception) -> None:
            try:
                raise problem
            except Exception as error:
                raise ToolError("Error executing tool") from error

    module, patches = ModuleType("fake_tools"), Patches()
    module.__dict__["Tool"] = Tool
    tools.tool_base(module, patches)

    async def handler(_: Any) -> Any:
        try:
            await Tool().run(KeyError("secret"))
        except ToolError:
            return {"isError": True}

    for middleware in ([OpenTelemetryMiddleware(telemetry)], []):
        await post(MCPMiddleware(Sdk2(runner, middleware, handler)), modern(), MODERN_HEADERS)
    patches.restore()

    for span in telemetry.spans():
        assert (span.attributes or {})["otel_mcp.tool.exception.type"] == "KeyError"
    assert "secret" not in telemetry.everything()


async def test_a_tool_outside_of_a_request_raises_as_it_did(failures: Any) -> None:
    class Tool:
        async def run(self) -> None:
            raise KeyError("x")

    module, patches = ModuleType("fake_tools"), Patches()
    module.__dict__["Tool"] = Tool
    tools.tool_base(module, patches)

    with pytest.raises(KeyError):
        await Tool().run()
    patches.restore()
    assert failures == {}


async def test_the_processor_stamps_what_a_handler_opens_and_overwrites_nothing(
    runner: ModuleType, telemetry: Telemetry
) -> None:
    tracer = telemetry.tracer_provider.get_tracer("a library")

    async def handler(_: Any) -> Any:
        with tracer.start_as_current_span("plain"), tracer.start_as_current_span("deep"):
            pass
        with tracer.start_as_current_span("taken", attributes={"session.id": "the app's"}):
            pass
        return OK

    reply = await post(MCPMiddleware(Sdk2(runner, [], handler)), modern(), MODERN_HEADERS)
    with tracer.start_as_current_span("outside"):
        pass

    found = {span.name: dict(span.attributes or {}) for span in telemetry.spans() if "call" not in span.name}
    stamp = {"session.id": reply.session_id, "otel_mcp.session.source": "inferred_weak"}
    assert found == {"plain": stamp, "deep": stamp, "taken": {"session.id": "the app's"}, "outside": {}}


async def test_an_inner_native_span_is_not_adopted_a_second_time(runner: ModuleType, telemetry: Telemetry) -> None:
    native = OpenTelemetryMiddleware(telemetry)

    async def handler(_: Any) -> Any:
        with native.tracer.start_as_current_span("inner", kind=SpanKind.SERVER):
            return OK

    await post(MCPMiddleware(Sdk2(runner, [native], handler)), modern(), MODERN_HEADERS)

    outer, inner = telemetry.spans()
    assert "jsonrpc.request.id" in (outer.attributes or {})
    assert "jsonrpc.request.id" not in (inner.attributes or {})
    assert "session.id" in (inner.attributes or {})


async def test_the_span_of_an_asking_server_is_not_adopted(runner: ModuleType, telemetry: Telemetry) -> None:
    asking = telemetry.tracer_provider.get_tracer("mcp-python-sdk")

    with asking.start_as_current_span("tools/call outer", kind=SpanKind.SERVER):
        await post(MCPMiddleware(Sdk2(runner, [], ok)), modern(), MODERN_HEADERS)

    outer, message = telemetry.spans()
    assert "session.id" not in (outer.attributes or {})
    assert (message.name, described(message)["scope"], described(message)["parent"]) == (
        "tools/call add",
        "otel_mcp",
        id_of(outer),
    )


@pytest.mark.parametrize(("encoding", "sizes"), [("identity-of-ours", 1), ("content-encoding", 0)])
async def test_the_size_of_a_result_is_not_that_of_its_encoding(
    runner: ModuleType, telemetry: Telemetry, encoding: str, sizes: int
) -> None:
    server = Sdk2(runner, [OpenTelemetryMiddleware(telemetry)], ok)
    server.headers = [(encoding, "gzip")]

    reply = await post(MCPMiddleware(server), modern(), MODERN_HEADERS)

    assert reply.session_id is not None
    assert [count for count, _ in (value for _, value in telemetry.points("otel_mcp.tool.result.size"))] == [1] * sizes
    assert sum(telemetry.counts("mcp.server.operation.duration").values()) == 1


async def test_an_id_that_cannot_be_exported_is_mended_on_the_native_span(
    runner: ModuleType, telemetry: Telemetry
) -> None:
    native = OpenTelemetryMiddleware(telemetry)

    await post(MCPMiddleware(Sdk2(runner, [native], ok)), modern(request_id="half \ud83d"), MODERN_HEADERS)

    assert (telemetry.span().attributes or {})["jsonrpc.request.id"] == "half ?"


@pytest.mark.parametrize("meta", [None, {"progressToken": 1}])
async def test_facts_that_a_session_learns_stand_on_its_later_spans(
    runner: ModuleType, runtime: Runtime, telemetry: Telemetry, meta: dict[str, Any] | None
) -> None:
    app = MCPMiddleware(Sdk2(runner, [], ok, session_id="own"))

    await post(app, call(meta=meta), legacy_headers("own"))
    session = runtime.resolver.registry.get("own")
    assert session is not None
    learn(session, Known(False, client={"client_name": "late", "client_version": "1"}))  # Of another replica.
    await post(app, call(request_id=2), legacy_headers("own"))

    names = [(span.attributes or {}).get("otel_mcp.client.name") for span in telemetry.spans()]
    assert names == [None, "late"]


async def test_each_call_of_a_session_has_its_own_version_of_http(runner: ModuleType, telemetry: Telemetry) -> None:
    app = MCPMiddleware(Sdk2(runner, [], ok, session_id="own"))

    for version in ("1.1", "2", "1.1", "3"):
        scope = {**make_scope(headers=[*JSON_HEADERS, *legacy_headers("own")]), "http_version": version}
        await request(app, scope, [json.dumps(call()).encode()])

    versions = [(span.attributes or {})["network.protocol.version"] for span in telemetry.spans()]
    assert versions == ["1.1", "2", "1.1", "3"]


async def test_after_uninstrument_the_processor_does_nothing(
    runner: ModuleType, runtime: Runtime, telemetry: Telemetry
) -> None:
    tracer = telemetry.tracer_provider.get_tracer("a library")

    async def handler(_: Any) -> Any:
        runtime.disable()
        with tracer.start_as_current_span("SELECT"):
            return OK

    await post(MCPMiddleware(Sdk2(runner, [], handler)), modern(), MODERN_HEADERS)

    (work,) = [span for span in telemetry.spans() if span.name == "SELECT"]
    assert dict(work.attributes or {}) == {}
