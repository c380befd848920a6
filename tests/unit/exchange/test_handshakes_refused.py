"""An `initialize` that the server answers with an error begins nothing, whichever way the answer comes."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from otel_mcp import MCPMiddleware
from otel_mcp.runtime import Runtime
from otel_mcp.types import ASGIApp, Message, Receive, Send
from tests.support.answers import error, initialized, result
from tests.support.asgi import JSON_HEADERS, bare, event, get, make_scope, post, read, request, respond, stream
from tests.support.messages import ask, call, initialize, legacy_headers
from tests.support.providers import Telemetry

pytestmark = pytest.mark.anyio

Answering = Callable[[Send, Message, list[tuple[str, str]]], Awaitable[None]]


async def in_json(send: Send, answer: Message, own: list[tuple[str, str]]) -> None:
    await respond(send, answer, 200, own)


async def in_pieces(send: Send, answer: Message, own: list[tuple[str, str]], at: int = 0) -> None:
    """As a middleware that wraps responses sends them on."""
    body = json.dumps(answer).encode()
    headers = [(name.encode(), value.encode()) for name, value in [("content-type", "application/json"), *own]]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for piece in (body[:at], body[at:]) if at else (body,):
        await send({"type": "http.response.body", "body": memoryview(bytearray(piece)), "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def torn(send: Send, answer: Message, own: list[tuple[str, str]]) -> None:
    await in_pieces(send, answer, own, at=12)


async def as_stream(send: Send, answer: Message, own: list[tuple[str, str]]) -> None:
    await stream(send, [event(answer)], own)


def server(answering: Answering, failure: Message | None, own: str | None = None) -> ASGIApp:
    """Refuses each handshake with `failure`; takes every other message."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        message = json.loads(await read(receive))
        given = [] if own is None else [("mcp-session-id", own)]
        if message["method"] != "initialize":
            return await respond(send, result(message["id"]), 200, given)
        said = initialized(message["id"]) if failure is None else {**failure, "id": message["id"]}
        await answering(send, said, given)

    return app


def nameless() -> Message:
    message = initialize()
    del message["params"]["clientInfo"]
    return message


def begun(telemetry: Telemetry) -> list[Any]:
    return [event["attributes"]["session.id"] for event in telemetry.events() if event["name"] == "session.start"]


@pytest.mark.parametrize("own", [None, "own"], ids=["ours", "the server's own"])
@pytest.mark.parametrize("answering", [in_json, in_pieces, torn, as_stream])
@pytest.mark.parametrize("code", [-32602, -32603, -32000])
async def test_a_handshake_without_a_client_that_is_refused_begins_nothing(
    runtime: Runtime, telemetry: Telemetry, own: str | None, answering: Answering, code: int
) -> None:
    app = server(answering, error(code), own)

    reply = await post(MCPMiddleware(app, runtime), nameless())
    await runtime.shut_down()

    assert reply.headers.get("mcp-session-id") == own
    assert reply.session_id is None
    assert begun(telemetry) == []
    assert runtime.sessions.local == 0
    attributes = dict(telemetry.span().attributes or {})
    assert attributes["otel_mcp.session.source"] == "none"
    assert attributes["rpc.response.status_code"] == str(code)


@pytest.mark.parametrize("own", [None, "own"], ids=["ours", "the server's own"])
@pytest.mark.parametrize("answering", [in_json, in_pieces])
async def test_what_json_refuses_is_known_before_the_headers_go_out(
    runtime: Runtime, telemetry: Telemetry, own: str | None, answering: Answering
) -> None:
    app = server(answering, error(-32000), own)

    reply = await post(MCPMiddleware(app, runtime), initialize())
    await runtime.shut_down()

    assert reply.headers.get("mcp-session-id") == own
    assert reply.session_id is None
    assert begun(telemetry) == []


@pytest.mark.parametrize("answering", [torn, as_stream])
async def test_an_id_sent_before_the_refusal_is_a_session_once_used(
    runtime: Runtime, telemetry: Telemetry, answering: Answering
) -> None:
    wrapped = MCPMiddleware(server(answering, error(-32000)), runtime)

    given = (await post(wrapped, initialize())).headers["mcp-session-id"]
    await runtime.shut_down()
    before = begun(telemetry)
    reply = await post(wrapped, call(), legacy_headers(given))
    await runtime.shut_down()

    assert before == []
    assert begun(telemetry) == [reply.session_id] == [given]


