"""Open streams, calls in flight and the sessions that an SDK holds, as a reader of metrics sees them."""

from __future__ import annotations

import gc
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from otel_mcp import MCPMiddleware
from otel_mcp.bounded import BoundedNames
from otel_mcp.model.delta import OpenCall
from otel_mcp.runtime import Runtime
from otel_mcp.telemetry.census import Census
from otel_mcp.telemetry.recorder import Recorder
from otel_mcp.types import Message, Receive, Send
from tests.support.answers import Server, initialized, result
from tests.support.asgi import delete, get, make_scope, post, read, request, respond
from tests.support.messages import (
    CLIENT_INFO,
    MODERN,
    MODERN_HEADERS,
    ask,
    call,
    initialize,
    legacy_headers,
    modern,
)
from tests.support.providers import Clock, Telemetry
from tests.unit.exchange.test_inflight import ENDPOINT, POSTS, Streams, settled
from tests.unit.exchange.test_inflight import opened as stream_of

pytestmark = pytest.mark.anyio

KIND, CLIENT, TOOL, METHOD = "otel_mcp.stream.kind", "otel_mcp.client.name", "gen_ai.tool.name", "mcp.method.name"
NONE_OPEN = {"get": 0, "listen": 0, "post": 0, "sse": 0}
Ask = Callable[[MCPMiddleware], Coroutine[Any, Any, Any]]


class Held:
    """A server whose event streams, and whose calls of the tool `hang`, last until the test ends them."""

    def __init__(self, first: bytes = b"", content_type: bytes = b"text/event-stream") -> None:
        self._first = first
        self._content_type = content_type
        self._server = Server(session_id="own")
        self.opened = anyio.Event()
        self.over = anyio.Event()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["method"] == "DELETE" or scope["path"] != "/stream":
            await self._server(scope, receive, send)
            return
        await read(receive)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", self._content_type)]})
        await send({"type": "http.response.body", "body": self._first, "more_body": True})
        self.opened.set()
        await self.over.wait()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def get_stream(*headers: tuple[str, str]) -> Ask:
    return lambda app: get(app, headers, "/stream")


def post_stream(message: Message, headers: Any) -> Ask:
    return lambda app: post(app, message, headers, path="/stream")


GET = get_stream(*legacy_headers("own"))
SSE = get_stream()
LISTEN = post_stream(
    ask("subscriptions/listen", 5, _meta={CLIENT_INFO: {"name": "unit-client", "version": "9"}}),
    [("mcp-protocol-version", MODERN), ("mcp-method", "subscriptions/listen")],
)
POST = post_stream(call(), legacy_headers("own"))


@asynccontextmanager
async def opened(app: MCPMiddleware, server: Held, ask: Ask) -> AsyncGenerator[None]:
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(ask, app)
            await server.opened.wait()
            yield
            server.over.set()


def open_now(telemetry: Telemetry) -> dict[str, int]:
    return {attributes[KIND]: count for attributes, count in telemetry.points("otel_mcp.stream.active")}


@pytest.mark.parametrize(
    ("first", "ask", "kind"), [(b"", GET, "get"), (ENDPOINT, SSE, "sse"), (b"", LISTEN, "listen"), (b"", POST, "post")]
)
async def test_a_stream_is_counted_while_open_and_measured_at_its_end(
    clock: Clock, runtime: Runtime, telemetry: Telemetry, first: bytes, ask: Ask, kind: str
) -> None:
    server = Held(first)
    app = MCPMiddleware(server, runtime)
    await post(app, initialize())
    await post(app, call(), legacy_headers("own"))

    async with opened(app, server, ask):
        clock.now += 90
        during = open_now(telemetry)

    assert (during, open_now(telemetry)) == ({**NONE_OPEN, kind: 1}, NONE_OPEN)
    client = {CLIENT: "unit-client"} if kind != "sse" else {}  # Nobody has shaken hands on it.
    assert telemetry.points("otel_mcp.stream.duration") == [({KIND: kind, **client}, (1, pytest.approx(90)))]


