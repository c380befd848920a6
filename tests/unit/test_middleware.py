"""An app behaves as it would without us, whatever it does and whatever it is asked."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from otel_mcp import MCPMiddleware
from otel_mcp.model.call import SCOPE_KEY
from otel_mcp.runtime import Runtime
from otel_mcp.types import Message, Receive, Send
from tests.support.answers import OK, Server, error, initialized, result
from tests.support.asgi import (
    JSON_HEADERS,
    Reply,
    event,
    make_scope,
    post,
    read,
    request,
    respond,
    stream,
    without_added_headers,
)
from tests.support.messages import MODERN_HEADERS, ask, call, initialize, legacy_headers, modern, notify
from tests.support.providers import Telemetry

pytestmark = pytest.mark.anyio

Script = Callable[[Message, Receive, Send], Awaitable[None]]


async def same(runtime: Runtime, app: Script, scope: Message, chunks: list[bytes], **options: Any) -> Reply:
    """Serve a request with us and without; what the server gets must be the same. Twice: an app is learned."""
    reference = await request(app, dict(scope), chunks, **options)
    reply = Reply()
    for _ in range(2):
        reply = await request(MCPMiddleware(app, runtime), dict(scope), chunks, **options)
        assert without_added_headers(reply.messages, reference.messages) == reference.messages
        assert type(reply.error) is type(reference.error)
        assert str(reply.error) == str(reference.error)
    return reply


def mcp_post(message: object, *headers: tuple[str, str]) -> tuple[Message, list[bytes]]:
    """The scope and the body of a POST."""
    return make_scope("POST", headers=[*JSON_HEADERS, *headers]), [json.dumps(message).encode()]


@pytest.mark.parametrize(
    "message",
    [
        initialize(),
        call(),
        modern(),
        ask("tools/list"),
        notify("notifications/initialized"),
        {"jsonrpc": "2.0", "id": 1, "result": {}},
        [call(request_id=1), call(request_id=2)],
        ask("eth_call"),
        {"some": "json"},
        "text",
    ],
)
@pytest.mark.parametrize("sse", [False, True])
async def test_every_kind_of_message_passes_as_it_is(runtime: Runtime, message: object, sse: bool) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        assert json.loads(await read(receive)) == message
        await (stream(send, [event(result())]) if sse else respond(send, result()))

    for headers in ((), MODERN_HEADERS, legacy_headers("abc")):
        scope, chunks = mcp_post(message, *headers)
        await same(runtime, app, scope, chunks)


async def test_other_traffic_is_not_touched_at_all(runtime: Runtime, telemetry: Telemetry) -> None:
    seen: list[tuple[object, object, object]] = []

    async def app(scope: object, receive: object, send: object) -> None:
        seen.append((scope, receive, send))

    async def receive() -> Message:
        raise AssertionError

    async def send(message: object) -> None:
        raise AssertionError

    scopes: list[Message] = [
        make_scope("GET", "/health"),
        make_scope("POST", "/form", [("content-type", "application/x-www-form-urlencoded")]),
        make_scope("OPTIONS"),
        {"type": "websocket", "path": "/ws", "headers": []},
        {"type": "somethingelse"},
    ]
    for scope in scopes:
        await MCPMiddleware(app, runtime)(scope, receive, send)
        assert seen.pop() == (scope, receive, send)
        assert SCOPE_KEY not in scope

    assert telemetry.spans() == []


async def test_json_that_is_no_mcp_passes_without_a_trace(runtime: Runtime, telemetry: Telemetry) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await respond(send, await read(receive))

    for message in ({"jsonrpc": "2.0", "id": 1, "method": "eth_call"}, {"a": 1}, [], "x"):
        reply = await post(MCPMiddleware(app, runtime), message)
        assert json.loads(reply.body) == message
        assert reply.session_id is None

    assert telemetry.spans() == []
    assert telemetry.points("mcp.server.operation.duration") == []


@pytest.mark.parametrize("pieces", [1, 2, 7, 10_000])
async def test_a_request_body_in_pieces_reaches_the_app_in_those_pieces(
    runtime: Runtime, telemetry: Telemetry, pieces: int
) -> None:
    got: list[bytes] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            got.append(message["body"])
            if not message["more_body"]:
                break
        await respond(send, result())

    body = json.dumps(call(text="\u2028" * 50)).encode()
    size = max(1, len(body) // pieces)
    chunks = [body[start : start + size] for start in range(0, len(body), size)] + [b""]

    await post(MCPMiddleware(app, runtime), None, chunks=chunks)

    assert got == chunks
    assert [span.name for span in telemetry.spans()] == ["tools/call add"]


async def test_messages_without_their_optional_keys_are_read_as_the_specification_has_it(
    runtime: Runtime, telemetry: Telemetry
) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body"})

    async def receive() -> Message:
        return {"type": "http.request", "body": json.dumps(call()).encode()}

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await MCPMiddleware(app, runtime)(make_scope(headers=JSON_HEADERS), receive, send)

    assert without_added_headers(
        sent, [{"type": "http.response.start", "status": 200}, {"type": "http.response.body"}]
    ) == [
        {"type": "http.response.start", "status": 200},
        {"type": "http.response.body"},
    ]
    assert [span.name for span in telemetry.spans()] == ["tools/call add"]


class Refused(Exception):
    """What the app of a test raises."""


@pytest.mark.parametrize("moment", ["at once", "after reading", "after the start", "in the middle", "after the end"])
async def test_what_the_app_raises_passes_untouched(runtime: Runtime, telemetry: Telemetry, moment: str) -> None:
    raised = Refused("secret")

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        if moment == "at once":
            raise raised
        await read(receive)
        if moment == "after reading":
            raise raised
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        if moment == "after the start":
            raise raised
        await send({"type": "http.response.body", "body": b'{"jsonrpc":"2.0",', "more_body": True})
        if moment == "in the middle":
            raise raised
        await send({"type": "http.response.body", "body": b'"id":1,"result":{}}'})
        raise raised

    for _ in range(2):
        reply = await post(MCPMiddleware(app, runtime), modern(), MODERN_HEADERS)
        assert reply.error is raised

    spans = telemetry.spans()
    assert len(spans) == (0 if moment == "at once" else 2)
    assert all((span.attributes or {}).get("error.type") != "Refused" for span in spans)
    assert "secret" not in telemetry.everything()


async def test_cancellation_of_the_app_passes_untouched(runtime: Runtime, telemetry: Telemetry) -> None:
    started = anyio.Event()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await read(receive)
        started.set()
        await anyio.sleep_forever()

    async with anyio.create_task_group() as group:
        group.start_soon(post, MCPMiddleware(app, runtime), modern())
        await started.wait()
        group.cancel_scope.cancel()

    assert len(telemetry.spans()) == 1
    assert {count for _, count in telemetry.points("otel_mcp.requests.active")} == {0}


async def test_what_send_and_receive_raise_reaches_the_app(runtime: Runtime) -> None:
    caught: list[BaseException] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        for attempt in (receive(), respond(send)):
            try:
                await attempt
            except OSError as problem:
                caught.append(problem)

    gone = OSError("gone")

    async def broken(*_: object) -> Any:
        raise gone

    await MCPMiddleware(app, runtime)(make_scope(headers=[*JSON_HEADERS, *MODERN_HEADERS]), broken, broken)

    assert caught == [gone, gone]


async def test_a_disconnect_reaches_the_app_when_it_happens(runtime: Runtime, telemetry: Telemetry) -> None:
    left = anyio.Event()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await read(receive)
        left.set()
        assert await receive() == {"type": "http.disconnect"}
        assert await receive() == {"type": "http.disconnect"}

    await post(MCPMiddleware(app, runtime), modern(), MODERN_HEADERS, left=left)

    (span,) = telemetry.spans()
    assert (span.attributes or {})["error.type"] == "cancelled"


async def test_a_disconnect_after_the_last_byte_is_no_cancellation(runtime: Runtime, telemetry: Telemetry) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await read(receive)
        await respond(send, result())
        assert await receive() == {"type": "http.disconnect"}

    for _ in range(2):
        await post(MCPMiddleware(app, runtime), modern(), MODERN_HEADERS)

    assert [(span.attributes or {}).get("error.type") for span in telemetry.spans()] == [None, None]


async def test_a_second_start_passes_and_changes_nothing(runtime: Runtime, telemetry: Telemetry) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await read(receive)
        await stream(send, [event(result())])
        await send({"type": "http.response.start", "status": 500, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    scope, chunks = mcp_post(call())

    reply = await same(runtime, app, scope, chunks)

    assert [message.get("status") for message in reply.messages if "status" in message] == [200, 500]
    assert [(span.attributes or {}).get("error.type") for span in telemetry.spans()] == [None, None]


async def test_an_app_that_answers_nothing_is_left_to_the_server(runtime: Runtime, telemetry: Telemetry) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await read(receive)

    scope, chunks = mcp_post(call())

    reply = await same(runtime, app, scope, chunks)

    assert reply.messages == []
    assert [(span.attributes or {}).get("error.type") for span in telemetry.spans()] == ["500", "500"]


@pytest.mark.parametrize("status", [307, 400, 401, 404, 405, 406, 413, 415, 421])
async def test_a_body_that_the_app_never_reads_is_not_read_by_us(
    runtime: Runtime, telemetry: Telemetry, status: int
) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await respond(send, b"", status, content_type="text/plain")

    async def receive() -> Message:
        raise AssertionError("nobody asked")

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    for headers in ((), MODERN_HEADERS, legacy_headers("abc")):
        await MCPMiddleware(app, runtime)(make_scope(headers=[*JSON_HEADERS, *headers]), receive, send)

    assert [message.get("status") for message in sent] == [status, None] * 3
    assert all(name != b"x-session-id" for message in sent for name, _ in message.get("headers", ()))
    assert telemetry.spans() == []


async def test_an_answer_before_the_request_was_read_is_an_answer(runtime: Runtime) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        body = await read(receive)
        await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": event(result()), "more_body": False})

    scope, chunks = mcp_post(call())
    await same(runtime, app, scope, chunks)


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate"])
async def test_a_body_under_a_content_encoding_passes_unread(
    runtime: Runtime, telemetry: Telemetry, encoding: str
) -> None:
    packed = gzip.compress(json.dumps(result(value={"isError": True})).encode())

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await read(receive)
        await respond(send, packed, headers=[("content-encoding", encoding)])
        assert await receive() == {"type": "http.disconnect"}

    scope, chunks = mcp_post(call())

    reply = await same(runtime, app, scope, chunks)

    assert reply.body == packed
    assert [(span.attributes or {}).get("error.type") for span in telemetry.spans()] == [None, None]


async def test_a_body_without_encoding_is_read_also_where_a_header_says_so(
    runtime: Runtime, telemetry: Telemetry
) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await read(receive)
        await respond(send, result(value={"isError": True}), headers=[("content-encoding", "identity")])

    await post(MCPMiddleware(app, runtime), call())

    assert (telemetry.span().attributes or {})["error.type"] == "tool_error"


@pytest.mark.parametrize(
    "body", [b"not json", b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"jsonrpc":"2.0","id":1}', b"[" * 5000]
)
@pytest.mark.parametrize("kind", ["application/json", "text/event-stream"])
async def test_a_malformed_answer_passes_and_is_no_failure_of_ours(
    runtime: Runtime, telemetry: Telemetry, body: bytes, kind: str
) -> None:
    framed = body if kind == "application/json" else b'data: {"id"' + body + b'"id"\n\n'

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await read(receive)
        await respond(send, framed, content_type=kind)

    scope, chunks = mcp_post(call())

    reply = await same(runtime, app, scope, chunks)

    assert reply.body == framed
    assert len(telemetry.spans()) == 2


async def test_nonsense_in_a_stream_does_not_hide_the_answer_behind_it(runtime: Runtime, telemetry: Telemetry) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await read(receive)
        await stream(send, [b'data: "id" nonsense\n\n' + event(result(value={"isError": True}))])

    await post(MCPMiddleware(app, runtime), call())

    assert (telemetry.span().attributes or {})["error.type"] == "tool_error"


@pytest.mark.parametrize("seed", range(20))
async def test_an_answer_is_understood_however_it_is_cut(runtime: Runtime, telemetry: Telemetry, seed: int) -> None:
    generator = random.Random(seed)
    body = b": ping\r\n\r\n" + event(notify("notifications/progress", progress=1)) + event(error(-32603, 7))
    cuts = sorted(generator.choices(range(len(body)), k=generator.randrange(0, 40)))
    pieces = [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await read(receive)
        await stream(send, pieces)

    scope, chunks = mcp_post(call(request_id=7))

    await same(runtime, app, scope, chunks)

    assert [(span.attributes or {}).get("error.type") for span in telemetry.spans()] == ["-32603", "-32603"]


async def test_a_server_request_with_the_same_id_is_no_answer(runtime: Runtime, telemetry: Telemetry) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await read(receive)
        await stream(send, [event(ask("sampling/createMessage", 1)), event(error(-32000, 1))])

    await post(MCPMiddleware(app, runtime), call(request_id=1))

    assert (telemetry.span().attributes or {})["error.type"] == "-32000"


async def test_the_answer_to_another_id_ends_no_call(runtime: Runtime, telemetry: Telemetry) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await read(receive)
        await stream(send, [event(error(-1, "0x")), event(error(-2, True)), event(error(-3, 1)), event(error(-4, 0))])

    await post(MCPMiddleware(app, runtime), call(request_id=0))

    assert (telemetry.span().attributes or {})["error.type"] == "-4"


async def test_the_first_answer_stands(runtime: Runtime, telemetry: Telemetry) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await read(receive)
        await stream(send, [event(result()), event(error(-1))])

    await post(MCPMiddleware(app, runtime), call())

    assert "error.type" not in (telemetry.span().attributes or {})


async def test_one_request_is_watched_once_however_many_of_us_it_passes(runtime: Runtime, telemetry: Telemetry) -> None:
    app = MCPMiddleware(MCPMiddleware(MCPMiddleware(Server(), runtime), runtime), runtime)

    reply = await post(app, initialize())

    assert [span.name for span in telemetry.spans()] == ["initialize"]
    assert [name for name in reply.headers if name in {"mcp-session-id", "x-session-id"}] == [
        "mcp-session-id",
        "x-session-id",
    ]


async def test_requests_that_run_together_do_not_mix(runtime: Runtime, telemetry: Telemetry) -> None:
    waiting = 20
    arrived = 0
    everybody = anyio.Event()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        nonlocal arrived
        message = json.loads(await read(receive))
        arrived += 1
        if arrived == waiting:
            everybody.set()
        await everybody.wait()
        number = int(message["params"]["name"])
        await respond(send, error(-number, message["id"]))

    async with anyio.create_task_group() as group:
        for number in range(1, waiting + 1):
            group.start_soon(post, MCPMiddleware(app, runtime), call(str(number), request_id=1))

    found = {span.name: (span.attributes or {})["error.type"] for span in telemetry.spans()}
    assert found == {f"tools/call {number}": f"-{number}" for number in range(1, waiting + 1)}


async def test_requests_being_served_are_counted_and_counted_off(runtime: Runtime, telemetry: Telemetry) -> None:
    during: list[object] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await read(receive)
        during.extend(telemetry.points("otel_mcp.requests.active"))
        await respond(send, result())

    await post(MCPMiddleware(app, runtime), call())

    unproven, add = ({"mcp.method.name": "tools/call", "gen_ai.tool.name": name} for name in ("_OTHER", "add"))
    assert during == [(unproven, 1)]
    assert telemetry.points("otel_mcp.requests.active") == [(unproven, 0), (add, 0)]


@pytest.mark.parametrize("url", ["/mcp", "127.0.0.1:8000/mcp", "/m.p$"])
async def test_excluded_urls_are_left_alone(make_runtime: Any, telemetry: Telemetry, url: str) -> None:
    app = MCPMiddleware(Server(), make_runtime(excluded_urls=f"other,{url}"))

    reply = await post(app, initialize())
    other = await post(app, initialize(), path="/elsewhere")

    assert "mcp-session-id" not in reply.headers
    assert "mcp-session-id" in other.headers
    assert len(telemetry.spans()) == 1


async def test_a_header_that_repeats_is_read_as_the_app_reads_it(runtime: Runtime) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await read(receive)
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"Content-Type", b"application/json"), (b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")],
            }
        )
        await send({"type": "http.response.body", "body": json.dumps(initialized()).encode()})

    scope, chunks = mcp_post(initialize())

    await same(runtime, app, scope, chunks)


async def test_the_message_of_the_app_is_not_changed_in_place(runtime: Runtime) -> None:
    start: Message = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]}

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await read(receive)
        await send(start)
        await send({"type": "http.response.body", "body": json.dumps(initialized()).encode()})

    reply = await post(MCPMiddleware(app, runtime), initialize())

    assert "mcp-session-id" in reply.headers
    assert start == {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]}


async def test_the_app_gets_the_scope_of_the_server(runtime: Runtime) -> None:
    server = Server()
    app = MCPMiddleware(server, runtime)
    given = make_scope(headers=[*JSON_HEADERS, *legacy_headers("foreign")])
    before = dict(given)

    await request(app, given, [json.dumps(call()).encode()])

    seen = {key: value for key, value in server.scopes[0].items() if key != SCOPE_KEY}
    assert seen == before


async def test_an_answer_of_a_client_is_no_request(runtime: Runtime, telemetry: Telemetry) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await read(receive)
        await respond(send, b"", 202)

    await post(MCPMiddleware(app, runtime), {"jsonrpc": "2.0", "id": 1, "result": OK}, legacy_headers("abc"))

    assert telemetry.spans() == []
    assert telemetry.points("mcp.server.operation.duration") == []


async def test_a_lifespan_passes_and_flushes_before_its_end_is_reported(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    from otel_mcp import current

    monkeypatch.setattr(current, "runtime", runtime)
    order: list[str] = []
    shut_down = runtime.shut_down

    async def watched() -> None:
        await shut_down()
        order.append("flushed")

    monkeypatch.setattr(runtime, "shut_down", watched)

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        for _ in range(2):
            message = await receive()
            await send({"type": f"{message['type']}.complete"})

    incoming = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]

    async def receive() -> Message:
        return incoming.pop(0)

    async def send(message: Message) -> None:
        order.append(message["type"])

    with anyio.fail_after(60):
        await MCPMiddleware(app, runtime)({"type": "lifespan"}, receive, send)

    assert order == ["lifespan.startup.complete", "flushed", "lifespan.shutdown.complete"]