@pytest.mark.parametrize("answering", [in_json, in_pieces, torn, as_stream])
async def test_a_handshake_that_works_begins_its_session_with_its_client(
    runtime: Runtime, telemetry: Telemetry, answering: Answering
) -> None:
    wrapped = MCPMiddleware(server(answering, None), runtime)

    opened = await post(wrapped, initialize())
    listed = await post(wrapped, ask("tools/list", 2), legacy_headers(opened.headers["mcp-session-id"]))
    await runtime.shut_down()

    assert opened.session_id == listed.session_id == opened.headers["mcp-session-id"]
    state = await runtime.sessions.load(opened.session_id or "")
    assert state is not None
    assert (state.client_name, state.request_count, state.protocol_version) == ("unit-client", 2, "2025-11-25")


@pytest.mark.parametrize("answering", [in_json, as_stream])
async def test_a_refused_handshake_under_an_old_id_does_not_prolong_its_session(
    runtime: Runtime, telemetry: Telemetry, answering: Answering
) -> None:
    given = (await post(MCPMiddleware(server(in_json, None), runtime), initialize())).headers["mcp-session-id"]
    await runtime.shut_down()
    before = await runtime.sessions.load(given)

    refusing = MCPMiddleware(server(answering, error(-32000)), runtime)
    await post(refusing, initialize(name="another"), legacy_headers(given))
    await runtime.shut_down()

    assert before is not None
    assert await runtime.sessions.load(given) == before


@pytest.mark.parametrize("answer", [error(-32602, 0), error(-32000, 0), initialized(0)])
@pytest.mark.parametrize("message", [initialize(), nameless()], ids=["whole", "without a client"])
async def test_on_the_stream_of_2024_only_a_result_begins_the_session(
    runtime: Runtime, telemetry: Telemetry, message: Message, answer: Message
) -> None:
    asked, answered = anyio.Event(), anyio.Event()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        if scope["method"] == "POST":
            await read(receive)
            asked.set()
            return await respond(send, b"", 202)
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        begins = b"event: endpoint\r\ndata: /messages/?session_id=own\r\n\r\n"
        await send({"type": "http.response.body", "body": begins, "more_body": True})
        await asked.wait()
        await anyio.lowlevel.checkpoint()
        await send({"type": "http.response.body", "body": event(answer), "more_body": True})
        answered.set()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    wrapped = MCPMiddleware(app, runtime)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(get, wrapped, [], "/sse")
        await anyio.lowlevel.checkpoint()
        await post(wrapped, message, path="/messages/", query="session_id=own")
        await answered.wait()
    await runtime.shut_down()

    span = telemetry.span()
    succeeded = "result" in answer
    assert begun(telemetry) == (["own"] if succeeded else [])
    assert (dict(span.attributes or {})["otel_mcp.session.source"] == "header") is succeeded


async def test_an_app_failing_within_a_handshakes_answer_fails_as_without_us(runtime: Runtime) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await read(receive)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        raise KeyError("mine")

    scope, body = make_scope("POST", "/mcp", JSON_HEADERS), [json.dumps(initialize()).encode()]
    ours = await request(MCPMiddleware(app, runtime), dict(scope), body)
    reference = await bare(app, scope, body)

    assert ours.messages == reference.messages
    assert repr(ours.error) == repr(reference.error) == "KeyError('mine')"


async def test_only_the_answer_of_a_handshake_waits_for_its_body(runtime: Runtime) -> None:
    """And no stream: what an app sends goes out at once."""
    seen: list[tuple[str, int]] = []

    async def sent(app: ASGIApp, message: Message) -> None:
        out: list[Message] = []

        async def receive() -> Message:
            return {"type": "http.request", "body": json.dumps(message).encode(), "more_body": False}

        async def send(outgoing: Message) -> None:
            out.append(outgoing)

        async def inner(scope: Message, receive: Receive, given: Send) -> None:
            async def counting(outgoing: Message) -> None:
                await given(outgoing)
                seen.append((f"{message['method']} {outgoing['type'][14:]}", len(out)))

            await app(scope, receive, counting)

        await MCPMiddleware(inner, runtime)(make_scope("POST", "/mcp", JSON_HEADERS), receive, send)

    await sent(server(as_stream, None), initialize())
    await sent(server(in_json, None), call())
    await sent(server(in_json, None), initialize())

    assert seen == [
        *(("initialize start", 1), ("initialize body", 2), ("initialize body", 3)),
        *(("tools/call start", 1), ("tools/call body", 2)),
        *(("initialize start", 0), ("initialize body", 2)),
    ]