async def test_a_stream_of_2024_11_05_knows_the_client_of_its_handshake(runtime: Runtime, telemetry: Telemetry) -> None:
    server = Streams(ENDPOINT)
    app = MCPMiddleware(server, runtime)

    async with stream_of(server, app):
        await post(app, initialize(0), **POSTS)  # type: ignore[arg-type]
        await server.put(initialized(0, "2024-11-05"))
        await settled()

    assert telemetry.counts("otel_mcp.stream.duration") == {frozenset({(KIND, "sse"), (CLIENT, "unit-client")}): 1}


@pytest.mark.parametrize(("ask", "kind"), [(POST, "post"), (LISTEN, "listen")])
async def test_a_short_answer_is_no_stream_but_a_subscription_is(
    clock: Clock, runtime: Runtime, telemetry: Telemetry, ask: Ask, kind: str
) -> None:
    server = Held()

    async with opened(MCPMiddleware(server, runtime), server, ask):
        clock.now += 0.9
        during = open_now(telemetry)

    counted = int(kind == "listen")
    assert during == {**NONE_OPEN, kind: counted}
    assert sum(telemetry.counts("otel_mcp.stream.duration").values()) == counted


async def test_other_event_streams_and_answers_in_json_are_not_counted(
    clock: Clock, runtime: Runtime, telemetry: Telemetry
) -> None:
    for server, asking in ((Held(b"data: prices\n\n"), SSE), (Held(content_type=b"application/json"), POST)):
        async with opened(MCPMiddleware(server, runtime), server, asking):
            clock.now += 90
            assert open_now(telemetry) == NONE_OPEN

    assert telemetry.points("otel_mcp.stream.duration") == []


async def test_a_client_that_leaves_ends_its_stream(runtime: Runtime, telemetry: Telemetry) -> None:
    left, opened_stream = anyio.Event(), anyio.Event()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "http.request"
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        opened_stream.set()
        assert (await receive())["type"] == "http.disconnect"

    async with anyio.create_task_group() as group:
        scope = make_scope("GET", headers=[("accept", "text/event-stream"), *legacy_headers("own")])
        group.start_soon(lambda: request(MCPMiddleware(app, runtime), scope, left=left))
        await opened_stream.wait()
        assert open_now(telemetry)["get"] == 1
        left.set()

    assert open_now(telemetry) == NONE_OPEN
    assert runtime.metrics.census.streams == {}


async def test_a_stream_whose_app_raises_has_ended(runtime: Runtime, telemetry: Telemetry) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        raise ValueError("secret")

    reply = await get(MCPMiddleware(app, runtime), legacy_headers("own"))

    assert (type(reply.error), runtime.metrics.census.streams) == (ValueError, {})
    assert sum(telemetry.counts("otel_mcp.stream.duration").values()) == 1


async def test_calls_in_flight_are_counted_by_tool_with_the_oldest_age(
    clock: Clock, runtime: Runtime, telemetry: Telemetry
) -> None:
    over, census = anyio.Event(), runtime.metrics.census
    running: list[str] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        message = await read(receive)
        running.append(message.decode())
        if b'"hang' in message:
            await over.wait()
        await respond(send, result(json_id_of(message)))

    wrapped = MCPMiddleware(app, runtime)
    for tool in ("hang", "add"):
        runtime.metrics.catalogues.tools.learn((tool,))

    def ages() -> dict[str, float]:
        points = telemetry.points("otel_mcp.call.oldest")
        return {attributes[TOOL]: round(age, 3) for attributes, age in points}

    def in_flight() -> dict[str, int]:
        return {attributes[TOOL]: count for attributes, count in telemetry.points("otel_mcp.requests.active")}

    await post(wrapped, modern("add"), MODERN_HEADERS)
    assert (ages(), in_flight()) == ({"add": 0}, {"add": 0})
    async with anyio.create_task_group() as group:
        for number, tool in enumerate(("hang", "hang", "hang-by-a-stranger"), 1):
            headers = [*MODERN_HEADERS[:2], ("mcp-name", tool)]
            group.start_soon(post, wrapped, modern(tool, number), headers)
            while len(running) <= number:
                await anyio.lowlevel.checkpoint()
            clock.now += 100

        assert (ages(), in_flight()) == (
            {"hang": 300, "_OTHER": 100, "add": 0},
            {"hang": 2, "_OTHER": 1, "add": 0},
        )
        now = clock.now
        assert [(call.tool_name, round(now - call.started_at)) for call in census.hanging("shop-0")] == [
            ("hang", 300),
            ("hang", 200),
            ("hang-by-a-stranger", 100),
        ]
        over.set()

    assert census.hanging("shop-0") == []
    assert set(ages().values()) == set(in_flight().values()) == {0}


