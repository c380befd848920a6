"""One object serves a request, and no layer is handed the functions of another."""

from __future__ import annotations

import asyncio
import inspect
import json
import pkgutil
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextvars import copy_context
from importlib import import_module
from types import ModuleType
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from opentelemetry import context as otel_context
from opentelemetry import trace

from otel_mcp import MCPMiddleware, current, exchange
from otel_mcp.integrations import http
from otel_mcp.integrations.patching import Patches
from otel_mcp.model.call import SCOPE_KEY, Reading, current_exchange
from otel_mcp.runtime import Runtime
from otel_mcp.types import ASGIApp as App
from otel_mcp.types import Message, Receive, Send
from tests.support.answers import Server, error, initialized, result
from tests.support.asgi import JSON_HEADERS, event, make_scope, post, read, request, respond, stream
from tests.support.messages import call, initialize, legacy_headers
from tests.support.providers import Telemetry

pytestmark = pytest.mark.anyio

is_coroutine_function = inspect.iscoroutinefunction if sys.version_info >= (3, 12) else asyncio.iscoroutinefunction


async def test_receive_and_send_are_bound_methods_of_one_object(runtime: Runtime) -> None:
    owners: list[object] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        owners.extend([receive.__self__, send.__self__])  # type: ignore[attr-defined]  # pyright: ignore
        await read(receive)
        await respond(send, result())

    await post(MCPMiddleware(app, runtime), call())

    assert owners[0] is owners[1]
    assert type(owners[0]).__name__ == "ExchangeHandler"


async def test_receive_and_send_pass_for_coroutine_functions(runtime: Runtime) -> None:
    asked: list[bool] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        asked.extend([is_coroutine_function(receive), is_coroutine_function(send)])
        await read(receive)
        await respond(send, result())

    await post(MCPMiddleware(app, runtime), call())

    assert asked == [True, True]


async def test_an_answer_to_other_json_is_not_read_unless_an_sdk_serves_it(runtime: Runtime) -> None:
    seen: list[tuple[bool, int | None]] = []

    def serving(*, at_sdk: bool) -> App:
        async def app(scope: Message, receive: Receive, send: Send) -> None:
            await read(receive)
            scope[SCOPE_KEY].at_sdk = at_sdk
            await respond(send, {"fine": True})
            seen.append((scope[SCOPE_KEY].foreign, scope[SCOPE_KEY].status))

        return app

    for at_sdk in (False, True):
        reply = await post(MCPMiddleware(serving(at_sdk=at_sdk), runtime), {"number": 1})
        assert reply.status == 200

    assert seen == [(True, None), (True, 200)]


def classes() -> Iterator[type]:
    for module in pkgutil.iter_modules(exchange.__path__, f"{exchange.__name__}."):
        for _, found in inspect.getmembers(import_module(module.name), inspect.isclass):
            if found.__module__ == module.name:
                yield found


def takes_function(annotation: object) -> bool:
    return "Callable[" in str(annotation)


@pytest.mark.parametrize("found", list(classes()), ids=lambda found: found.__name__)
def test_a_constructor_takes_one_function_at_most(found: type[Any]) -> None:
    made: Callable[..., Any] = found.__init__
    parameters = inspect.signature(made).parameters.values()

    assert sum(takes_function(parameter.annotation) for parameter in parameters) <= 1


