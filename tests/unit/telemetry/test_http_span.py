"""The HTTP server span: one for each MCP request that no HTTP instrumentation has one for, on every kind of server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.instrumentation.propagators import (
    TraceResponsePropagator,
    get_global_response_propagator,
    set_global_response_propagator,
)
from opentelemetry.instrumentation.utils import suppress_http_instrumentation, suppress_instrumentation
from opentelemetry.sdk.trace import ReadableSpan
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from otel_mcp import MCPInstrumentor, MCPMiddleware, current
from otel_mcp.runtime import Runtime
from otel_mcp.types import ASGIApp, Message, Receive, Send
from tests.support.answers import Server
from tests.support.asgi import delete, get, post, read, respond
from tests.support.messages import MODERN_HEADERS, call, initialize, legacy_headers, modern
from tests.support.providers import Telemetry, described, id_of
from tests.unit.conftest import MakeRuntime

pytestmark = pytest.mark.anyio
SPAN_OF_OURS = "otel_mcp.http"
OTHER_SPAN = "opentelemetry.instrumentation.asgi"


@pytest.fixture
def traced(make_runtime: MakeRuntime) -> Runtime:
    """A runtime that opens HTTP spans where nobody else does."""
    return make_runtime(http_span="auto")


def of_scope(telemetry: Telemetry, scope: str) -> list[ReadableSpan]:
    return [span for span in telemetry.spans() if described(span)["scope"] == scope]


async def test_a_bare_app_has_one_with_the_stable_names(traced: Runtime, telemetry: Telemetry) -> None:
    app = MCPMiddleware(Server(), traced)

    for _ in range(2):
        await post(app, modern(), MODERN_HEADERS, query="token=secret")

    first, second = of_scope(telemetry, SPAN_OF_OURS)
    assert described(first) == {**described(second), "parent": None}
    assert described(second) == {
        "name": "POST /mcp",
        "kind": "SERVER",
        "scope": SPAN_OF_OURS,
        "parent": None,
        "attributes": {
            "url.scheme": "http",
            "server.address": "127.0.0.1",
            "server.port": 8000,
            "network.protocol.version": "1.1",
            "url.path": "/mcp",
            "http.request.method": "POST",
            "user_agent.original": "unit/1",
            "client.address": "127.0.0.1",
            "client.port": 50_000,
            "http.response.status_code": 200,
        },
        "status": ("UNSET", None),
        "events": [],
        "links": [],
    }
    messages = of_scope(telemetry, "otel_mcp")
    assert [described(span)["parent"] for span in messages] == [id_of(first), id_of(second)]


@pytest.mark.parametrize(
    ("opted", "names"),
    [
        ("http", {"http.request.method"}),
        ("http/dup", {"http.request.method", "http.method"}),
        ("", {"http.request.method"}),
    ],
)
async def test_old_names_only_where_both_are_asked_for(
    make_runtime: MakeRuntime, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch, opted: str, names: set[str]
) -> None:
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", opted)

    await post(MCPMiddleware(Server(), make_runtime(http_span="auto")), modern(), MODERN_HEADERS)

    (span,) = of_scope(telemetry, SPAN_OF_OURS)
    assert {"http.request.method", "http.method"} & set(span.attributes or {}) == names


@pytest.mark.parametrize("outside", [True, False], ids=["around us", "between us and the app"])
@pytest.mark.parametrize("first", [True, False], ids=["first request", "later request"])
async def test_where_an_instrumentation_makes_one_there_is_none_of_ours(
    traced: Runtime, telemetry: Telemetry, outside: bool, first: bool
) -> None:
    provider = telemetry.tracer_provider
    server = Server()
    app: ASGIApp = (
        OpenTelemetryMiddleware(MCPMiddleware(server, traced), tracer_provider=provider)
        if outside
        else MCPMiddleware(OpenTelemetryMiddleware(server, tracer_provider=provider), traced)
    )

    for _ in range(1 if first else 3):
        await post(app, modern(), MODERN_HEADERS)

    assert of_scope(telemetry, SPAN_OF_OURS) == []
    assert len([span for span in of_scope(telemetry, OTHER_SPAN) if span.kind is trace.SpanKind.SERVER]) == (
        1 if first else 3
    )


async def test_requests_that_carry_no_message_have_one_too(traced: Runtime, telemetry: Telemetry) -> None:
    app = MCPMiddleware(Server(session_id="own"), traced)
    await post(app, initialize())

    await get(app, legacy_headers("own"))
    await delete(app, legacy_headers("own"))

    assert [span.name for span in of_scope(telemetry, SPAN_OF_OURS)] == ["POST /mcp", "GET /mcp", "DELETE /mcp"]


async def test_other_traffic_has_none(traced: Runtime, telemetry: Telemetry) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await read(receive)
        await respond(send, {"a": 1})

    await post(MCPMiddleware(app, traced), {"a": 1})
    await get(MCPMiddleware(app, traced))

    assert telemetry.spans() == []


@pytest.mark.parametrize("raised", [False, True])
async def test_a_server_that_fails_is_an_error_without_its_text(
    traced: Runtime, telemetry: Telemetry, raised: bool
) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await read(receive)
        if raised:
            raise LookupError("secret")
        await respond(send, {"secret": 1}, 503)

    reply = await post(MCPMiddleware(app, traced), modern(), MODERN_HEADERS)

    (span,) = of_scope(telemetry, SPAN_OF_OURS)
    assert type(reply.error) is (LookupError if raised else type(None))
    assert described(span)["status"][0] == "ERROR"
    assert (span.attributes or {})["error.type"] == ("LookupError" if raised else "503")
    assert "secret" not in telemetry.everything()


async def test_it_brings_no_metrics_whose_attributes_a_stranger_chooses(traced: Runtime, telemetry: Telemetry) -> None:
    for host in ("one.example", "two.example"):
        await post(MCPMiddleware(Server(), traced), modern(), [*MODERN_HEADERS, ("host", host)])

    assert not [name for name in telemetry.metrics() if name.startswith("http.")]


async def test_headers_are_captured_where_the_standard_variables_ask(
    make_runtime: MakeRuntime, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST", "x-team,x-secret")
    monkeypatch.setenv("OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_RESPONSE", "content-type")
    monkeypatch.setenv("OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SANITIZE_FIELDS", "x-secret")
    app = MCPMiddleware(Server(), make_runtime(http_span="auto"))

    await post(app, modern(), [*MODERN_HEADERS, ("x-team", "blue"), ("x-secret", "plain")])

    attributes = of_scope(telemetry, SPAN_OF_OURS)[0].attributes or {}
    assert attributes["http.request.header.x_team"] == ("blue",)
    assert attributes["http.request.header.x_secret"] == ("[REDACTED]",)
    assert attributes["http.response.header.content_type"] == ("application/json",)


@pytest.fixture
def response_propagator() -> Iterator[None]:
    before = get_global_response_propagator()
    set_global_response_propagator(TraceResponsePropagator())
    yield
    set_global_response_propagator(before)


@pytest.mark.usefixtures("response_propagator")
async def test_a_response_propagator_names_the_span(traced: Runtime, telemetry: Telemetry) -> None:
    reply = await post(MCPMiddleware(Server(), traced), modern(), MODERN_HEADERS)

    (span,) = of_scope(telemetry, SPAN_OF_OURS)
    assert id_of(span) in reply.headers["traceresponse"]


async def test_on_opens_one_within_that_of_others_and_off_opens_none(
    make_runtime: MakeRuntime, telemetry: Telemetry
) -> None:
    tracer = telemetry.tracer_provider.get_tracer("http instrumentation")
    for setting in ("on", "off"):
        with tracer.start_as_current_span("outer", kind=trace.SpanKind.SERVER):
            await post(MCPMiddleware(Server(), make_runtime(http_span=setting)), modern(), MODERN_HEADERS)

    (span,) = of_scope(telemetry, SPAN_OF_OURS)
    assert span.kind is trace.SpanKind.INTERNAL
    assert described(span)["parent"] == id_of(next(span for span in telemetry.spans() if span.name == "outer"))


@pytest.mark.parametrize("suppress", [suppress_instrumentation, suppress_http_instrumentation])
async def test_where_instrumentation_is_suppressed_there_is_none(
    traced: Runtime, telemetry: Telemetry, suppress: Any
) -> None:
    with suppress():
        await post(MCPMiddleware(Server(), traced), modern(), MODERN_HEADERS)

    assert of_scope(telemetry, SPAN_OF_OURS) == []


async def test_what_is_kept_of_requests_is_bounded_and_tells_them_apart(traced: Runtime, telemetry: Telemetry) -> None:
    app = MCPMiddleware(Server(), traced)
    requests = [
        (path, (address, port))
        for port in (1000, 1001)
        for path, address in (
            ("/one", "10.0.0.1"),
            ("/two", "10.0.0.1"),
            ("/two", "10.0.0.2"),
            ("/" * 2000, "10.0.0.3"),
        )
    ]
    for path, client in requests:
        await post(app, modern(), MODERN_HEADERS, path=path, client=client)

    spans = [dict(span.attributes or {}) for span in of_scope(telemetry, SPAN_OF_OURS)]
    assert [(span["url.path"], (span["client.address"], span["client.port"])) for span in spans] == requests
    for number in range(600):
        await post(app, modern(), MODERN_HEADERS, path=f"/{number}")
    known = traced.http_spans._library._known  # type: ignore[union-attr]  # pyright: ignore
    assert len(known) <= 512
    assert not [key for key in known if len(str(key)) > 2000]


async def test_a_route_of_starlette_runs_beneath_it(telemetry: Telemetry) -> None:
    tracer = telemetry.tracer_provider.get_tracer("a library")

    async def endpoint(request: Request) -> JSONResponse:
        message = await request.json()
        with tracer.start_as_current_span("query"):
            return JSONResponse({"jsonrpc": "2.0", "id": message["id"], "result": {"content": []}})

    MCPInstrumentor().instrument(
        tracer_provider=telemetry.tracer_provider, meter_provider=telemetry.meter_provider, service_name="unit"
    )
    try:
        app: Any = Starlette(routes=[Route("/mcp", endpoint, methods=["POST"])])
        for number in range(2):
            body = json.dumps(call(request_id=number)).encode()
            await post(app, body, [("content-length", str(len(body)))])
            *_, http = of_scope(telemetry, SPAN_OF_OURS)
            *_, message = of_scope(telemetry, "otel_mcp")
            *_, query = of_scope(telemetry, "a library")
            parents = [described(span)["parent"] for span in (http, message, query)]
            assert parents == [None, id_of(http), id_of(message)]
    finally:
        MCPInstrumentor().uninstrument()
        current.discard()
    assert len(telemetry.spans()) == 6


@pytest.mark.parametrize("sent", [b"", b'{"jsonrpc'], ids=["headers", "half a body"])
async def test_an_app_that_raises_within_its_answer_is_an_error(
    traced: Runtime, telemetry: Telemetry, sent: bytes
) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        if b"ping" in await read(receive):
            return await respond(send, {"jsonrpc": "2.0", "id": 1, "result": {}})
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if sent:
            await send({"type": "http.response.body", "body": sent, "more_body": True})
        raise LookupError("secret")

    watched, ping = MCPMiddleware(app, traced), {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    replies = [await post(watched, message, legacy_headers("x")) for message in (call(), ping, call())]

    assert [type(reply.error) for reply in replies] == [LookupError, type(None), LookupError]
    failed = [(span.status.status_code.name, (span.attributes or {}).get("error.type")) for span in telemetry.spans()]
    broken = [("ERROR", "LookupError"), ("ERROR", "500")]
    assert failed == [*broken, ("UNSET", None), ("UNSET", None), *broken]
    assert "secret" not in telemetry.everything()
