"""The SDK 1.x: a handler answers by `respond`, in a task that carries the context of `initialize`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from contextvars import Context, copy_context
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from opentelemetry.trace import SpanKind

from otel_mcp import MCPMiddleware, current
from otel_mcp.integrations import mcp_v1
from otel_mcp.integrations.patching import Patches
from otel_mcp.runtime import Runtime
from otel_mcp.types import Message, Receive, Send
from tests.support.asgi import post, read, respond
from tests.support.messages import ask, call, initialize, legacy_headers
from tests.support.providers import Telemetry, described, id_of

pytestmark = pytest.mark.anyio

Handler = Callable[[Any], Awaitable[Any]]


def make_lowlevel() -> ModuleType:
    """A module like ``mcp.server.lowlevel.server`` of the SDK 1.x."""

    class Server:
        def __init__(self, handler: Handler) -> None:
            self.handler = handler
            self._tool_cache: dict[str, object] = {}

        async def _handle_request(self, message: Any, req: Any) -> None:
            response = await self.handler(req)
            if response is None:  # Cancelled by its client, to whom the SDK has said so already.
                message.cancelled = True
            else:
                await message.respond(response)

        async def _get_cached_tool_definition(self, tool_name: str) -> object:
            return self._tool_cache.get(tool_name)

        def _make_error_result(self, error_message: str) -> Any:
            return SimpleNamespace(root=SimpleNamespace(isError=True))

    module = ModuleType("fake_lowlevel")
    module.__dict__["Server"] = Server
    return module


class Sdk1:
    """An ASGI app on the stand-in of the SDK 1.x."""

    def __init__(self, module: ModuleType, handler: Handler, *, coerces_ids: bool = False) -> None:
        self.server = module.Server(handler)
        self.coerces_ids = coerces_ids
        self.context: Context | None = None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        message = json.loads(await read(receive))
        if self.coerces_ids:  # As up to 1.9.
            message["id"] = int(message["id"])
        own = [("mcp-session-id", "own")]
        if message["method"] == "initialize":
            self.context = copy_context()
            await respond(send, {"jsonrpc": "2.0", "id": message["id"], "result": {}}, 200, own)
            return
        answers: list[Any] = []

        async def answer(response: Any) -> None:
            answers.append(response)

        incoming = SimpleNamespace(
            message_metadata=SimpleNamespace(request_context=SimpleNamespace(scope=scope)),
            request_id=message["id"],
            respond=answer,
        )
        req = SimpleNamespace(method=message["method"], params=message["params"])
        serving = self.server._handle_request(incoming, req)
        await (self.context.run(asyncio.ensure_future, serving) if self.context is not None else serving)
        response = answers[0] if answers else SimpleNamespace(code=0, message="Request cancelled")
        payload = {"error": vars(response)} if hasattr(response, "code") else {"result": vars(response.root)}
        await respond(send, {"jsonrpc": "2.0", "id": message["id"], **payload}, 200, own)


@pytest.fixture
def lowlevel(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The patched stand-in of the SDK 1.x."""
    monkeypatch.setattr(current, "runtime", runtime)
    module, patches = make_lowlevel(), Patches()
    mcp_v1.lowlevel_server(module, patches)
    yield module
    patches.restore()


async def test_a_message_has_our_span_around_its_handler(lowlevel: ModuleType, telemetry: Telemetry) -> None:
    tracer = telemetry.tracer_provider.get_tracer("a library")

    async def handler(req: Any) -> Any:
        with tracer.start_as_current_span("SELECT"):
            return SimpleNamespace(root=SimpleNamespace(isError=req.params["name"] == "fail"))

    app = MCPMiddleware(Sdk1(lowlevel, handler))
    http = telemetry.tracer_provider.get_tracer("http instrumentation")
    for number, message in enumerate((initialize(), call(request_id=1), call("fail", request_id=2))):
        with http.start_as_current_span(f"POST {number}", kind=SpanKind.SERVER):
            await post(app, message, legacy_headers("own") if number else ())

    spans = {span.name: span for span in telemetry.spans()}
    messages = [span for span in telemetry.spans() if described(span)["scope"] == "otel_mcp"]
    assert [span.name for span in messages] == ["initialize", "tools/call add", "tools/call fail"]
    assert [described(span)["parent"] for span in messages] == [id_of(spans[f"POST {number}"]) for number in range(3)]
    assert [(span.attributes or {}).get("error.type") for span in messages] == [None, None, "tool_error"]
    assert {(span.attributes or {})["session.id"] for span in messages} == {"own"}
    works = [span for span in telemetry.spans() if span.name == "SELECT"]
    assert [described(span)["parent"] for span in works] == [id_of(span) for span in messages[1:]]


async def test_a_call_that_the_sdk_ends_without_an_answer_was_cancelled(
    lowlevel: ModuleType, telemetry: Telemetry
) -> None:
    async def handler(_: Any) -> Any:
        return None

    await post(MCPMiddleware(Sdk1(lowlevel, handler)), call(), legacy_headers("own"))

    span = telemetry.span()
    assert span.status.status_code.name == "ERROR"
    assert (span.attributes or {})["error.type"] == "cancelled"
    assert (span.attributes or {})["otel_mcp.failure"] == "cancelled"


async def test_an_error_is_its_code(lowlevel: ModuleType, telemetry: Telemetry) -> None:
    for code in (-32602, -32603):

        async def handler(_: Any, code: int = code) -> Any:
            return SimpleNamespace(code=code, message="secret")

        await post(MCPMiddleware(Sdk1(lowlevel, handler)), ask("resources/read", uri="res://x"), legacy_headers("own"))

    names = ("error.type", "rpc.response.status_code")
    found = [tuple(map((span.attributes or {}).get, names)) for span in telemetry.spans()]
    assert found == [(None, "-32602"), ("-32603", "-32603")]


async def test_fastmcp_2_knows_no_such_tool_before_it_has_listed_them(
    lowlevel: ModuleType, telemetry: Telemetry
) -> None:
    class NotFoundError(Exception):
        pass

    lowlevel.__dict__["Server"] = type("Server", (lowlevel.Server,), {"__module__": "fastmcp.server.low_level"})
    sdk = Sdk1(lowlevel, lambda _: missing())

    async def missing() -> Any:
        try:
            raise NotFoundError("secret")
        except NotFoundError as error:
            return sdk.server._make_error_result(str(error))

    await post(MCPMiddleware(sdk), call(), legacy_headers("own"))

    assert (telemetry.span().attributes or {})["otel_mcp.failure"] == "unknown_tool"


async def test_a_number_that_the_sdk_makes_of_an_id_is_that_id(lowlevel: ModuleType, telemetry: Telemetry) -> None:
    async def handler(_: Any) -> Any:
        return SimpleNamespace(root=SimpleNamespace(isError=True))

    app = MCPMiddleware(Sdk1(lowlevel, handler, coerces_ids=True))
    await post(app, call(request_id="7"), legacy_headers("own"))

    attributes = telemetry.span().attributes or {}
    assert (attributes["jsonrpc.request.id"], attributes["error.type"]) == ("7", "tool_error")


async def test_a_handler_that_raises_passes_untouched(lowlevel: ModuleType, telemetry: Telemetry) -> None:
    problem = ValueError("secret")

    async def handler(_: Any) -> Any:
        raise problem

    reply = await post(MCPMiddleware(Sdk1(lowlevel, handler)), call(), legacy_headers("own"))

    assert reply.error is problem
    assert (telemetry.span().attributes or {})["error.type"] == "ValueError"
    assert "secret" not in telemetry.everything()
