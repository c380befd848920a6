"""Answers that come on another stream than the response of their request, and those that never come."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial

import anyio
import pytest

from otel_mcp import MCPMiddleware
from otel_mcp.exchange.dispatch import Dispatch
from otel_mcp.model.call import SCOPE_KEY, Call
from otel_mcp.runtime import Runtime
from otel_mcp.types import Message, Receive, Send
from tests.support.answers import FAILED, OK, Server, error, initialized, result
from tests.support.asgi import Reply, delete, event, get, make_scope, post, read, request, respond, stream
from tests.support.messages import ask, call, initialize, legacy_headers, notify
from tests.support.providers import Clock, Telemetry

pytestmark = pytest.mark.anyio


class Streams:
    """A server whose GET streams send what the test puts on them, and whose POSTs are accepted only."""

    def __init__(self, first: bytes = b"", *, status: int = 202) -> None:
        self.first = first
        self.status = status
        self.opened = anyio.Event()
        self.sent, self._events = anyio.create_memory_object_stream[bytes | None](100)

    async def put(self, message: object) -> None:
        await self.sent.send(event(message))

    async def close(self) -> None:
        await self.sent.send(None)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["method"] == "POST":
            await read(receive)
            await respond(send, b"Accepted", self.status, content_type="text/plain")
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        if self.first:
            await send({"type": "http.response.body", "body": self.first, "more_body": True})
        self.opened.set()
        while (chunk := await self._events.receive()) is not None:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


ENDPOINT = b"event: endpoint\r\ndata: /messages/?session_id=0a1b2c3d\r\n\r\n"
POSTS = {"path": "/messages/", "query": "session_id=0a1b2c3d"}


async def settled() -> None:
    """Let everything that can run, run."""
    for _ in range(20):
        await anyio.lowlevel.checkpoint()


@asynccontextmanager
async def opened(
    server: Streams, app: MCPMiddleware, path: str = "/sse", *headers: tuple[str, str]
) -> AsyncGenerator[None]:
    """A client that holds a GET stream open."""
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(get, app, headers, path)
            await server.opened.wait()
            yield
            await server.close()


async def test_in_2024_11_05_the_answer_on_the_stream_ends_the_call(
    clock: Clock, runtime: Runtime, telemetry: Telemetry
) -> None:
    server = Streams(ENDPOINT)
    app = MCPMiddleware(server, runtime)

    async with opened(server, app):
        for number, answer in enumerate((result(0), result(1, FAILED), error(-32602, 2))):
            began = clock.now_ns
            reply = await post(app, initialize(0) if number == 0 else call(request_id=number), **POSTS)  # type: ignore[arg-type]
            assert reply.status == 202
            clock.now += 2
            await server.put(initialized(0, "2024-11-05") if number == 0 else answer)
            await settled()
            span = telemetry.spans()[-1]
            assert (span.start_time, span.end_time) == (began, pytest.approx(began + 2_000_000_000, abs=1000))

    spans = telemetry.spans()
    names = ("error.type", "rpc.response.status_code")
    assert [(span.name, *map((span.attributes or {}).get, names)) for span in spans] == [
        ("initialize", None, None),
        ("tools/call add", "tool_error", None),
        ("tools/call add", None, "-32602"),
    ]
    for span in spans:
        attributes = span.attributes or {}
        assert (attributes["session.id"], attributes["otel_mcp.session.source"]) == ("0a1b2c3d", "header")
        assert attributes["otel_mcp.client.name"] == "unit-client"
    assert [value for _, value in telemetry.points("mcp.server.operation.duration")] == [
        (1, pytest.approx(2)),
        (1, pytest.approx(2)),
        (1, pytest.approx(2)),
    ]


async def test_in_2024_11_05_the_end_of_the_stream_ends_the_session(runtime: Runtime, telemetry: Telemetry) -> None:
    server = Streams(ENDPOINT)
    app = MCPMiddleware(server, runtime)

    async with opened(server, app):
        await post(app, initialize(0), **POSTS)  # type: ignore[arg-type]
        await server.put(initialized())
        await post(app, call(), **POSTS)  # type: ignore[arg-type]
        await settled()
    await runtime.shut_down()

    assert [span.name for span in telemetry.spans()] == ["initialize", "tools/call add"]
    assert (telemetry.spans()[1].attributes or {})["error.type"] == "disconnected"
    assert [event["name"] for event in telemetry.events()] == ["session.start", "session.end"]
    assert [value for _, value in telemetry.points("otel_mcp.session.tool_calls")] == [(1, 1)]


async def test_in_2024_11_05_an_endpoint_that_comes_in_pieces_is_understood(
    runtime: Runtime, telemetry: Telemetry
) -> None:
    server = Streams()
    app = MCPMiddleware(server, runtime)

    async with opened(server, app):
        for byte in ENDPOINT.replace(b"\r\n", b"\n"):
            await server.sent.send(bytes([byte]))
        await settled()
        await post(app, call(), **POSTS)  # type: ignore[arg-type]
        await server.put(error(-7))
        await settled()

    assert (telemetry.span().attributes or {})["error.type"] == "-7"


async def test_an_event_stream_that_begins_otherwise_is_somebody_elses(runtime: Runtime, telemetry: Telemetry) -> None:
    server = Streams(b"event: prices\ndata: 7\n\n" + ENDPOINT)
    app = MCPMiddleware(server, runtime)

    async with opened(server, app, "/prices"):
        await server.put(result(1))
        await settled()

    await runtime.shut_down()
    assert telemetry.spans() == []
    assert telemetry.events() == []


@pytest.mark.parametrize("answered", [1, "1"])
async def test_the_answer_may_come_by_a_later_stream_of_the_same_session(
    clock: Clock, runtime: Runtime, telemetry: Telemetry, answered: object
) -> None:
    server = Streams()
    began = clock.now_ns

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        if scope["method"] == "POST":
            await read(receive)
            await stream(send, [b"id: 6\r\ndata: \r\nretry: 500\r\n\r\n"])
        else:
            await server(scope, receive, send)

    wrapped = MCPMiddleware(app, runtime)
    await post(wrapped, call(), legacy_headers("own"))
    assert telemetry.spans() == []
    clock.now += 3

    async with opened(server, wrapped, "/mcp", *legacy_headers("own"), ("last-event-id", "6")):
        await server.put(result(answered, FAILED))
        await settled()
        span = telemetry.span()

    assert (span.attributes or {})["error.type"] == "tool_error"
    assert (span.start_time, span.end_time) == (began, pytest.approx(began + 3_000_000_000, abs=1000))


async def test_an_answer_on_the_stream_of_another_session_is_not_taken(runtime: Runtime, telemetry: Telemetry) -> None:
    server = Streams()
    app = MCPMiddleware(server, runtime)

    async with opened(server, app, "/mcp", *legacy_headers("other")):
        await post(app, call(), legacy_headers("own"))
        await server.put(error(-1))
        await settled()
        assert telemetry.spans() == []


async def test_a_request_of_the_server_on_the_stream_is_no_answer(runtime: Runtime, telemetry: Telemetry) -> None:
    server = Streams(ENDPOINT)
    app = MCPMiddleware(server, runtime)

    async with opened(server, app):
        await post(app, call(request_id=1), **POSTS)  # type: ignore[arg-type]
        await server.put(ask("sampling/createMessage", 1))
        await server.put(notify("notifications/progress"))
        await settled()
        assert telemetry.spans() == []
        await server.put(result(1))
        await settled()
        assert [span.name for span in telemetry.spans()] == ["tools/call add"]


async def test_an_answer_that_does_not_come_within_ten_minutes_is_given_up(
    clock: Clock, runtime: Runtime, telemetry: Telemetry
) -> None:
    app = MCPMiddleware(Streams(), runtime)
    await post(app, call(), legacy_headers("own"))
    clock.now += 599
    await post(app, notify("notifications/progress"), legacy_headers("own"))
    assert telemetry.spans() == []

    clock.now += 2
    await post(app, notify("notifications/progress"), legacy_headers("own"))

    assert (telemetry.span().attributes or {})["error.type"] == "disconnected"


async def test_what_still_waits_when_the_process_ends_is_not_lost(runtime: Runtime, telemetry: Telemetry) -> None:
    app = MCPMiddleware(Streams(), runtime)
    await post(app, call(), legacy_headers("own"))

    await runtime.shut_down()

    assert (telemetry.span().attributes or {})["error.type"] == "disconnected"
    assert sum(telemetry.counts("mcp.server.operation.duration").values()) == 1


async def test_a_client_that_left_a_legacy_stream_is_waited_for(runtime: Runtime, telemetry: Telemetry) -> None:
    left = anyio.Event()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await read(receive)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        left.set()
        assert await receive() == {"type": "http.disconnect"}

    await post(MCPMiddleware(app, runtime), call(), legacy_headers("own"), left=left)
    assert telemetry.spans() == []
    await runtime.shut_down()

    assert (telemetry.span().attributes or {})["error.type"] == "disconnected"


async def test_the_end_of_the_session_gives_up_what_still_waits(runtime: Runtime, telemetry: Telemetry) -> None:
    waiting = Streams()
    server = Server(session_id="own")

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        message = scope["method"]
        await (waiting if message == "POST" else server)(scope, receive, send)

    wrapped = MCPMiddleware(app, runtime)
    await post(wrapped, call(), legacy_headers("own"))
    await delete(wrapped, legacy_headers("own"))

    assert (telemetry.span().attributes or {})["error.type"] == "disconnected"


@pytest.mark.parametrize("encoding", ["gzip", "identity"])
async def test_a_complete_but_unreadable_answer_is_not_waited_for(
    runtime: Runtime, telemetry: Telemetry, encoding: str
) -> None:
    payload = gzip.compress(json.dumps(result()).encode()) if encoding == "gzip" else b"who knows"

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await read(receive)
        await respond(send, payload, headers=[("content-encoding", encoding)])

    for _ in range(2):
        await post(MCPMiddleware(app, runtime), call(), legacy_headers("own"))

    assert [(span.attributes or {}).get("error.type") for span in telemetry.spans()] == [None, None]


async def test_two_calls_with_one_id_in_one_session_are_both_recorded(runtime: Runtime, telemetry: Telemetry) -> None:
    server = Streams(ENDPOINT)
    app = MCPMiddleware(server, runtime)

    async with opened(server, app):
        await post(app, call("one", request_id=1), **POSTS)  # type: ignore[arg-type]
        await post(app, call("two", request_id=1), **POSTS)  # type: ignore[arg-type]
        await server.put(result(1))
        await settled()

    assert sorted(span.name for span in telemetry.spans()) == ["tools/call one", "tools/call two"]


@pytest.mark.parametrize(
    ("sent", "answered", "content_type"),
    [
        (1, "1", "application/json"),
        ("1", 1, "application/json"),
        (1, "1", "text/event-stream"),
        (1, None, "application/json"),
        (1, 1, "Application/JSON; Charset=UTF-8"),
        (1, 1, "Text/Event-Stream"),
    ],
)
async def test_what_clients_take_for_the_answer_ends_the_call(
    runtime: Runtime, telemetry: Telemetry, sent: object, answered: object, content_type: str
) -> None:
    reply = result(answered, FAILED)

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await read(receive)
        await respond(send, event(reply) if "event" in content_type.lower() else reply, content_type=content_type)

    await post(MCPMiddleware(app, runtime), call(request_id=sent), legacy_headers("own"))

    assert (telemetry.span().attributes or {})["error.type"] == "tool_error"


async def test_a_batch_is_a_span_for_each_of_its_requests(runtime: Runtime, telemetry: Telemetry) -> None:
    batch = [ask("tools/list", 1), notify("notifications/initialized"), call("a", 2), call("b", 3)]

    async def together(scope: Message, receive: Receive, send: Send) -> None:
        await read(receive)
        await respond(send, [result(2, FAILED), error(-1, 3), result(1, {"tools": []})])

    async def apart(scope: Message, receive: Receive, send: Send) -> None:
        await read(receive)
        await stream(send, [event(error(-1, 3)), event(result(1)) + event(result(2, FAILED))])

    for number, app in enumerate((together, apart), 1):
        for _ in range(2):
            telemetry.span_exporter.clear()
            await post(MCPMiddleware(app, runtime), batch, legacy_headers(f"own-{number}", "2025-03-26"))
            found = {span.name: (span.attributes or {}).get("error.type") for span in telemetry.spans()}
            assert found == {"tools/list": None, "tools/call a": "tool_error", "tools/call b": "-1"}
            assert {(span.attributes or {})["session.id"] for span in telemetry.spans()} == {f"own-{number}"}


@pytest.mark.parametrize("status", [400, 404])
async def test_a_batch_that_is_refused_is_refused_for_each_of_its_requests(
    runtime: Runtime, telemetry: Telemetry, status: int
) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await read(receive)
        await respond(send, error(-32600, None), status)

    await post(MCPMiddleware(app, runtime), [call("a", 1), call("b", 2)], legacy_headers("own", "2025-03-26"))

    assert len(telemetry.spans()) == 2
    ends = [(span.attributes or {}).get("error.type") for span in telemetry.spans()]
    codes = [(span.attributes or {}).get("rpc.response.status_code") for span in telemetry.spans()]
    assert sorted(map(str, zip(ends, codes, strict=True))) in (
        [str((str(status), None))] * 2,
        sorted([str((str(status), None)), str((None, "-32600"))]),
    )


async def test_a_cancelled_call_of_an_earlier_revision_ends_by_its_notification(
    runtime: Runtime, telemetry: Telemetry
) -> None:
    arrived, cancelled = anyio.Event(), anyio.Event()
    replies: list[Reply] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        message = json.loads(await read(receive))
        if message["method"] == "notifications/cancelled":
            cancelled.set()
            await respond(send, b"", 202)
            return
        arrived.set()
        await cancelled.wait()
        await respond(send, error(-32800, message["id"], "Request cancelled"))

    wrapped = MCPMiddleware(app, runtime)
    async with anyio.create_task_group() as group:

        async def slow() -> None:
            replies.append(await post(wrapped, call(request_id=7), legacy_headers("own")))

        group.start_soon(slow)
        await arrived.wait()
        await post(wrapped, notify("notifications/cancelled", requestId=7), legacy_headers("own"))

    attributes = telemetry.span().attributes or {}
    assert attributes["error.type"] == "cancelled"
    assert attributes["rpc.response.status_code"] == "-32800"


async def test_a_cancellation_that_comes_too_late_changes_nothing(runtime: Runtime, telemetry: Telemetry) -> None:
    app = MCPMiddleware(Server(), runtime)

    await post(app, call(request_id=7), legacy_headers("own"))
    await post(app, notify("notifications/cancelled", requestId=7), legacy_headers("own"))
    await post(app, notify("notifications/cancelled", requestId=8), legacy_headers("own"))
    await post(app, call(request_id=8), legacy_headers("own"))

    assert [(span.attributes or {}).get("error.type") for span in telemetry.spans()] == [None, None]


async def test_a_get_that_the_server_refuses_opens_nothing(runtime: Runtime, telemetry: Telemetry) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await respond(send, b"", 405)

    scope = make_scope("GET", headers=[("accept", "text/event-stream"), *legacy_headers("own")])
    await request(MCPMiddleware(app, runtime), scope)
    await runtime.shut_down()

    assert telemetry.events() == []


async def test_a_client_leaving_a_running_tool_leaves_nothing_behind(runtime: Runtime, telemetry: Telemetry) -> None:
    """Its answer may come by another stream only where the call was left to that."""
    head = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
    running, over, left = anyio.Event(), anyio.Event(), anyio.Event()

    async def tool() -> Message:
        running.set()
        await over.wait()
        return OK

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        if scope["method"] == "GET":
            await send(head)
            await over.wait()
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        exchange = scope[SCOPE_KEY]
        exchange.at_sdk = True
        message = json.loads(await read(receive))
        made = runtime.dispatcher.requests.call_of(exchange, message["id"], message["method"], message["params"])
        assert made is not None
        group.start_soon(Dispatch(runtime.dispatcher, made).run, tool)
        await running.wait()
        await send(head)
        await receive()  # The client has gone; as in the SDK, its tool goes on.

    wrapped = MCPMiddleware(app, runtime)
    async with anyio.create_task_group() as group:
        group.start_soon(get, wrapped, legacy_headers("own"))
        await settled()
        group.start_soon(partial(post, wrapped, call(request_id=7), legacy_headers("own"), left=left))
        await running.wait()
        left.set()
        await settled()
        over.set()
    await runtime.shut_down()

    assert runtime.metrics.census.calls == {}
    assert list(telemetry.counts("mcp.server.operation.duration").values()) == [1]


@pytest.mark.parametrize("is_open", [True, False], ids=["stream open", "no stream"])
async def test_an_accepted_call_waits_for_its_answer_only_with_an_open_stream(
    runtime: Runtime, telemetry: Telemetry, is_open: bool
) -> None:
    head = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
    accepted, over = anyio.Event(), anyio.Event()

    async def tool() -> Message:
        return OK

    async def work(made: Call) -> None:
        await accepted.wait()
        await Dispatch(runtime.dispatcher, made).run(tool)

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        if scope["method"] == "GET":
            await send(head)
            await over.wait()
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        exchange = scope[SCOPE_KEY]
        exchange.at_sdk = True
        message = json.loads(await read(receive))
        made = runtime.dispatcher.requests.call_of(exchange, message["id"], message["method"], message["params"])
        assert made is not None
        group.start_soon(work, made)
        await respond(send, b"", 202)

    wrapped = MCPMiddleware(app, runtime)
    async with anyio.create_task_group() as group:
        if is_open:
            group.start_soon(get, wrapped, legacy_headers("own"))
            await settled()
        await post(wrapped, call(), legacy_headers("own"))
        accepted.set()
        await settled()
        runtime.recorder.drain()
        measured = sum(telemetry.counts("mcp.server.operation.duration").values())
        over.set()

    assert measured == (0 if is_open else 1)


async def test_a_stream_of_a_revision_without_sessions_is_none_of_a_session(runtime: Runtime) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await respond(send, b"", 200)

    for number in range(3):
        headers = [("mcp-session-id", f"stranger-{number}"), ("mcp-protocol-version", "2026-07-28")]
        await get(MCPMiddleware(app, runtime), headers)

    assert runtime.exchanges.inflight._parties == {}  # pyright: ignore[reportPrivateUsage]