@pytest.fixture
def at_sdk(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> Callable[[App], App]:
    """Makes an app one that the transport of the SDK serves, which is observed."""

    def make(app: App) -> App:
        class StreamableHTTPSessionManager:
            stateless = False

            async def handle_request(self, scope: Message, receive: Receive, send: Send) -> None:
                await app(scope, receive, send)

        module = ModuleType("transport")
        module.__dict__["StreamableHTTPSessionManager"] = StreamableHTTPSessionManager
        http.session_manager(module, Patches())
        return StreamableHTTPSessionManager().handle_request

    monkeypatch.setattr(current, "runtime", runtime)
    return make


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_only_a_post_brings_a_message(
    runtime: Runtime, telemetry: Telemetry, at_sdk: Callable[[App], App], method: str
) -> None:
    inflight, streams = runtime.exchanges.inflight, list[object]()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        if scope["method"] == "POST":
            return await Server(session_id="own")(scope, receive, send)
        await read(receive)
        await stream(send, [event({"jsonrpc": "2.0", "method": "notifications/message"})])
        streams.append((scope[SCOPE_KEY].reading, scope[SCOPE_KEY].stream))

    served = at_sdk(app)
    await post(served, initialize())
    scope = make_scope(method, headers=[*JSON_HEADERS, *legacy_headers("own")])
    await request(served, scope, [json.dumps(call()).encode()])

    assert streams == [(Reading.STREAM, ("own", None) if method == "GET" else None)]
    assert (inflight.census.calls, inflight.waiting) == ({}, {})
    assert [span.name for span in telemetry.spans()] == ["initialize"]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("pieces", [1, 2])
async def test_a_refused_handshake_is_known_in_whatever_the_server_passes_on(
    runtime: Runtime, at_sdk: Callable[[App], App], kind: Callable[[bytes], bytes], pieces: int
) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await read(receive)
        await respond(send, error(-32602, 0))

    body = json.dumps(initialize()).encode()
    chunks = [body] if pieces == 1 else [body[:20], body[20:]]
    scope = make_scope(headers=[*JSON_HEADERS, ("mcp-protocol-version", "2025-11-25")])
    reply = await request(at_sdk(app), scope, [kind(chunk) for chunk in chunks])
    runtime.recorder.drain()

    assert set(reply.headers) == {"content-type", "content-length"}
    assert runtime.sessions.local == 0


async def test_a_body_that_the_server_uses_again_is_kept_as_it_was(at_sdk: Callable[[App], App]) -> None:
    kept: list[object] = []
    buffer = bytearray(json.dumps(call()).encode())

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await receive()
        buffer[:] = b" " * len(buffer)
        kept.append(json.loads(scope[SCOPE_KEY].unparsed_body))
        await respond(send, result())

    await request(at_sdk(app), make_scope(headers=[*JSON_HEADERS, *legacy_headers("own")]), [memoryview(buffer)])

    assert kept == [call()]


async def test_a_request_that_is_cancelled_with_its_start_held_ends(runtime: Runtime, telemetry: Telemetry) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await read(receive)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await anyio.sleep_forever()

    async def receive() -> Message:
        return {"type": "http.request", "body": json.dumps(initialize()).encode(), "more_body": False}

    async def send(_: Message) -> None:
        await anyio.lowlevel.checkpoint()

    before = otel_context.get_current()
    with anyio.move_on_after(0.01) as scope:
        await MCPMiddleware(app, runtime)(make_scope(headers=JSON_HEADERS), receive, send)

    assert scope.cancelled_caught
    assert current_exchange.get() is None
    assert otel_context.get_current() is before
    assert runtime.metrics.census.calls == {}
    assert [span.name for span in telemetry.spans()] == ["initialize"]


@pytest.mark.parametrize("at_once", [asyncio.gather, lambda *sent: asyncio.wait(map(asyncio.ensure_future, sent))])
async def test_a_start_that_is_kept_back_goes_before_a_body_sent_at_once(
    runtime: Runtime, at_once: Callable[..., Awaitable[object]]
) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        message = json.loads(await read(receive))
        start = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]}
        body = json.dumps(initialized(message["id"])).encode()
        await at_once(
            send(start),
            send({"type": "http.response.body", "body": body[:9], "more_body": True}),
            send({"type": "http.response.body", "body": body[9:]}),
        )

    reply = await post(MCPMiddleware(app, runtime), initialize())

    assert [message["type"] for message in reply.messages] == ["http.response.start", *["http.response.body"] * 2]
    assert json.loads(reply.body)["id"] == 0


async def test_a_request_that_a_collector_ends_changes_no_other_task(runtime: Runtime, telemetry: Telemetry) -> None:
    tracer = telemetry.tracer_provider.get_tracer("test")

    async def app(*_: object) -> Any:
        await asyncio.get_running_loop().create_future()

    def serve() -> Coroutine[Any, Any, Any]:
        with tracer.start_as_current_span("server"):
            serving: Any = MCPMiddleware(app, runtime)(make_scope(headers=JSON_HEADERS), app, app)
            serving.send(None)
            return serving

    served = copy_context().run(serve)
    with tracer.start_as_current_span("other") as other:
        served.close()
        assert trace.get_current_span() is other
    assert runtime.metrics.census.calls == {}
