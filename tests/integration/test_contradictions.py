"""The body of a message says what it is: headers that say otherwise hide nothing, on any server."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastmcp import FastMCP
from mcp.server.mcpserver import MCPServer
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from otel_mcp import MCPInstrumentor, MCPMiddleware, current, guard
from otel_mcp.types import ASGIApp, Message, Receive, Send
from tests.support.answers import Server
from tests.support.asgi import Headers, Reply, delete, post
from tests.support.messages import MODERN, call, initialize, legacy_headers
from tests.support.providers import Telemetry

pytestmark = pytest.mark.anyio
LIES = [("mcp-method", "ping"), ("mcp-name", "nothing")]
LARGE = "x" * 1_500_000


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    made = Telemetry()
    MCPInstrumentor().instrument(
        tracer_provider=made.tracer_provider, meter_provider=made.meter_provider, service_name="shop", http_span="off"
    )
    guard.failures.clear()
    yield made
    assert not guard.failures
    MCPInstrumentor().uninstrument()
    made.shut_down()


def work(telemetry: Telemetry) -> None:
    with telemetry.tracer_provider.get_tracer("a database").start_as_current_span("query"):
        pass


def sdk(telemetry: Telemetry, *, stateless: bool) -> tuple[ASGIApp, Any]:
    server = MCPServer("shop", log_level="CRITICAL")

    @server.tool()
    def add(text: str = "") -> str:
        work(telemetry)
        return text[:1]

    return server.streamable_http_app(stateless_http=stateless, json_response=True), server.session_manager


def fastmcp(telemetry: Telemetry, *, stateless: bool) -> tuple[ASGIApp, Any]:
    server = FastMCP("shop")

    @server.tool
    def add(text: str = "") -> str:
        work(telemetry)
        return text[:1]

    return server.http_app(stateless_http=stateless, json_response=True), None


def route(telemetry: Telemetry) -> ASGIApp:
    async def serve(request: Request) -> Response:
        message = json.loads(await request.body())
        if message["method"] == "tools/call":
            work(telemetry)
        value: Message = {"protocolVersion": "2025-11-25", "capabilities": {}} if message["method"][0] == "i" else {}
        return JSONResponse({"jsonrpc": "2.0", "id": message["id"], "result": value})

    return Starlette(routes=[Route("/mcp", serve, methods=["POST"])])


def bare(telemetry: Telemetry) -> ASGIApp:
    inner = Server()

    async def serve(scope: Message, receive: Receive, send: Send) -> None:
        async def working(message: Message) -> None:
            if message["type"] == "http.response.start" and seen[0].get("method") == "tools/call":
                work(telemetry)
            await send(message)

        seen: list[Message] = []

        async def reading() -> Message:
            message = await receive()
            seen.append(json.loads(message["body"]) if message["body"] else {})
            return message

        await inner(scope, reading, working)

    return MCPMiddleware(serve)


@asynccontextmanager
async def serving(name: str, telemetry: Telemetry) -> AsyncGenerator[ASGIApp]:
    kind, _, mode = name.partition(" ")
    if kind == "sdk":
        app, manager = sdk(telemetry, stateless=mode == "stateless")
        async with manager.run():
            yield app
    elif kind == "fastmcp":
        app, _ = fastmcp(telemetry, stateless=mode == "stateless")
        async with app.lifespan(app):  # type: ignore[attr-defined]  # pyright: ignore
            yield app
    else:
        yield route(telemetry) if kind == "route" else bare(telemetry)


LEGACY = ["sdk stateful", "sdk stateless", "fastmcp stateful", "fastmcp stateless", "route", "bare"]


async def begun(app: ASGIApp) -> str:
    """A session, at a server that is known by now."""
    for _ in range(2):
        reply = await post(app, initialize())
        session_id = reply.headers["mcp-session-id"]
        await post(app, call(), legacy_headers(session_id))
    return session_id


async def asked(
    app: ASGIApp, telemetry: Telemetry, message: Message, headers: Headers
) -> tuple[Reply, list[ReadableSpan]]:
    telemetry.spans()
    telemetry.span_exporter.clear()
    reply = await post(app, message, headers)
    return reply, telemetry.spans()


def described(spans: list[ReadableSpan]) -> list[tuple[str, str, object]]:
    return [(span.name, span.kind.name, (span.attributes or {}).get("session.id")) for span in spans]


def counted(telemetry: Telemetry) -> dict[str, int]:
    return {
        attributes["otel_mcp.header"]: value
        for attributes, value in telemetry.points("otel_mcp.headers.contradicted")
        if value
    }


@pytest.mark.parametrize("large", [False, True], ids=["small", "too large to read"])
@pytest.mark.parametrize("name", LEGACY)
async def test_a_header_that_says_ping_hides_no_call(name: str, large: bool, telemetry: Telemetry) -> None:
    async with serving(name, telemetry) as app:
        session_id = await begun(app)
        message = call(arguments={"text": LARGE if large else "x"})

        reply, spans = await asked(app, telemetry, message, [*legacy_headers(session_id), *LIES])

    assert reply.status == 200
    assert described(spans)[0] == ("tools/call add", "SERVER", session_id)
    assert [span.kind.name for span in spans].count("SERVER") == 1
    beneath = [span for span in spans if span.name == "query"]
    if not (large and name in {"route", "bare"}):  # What they do with a body that is not read ahead is not ours.
        assert [(span.attributes or {}).get("session.id") for span in beneath] == [session_id]
        assert beneath[0].context.trace_id == spans[0].context.trace_id  # type: ignore[union-attr]
    assert counted(telemetry) == {"mcp-method": 1, "mcp-name": 1}
    runtime = current.runtime
    assert runtime is not None
    await runtime.sessions.flush()
    document = await runtime.sessions.load(session_id)
    assert document is not None
    assert document.tool_call_count == 2


@pytest.mark.parametrize("name", ["route", "bare"])
async def test_a_revision_without_sessions_in_a_header_ends_no_session(name: str, telemetry: Telemetry) -> None:
    async with serving(name, telemetry) as app:
        session_id = await begun(app)
        headers = [("mcp-session-id", session_id), ("mcp-protocol-version", MODERN), ("mcp-method", "tools/call")]

        reply, spans = await asked(app, telemetry, call(), headers)

    assert described(spans) == [("tools/call add", "SERVER", session_id), ("query", "INTERNAL", session_id)]
    assert (spans[0].attributes or {})["mcp.protocol.version"] == "2025-11-25"
    assert reply.session_id == session_id
    assert counted(telemetry) == {"mcp-protocol-version": 1}


@pytest.mark.parametrize("name", ["sdk stateful", "sdk stateless", "fastmcp stateful"])
async def test_a_message_refused_for_its_headers_is_counted_as_refused(name: str, telemetry: Telemetry) -> None:
    async with serving(name, telemetry) as app:
        session_id = await begun(app)
        headers = [("mcp-session-id", session_id), ("mcp-protocol-version", MODERN), ("mcp-method", "ping")]

        for message in (modern_call(), call()):
            reply, spans = await asked(app, telemetry, message, headers)
            assert reply.status == 400
            assert described(spans) == [("tools/call add", "SERVER", None)]
            assert (spans[0].attributes or {})["rpc.response.status_code"] in {"-32020", "-32602"}

    assert counted(telemetry)["mcp-method"] == 2


def modern_call(**arguments: Any) -> Message:
    meta = {
        "io.modelcontextprotocol/protocolVersion": MODERN,
        "io.modelcontextprotocol/clientInfo": {"name": "unit-client", "version": "9"},
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    return call(meta=meta, arguments=arguments)


@pytest.mark.parametrize("text", ["x", LARGE], ids=["small", "too large to read"])
@pytest.mark.parametrize("name", ["sdk stateless", "fastmcp stateless", "fastmcp stateful"])
async def test_a_listing_that_the_sdk_makes_by_itself_is_no_message(name: str, text: str, telemetry: Telemetry) -> None:
    headers = [("mcp-protocol-version", MODERN), ("mcp-method", "tools/call"), ("mcp-name", "add")]
    async with serving(name, telemetry) as app:
        reply, spans = await asked(app, telemetry, modern_call(text=text), headers)

    assert reply.status == 200
    assert [span.name for span in spans if span.kind is trace.SpanKind.SERVER] == ["tools/call add"]
    methods = [attributes["mcp.method.name"] for attributes, _ in telemetry.points("mcp.server.operation.duration")]
    assert methods == ["tools/call"]
    assert counted(telemetry) == {}


@pytest.mark.parametrize("asked_for", [MODERN, "2027-01-01", "2025-11-25"])
@pytest.mark.parametrize("name", LEGACY)
async def test_the_requested_revision_does_not_decide_the_recorded_one(
    name: str, asked_for: str, telemetry: Telemetry
) -> None:
    async with serving(name, telemetry) as app:
        await begun(app)
        reply, spans = await asked(app, telemetry, initialize(version=asked_for, name="rusty"), [])
        session_id = reply.headers["mcp-session-id"]
        _, calls = await asked(app, telemetry, call(), legacy_headers(session_id))

    (span,) = spans
    attributes = dict(span.attributes or {})
    assert (attributes["session.id"], attributes["mcp.session.id"]) == (session_id, session_id)
    assert attributes["mcp.protocol.version"] == "2025-11-25"
    for one in (span, calls[0]):
        assert (one.attributes or {})["otel_mcp.client.name"] == "rusty"
        assert (one.attributes or {})["otel_mcp.session.source"] == "header"
        assert (one.attributes or {})["session.id"] == session_id


@pytest.mark.parametrize("name", ["route", "bare"])
async def test_the_same_holds_where_a_header_asks_for_it(name: str, telemetry: Telemetry) -> None:
    async with serving(name, telemetry) as app:
        await begun(app)
        reply, spans = await asked(app, telemetry, initialize(version=MODERN), [("mcp-protocol-version", MODERN)])

    assert (spans[0].attributes or {})["session.id"] == reply.headers["mcp-session-id"]


@pytest.mark.parametrize("given", [None, "own"])
@pytest.mark.parametrize("header", [False, True], ids=["no header", "stray header"])
async def test_a_message_without_sessions_has_no_transport_session_on_its_span(
    given: str | None, header: bool, telemetry: Telemetry
) -> None:
    """Nor where the server puts an id on its answer."""

    async def serve(scope: Message, receive: Receive, send: Send) -> None:
        async def giving(message: Message) -> None:
            if given is not None and message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (b"mcp-session-id", given.encode())]}
            await send(message)

        await Server()(scope, receive, giving)

    headers = [("mcp-protocol-version", MODERN), *([("mcp-session-id", "own")] if header else [])]
    for _ in range(2):
        await post(MCPMiddleware(serve), modern_call(), headers)

    for span in telemetry.spans():
        assert "mcp.session.id" not in (span.attributes or {})
        assert (span.attributes or {}).get("session.id") != "own"


async def test_a_delete_ends_a_session_in_any_revision(telemetry: Telemetry) -> None:
    async with serving("bare", telemetry) as app:
        session_id = await begun(app)
        await delete(app, [("mcp-session-id", session_id), ("mcp-protocol-version", MODERN)])

    runtime = current.runtime
    assert runtime is not None
    assert runtime.resolver.registry.get(session_id) is None


@pytest.mark.parametrize("name", [name for name in LEGACY if " " in name])
async def test_an_sdks_http_refusal_is_no_invalid_arguments_failure(name: str, telemetry: Telemetry) -> None:
    async with serving(name, telemetry) as app:
        headers = [("mcp-session-id", await begun(app)), ("mcp-protocol-version", "1999-01-01")]

        reply, spans = await asked(app, telemetry, call(), headers)

    assert reply.status == 400
    assert [(span.attributes or {}).get("otel_mcp.failure") for span in spans] == ["refused"]