def json_id_of(message: bytes) -> int:
    return int(message.split(b'"id": ')[1].split(b",")[0])


async def test_the_five_oldest_tool_calls_of_some_seconds_hang_with_their_sessions(
    clock: Clock, runtime: Runtime
) -> None:
    app = MCPMiddleware(Server(session_id="own"), runtime)
    census, over, began, begun = runtime.metrics.census, anyio.Event(), clock.now, []

    async def hanging(scope: Message, receive: Receive, send: Send) -> None:
        begun.append(await read(receive))
        await over.wait()
        await respond(send, result())

    await post(app, initialize())
    async with anyio.create_task_group() as group:
        for message in (ask("tools/list", 1), *(call(f"tool{number}", number) for number in range(2, 9))):
            begun.clear()
            group.start_soon(post, MCPMiddleware(hanging, runtime), message, legacy_headers("own"))
            while not begun:
                await anyio.lowlevel.checkpoint()
            clock.now += 1

        clock.now += 0.5
        assert [each._replace(started_at=round(each.started_at - began)) for each in census.hanging("shop-0")] == [
            OpenCall(f"tool{number}", number - 1, "own", "shop-0") for number in (2, 3, 4)
        ]
        clock.now += 60
        assert [each.tool_name for each in census.hanging("")] == ["tool2", "tool3", "tool4", "tool5", "tool6"]
        over.set()


async def test_other_methods_are_counted_without_a_tool(runtime: Runtime, telemetry: Telemetry) -> None:
    app = MCPMiddleware(Server(session_id="own"), runtime)
    await post(app, initialize())
    await post(app, ask("tools/list"), legacy_headers("own"))
    await post(app, ask("strangers/method"), legacy_headers("own"))
    await delete(app, legacy_headers("own"))

    points = {attributes[METHOD]: count for attributes, count in telemetry.points("otel_mcp.requests.active")}
    assert points == {"initialize": 0, "tools/list": 0, "_OTHER": 0}
    assert telemetry.points("otel_mcp.call.oldest") == []


def test_a_forked_child_begins_with_nothing_open(runtime: Runtime) -> None:
    census = runtime.metrics.census
    census.streams[object()] = 1.0  # type: ignore[index]
    census.calls[object()] = None  # type: ignore[index]

    recorder: Recorder = runtime.recorder
    recorder.clear()

    assert (census.streams, census.calls) == ({}, {})


class Holder:
    def __init__(self, *sessions: str) -> None:
        self.sessions: Any = dict.fromkeys(sessions)


def test_sessions_of_every_holder_are_counted_for_as_long_as_it_lives() -> None:
    census, first, second = Census(BoundedNames(1)), Holder("a", "b"), Holder()
    assert census.transport_sessions() is None

    for _ in range(2):
        census.watch(first, "sessions")
        census.watch(second, "sessions")
    assert census.transport_sessions() == 2
    second.sessions["c"] = None
    assert census.transport_sessions() == 3
    del first
    gc.collect()
    assert census.transport_sessions() == 1
    del second
    gc.collect()
    assert census.transport_sessions() is None


def test_what_cannot_be_read_or_watched_is_left_out() -> None:
    census, odd, readable = Census(BoundedNames(1)), Holder(), Holder("a")
    odd.sessions = None
    census.watch(odd, "sessions")
    census.watch(odd, "gone")
    census.watch(7, "sessions")
    assert census.transport_sessions() is None

    census.watch(readable, "sessions")
    assert census.transport_sessions() == 1
