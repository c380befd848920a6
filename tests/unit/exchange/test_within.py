"""The answer of a handler behind a compressing middleware is read where the handler sends it."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterator
from types import ModuleType

import pytest
import starlette.routing
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, Router

from otel_mcp import MCPMiddleware, current
from otel_mcp.integrations import handwritten, http
from otel_mcp.integrations.patching import Patches
from otel_mcp.runtime import Runtime
from otel_mcp.types import ASGIApp, Message, Receive, Send
from tests.support.answers import FAILED, result
from tests.support.asgi import event, post
from tests.support.messages import MODERN_HEADERS, modern
from tests.support.providers import Telemetry

pytestmark = pytest.mark.anyio

HEADERS = [*MODERN_HEADERS, ("accept-encoding", "gzip, br, zstd"), ("content-length", "1000")]


@pytest.fixture(autouse=True)
def routes(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Routes of Starlette are observed."""
    monkeypatch.setattr(current, "runtime", runtime)
    patches = Patches()
    http.route(starlette.routing, patches)
    yield
    patches.restore()


class Encoding:
    """A middleware that encodes as Starlette's does: in the app's own messages, the start together with the body."""

    def __init__(self, app: ASGIApp, name: bytes, encoded: bytes) -> None:
        self.app, self.name, self.encoded = app, name, encoded

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        held: list[Message] = []

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"].append((b"content-encoding", self.name))
                held.append(message)
                return
            if message.get("body"):
                message["body"] = self.encoded
            while held:
                await send(held.pop())
            await send(message)

        await self.app(scope, receive, sending)


def answers(response: Response) -> ASGIApp:
    async def endpoint(request: Request) -> Response:
        await request.body()
        return response

    return Router([Route("/mcp", endpoint, methods=["POST"])])


@pytest.mark.parametrize("encoding", [b"gzip", b"br", b"zstd", b"deflate", b"gzip, br"])
@pytest.mark.parametrize("stream", [False, True], ids=["JSON", "stream"])
async def test_a_failed_call_is_one_whatever_encodes_its_answer(
    runtime: Runtime, telemetry: Telemetry, encoding: bytes, stream: bool
) -> None:
    async def events() -> AsyncGenerator[bytes]:
        yield event({"jsonrpc": "2.0", "method": "notifications/progress"})
        yield event(result(1, FAILED))

    response: Response = (
        StreamingResponse(events(), media_type="text/event-stream") if stream else JSONResponse(result(1, FAILED))
    )
    app = MCPMiddleware(Encoding(answers(response), encoding, b"\x00who knows"), runtime)

    reply = await post(app, modern(), HEADERS)

    assert set(reply.body.split(b"\x00")) == {b"", b"who knows"}
    attributes = dict(telemetry.span().attributes or {})
    assert (attributes["error.type"], attributes["otel_mcp.failure"]) == ("tool_error", "tool")
    size = {
        dict(key)["gen_ai.tool.name"]: value for key, value in telemetry.counts("otel_mcp.tool.result.size").items()
    }
    assert size == {"_OTHER": 1}


@pytest.mark.parametrize("encoding", [b"identity", b"Identity", b" identity", b""])
async def test_what_is_not_encoded_is_read_as_it_leaves(
    runtime: Runtime, telemetry: Telemetry, encoding: bytes
) -> None:
    answer = json.dumps(result(1, FAILED)).encode()
    app = MCPMiddleware(Encoding(answers(JSONResponse(result())), encoding, answer), runtime)

    await post(app, modern(), HEADERS)

    assert dict(telemetry.span().attributes or {})["error.type"] == "tool_error"


@pytest.mark.parametrize("middleware", ["starlette", "brotli-asgi"])
async def test_a_failed_call_of_a_bare_app_is_read_inside_the_compression(
    runtime: Runtime, telemetry: Telemetry, middleware: str
) -> None:
    async def bare(scope: Message, receive: Receive, send: Send) -> None:
        await receive()
        await JSONResponse(result(1, {**FAILED, "padding": "x" * 1000}))(scope, receive, send)

    module = ModuleType("compression")
    patches = Patches()
    name, patch = {
        "starlette": ("GZipMiddleware", handwritten.gzip),
        "brotli-asgi": ("BrotliMiddleware", handwritten.brotli),
    }[middleware]
    setattr(module, name, type(name, (GZipMiddleware,), dict(vars(GZipMiddleware))))
    patch(module, patches)
    app = MCPMiddleware(getattr(module, name)(bare), runtime)

    for _ in range(2):
        reply = await post(app, modern(), HEADERS)
        assert reply.headers["content-encoding"] == "gzip"

    assert [dict(span.attributes or {}).get("error.type") for span in telemetry.spans()] == ["tool_error"] * 2


async def test_what_cannot_be_read_is_no_success(runtime: Runtime, telemetry: Telemetry) -> None:
    async def bare(scope: Message, receive: Receive, send: Send) -> None:
        await answers(JSONResponse(result(1, FAILED), headers={"content-encoding": "zstd"}))(scope, receive, send)

    app = MCPMiddleware(bare, runtime)
    await post(app, modern("made_up"), HEADERS)

    assert "otel_mcp.failure" not in (telemetry.span().attributes or {})
    (point,) = telemetry.points("mcp.server.operation.duration")
    assert (point[0]["gen_ai.tool.name"], "error.type" in point[0]) == ("_OTHER", False)  # Nor is its name proven.


async def test_a_bare_app_nests_beneath_its_calls_though_its_answers_are_encoded(
    runtime: Runtime, telemetry: Telemetry
) -> None:
    tracer = telemetry.tracer_provider.get_tracer("app")

    async def bare(scope: Message, receive: Receive, send: Send) -> None:
        await receive()
        with tracer.start_as_current_span("query"):
            headers = [(b"content-type", b"application/json"), (b"content-encoding", b"gzip")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"\x1f\x8bwho knows"})

    app = MCPMiddleware(bare, runtime)
    for _ in range(2):  # The first shows that nobody else opens a span.
        await post(app, modern(), HEADERS)

    spans = telemetry.spans()
    calls = {span.context.span_id for span in spans if span.context is not None and span.name.startswith("tools/call")}
    beneath = [span.parent.span_id in calls for span in spans if span.name == "query" and span.parent is not None]
    assert (len(calls), beneath) == (2, [True])


async def test_an_answer_that_is_no_mcp_is_left_alone(runtime: Runtime, telemetry: Telemetry) -> None:
    app = MCPMiddleware(Encoding(answers(JSONResponse({"id": 1, "result": {}})), b"gzip", b"x"), runtime)

    reply = await post(app, {"id": 1, "query": "q"}, [("accept-encoding", "gzip"), ("content-length", "20")])

    assert (reply.body, telemetry.spans()) == (b"x", [])


@pytest.mark.parametrize("answered", [500, 503, None])
async def test_what_a_route_raises_is_what_the_client_gets_of_it(
    runtime: Runtime, telemetry: Telemetry, answered: int | None
) -> None:
    async def endpoint(request: Request) -> Response:
        await request.body()
        raise LookupError("secret")

    routes = Router([Route("/mcp", endpoint, methods=["POST"])])

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        try:
            await routes(scope, receive, send)
        except LookupError:
            if answered is None:
                raise
            await Response("broken", answered)(scope, receive, send)

    for _ in range(2):
        await post(MCPMiddleware(app, runtime), modern(), MODERN_HEADERS)

    types = [(span.attributes or {}).get("error.type") for span in telemetry.spans()]
    assert types == [str(answered or 500)] * 2
