"""Tables that are kept by what a stranger may say: ids, paths and streams of others stay as they are."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from otel_mcp import MCPMiddleware
from otel_mcp.bounded import Paths
from otel_mcp.exchange import inflight
from otel_mcp.runtime import Runtime
from otel_mcp.types import Message, Receive, Send
from tests.hostile.test_takeover import ANN, BOB
from tests.support.answers import Server, initialized, result
from tests.support.asgi import event, get, post, read, respond
from tests.support.messages import call, initialize, legacy_headers, notify
from tests.support.providers import Telemetry

pytestmark = pytest.mark.anyio
ENDPOINT = b"event: endpoint\r\ndata: /messages/?session_id=0a1b2c3d\r\n\r\n"
POSTS: dict[str, Any] = {"path": "/messages/", "query": "session_id=0a1b2c3d"}


class Sse:
    """A server of 2024-11-05: what is put is sent on its one stream, and every post is accepted."""

    def __init__(self) -> None:
        self.opened = anyio.Event()
        self.sent, self._events = anyio.create_memory_object_stream[bytes | None](100)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["method"] == "POST":
            await read(receive)
            await respond(send, b"", 202)
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        await send({"type": "http.response.body", "body": ENDPOINT, "more_body": True})
        self.opened.set()
        while (chunk := await self._events.receive()) is not None:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


@asynccontextmanager
async def stream_of(server: Sse, app: MCPMiddleware, who: tuple[str, str]) -> AsyncGenerator[None]:
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(get, app, [who], "/sse")
            await server.opened.wait()
            yield
            await server.sent.send(None)


async def begin(server: Sse, app: MCPMiddleware) -> None:
    """Ann opens a session on her stream."""
    await post(app, initialize(), [ANN], **POSTS)
    await server.sent.send(event(initialized(0, "2024-11-05")))
    await settled()


async def settled() -> None:
    for _ in range(20):
        await anyio.lowlevel.checkpoint()


def outcomes(telemetry: Telemetry) -> list[tuple[str, str | None, bool]]:
    """Tool, error and whether it is in a session that is Ann's, of each call that has ended."""
    spans = [span for span in telemetry.spans() if span.name.startswith("tools/call")]
    found = [dict(span.attributes or {}) for span in spans]
    return [
        (str(one["gen_ai.tool.name"]), one.get("error.type"), one.get("session.id") == "0a1b2c3d")  # type: ignore[misc]
        for one in found
    ]


async def test_a_call_with_the_id_of_anothers_ends_nothing_of_hers(runtime: Runtime, telemetry: Telemetry) -> None:
    server = Sse()
    app = MCPMiddleware(server, runtime)

    async with stream_of(server, app, ANN):
        await begin(server, app)
        await post(app, call("hers"), [ANN], **POSTS)
        for name in ("his", "his again"):
            await post(app, call(name), [BOB], **POSTS)
        assert [name for name, _, _ in outcomes(telemetry)] == ["his"]  # He has given it up himself.
        await server.sent.send(event(result(1)))
        await settled()

    assert outcomes(telemetry)[0] == ("hers", None, True)
    assert [one for one in outcomes(telemetry) if one[2]] == [("hers", None, True)]


async def test_an_answer_on_another_users_stream_still_ends_its_call(runtime: Runtime, telemetry: Telemetry) -> None:
    server = Sse()
    app = MCPMiddleware(server, runtime)

    async with stream_of(server, app, ANN):
        await begin(server, app)
        await post(app, call("his", 7), [BOB], **POSTS)
        await server.sent.send(event(result(7)))
        await settled()

    assert outcomes(telemetry) == [("his", None, False)]


async def test_a_strangers_flood_makes_nobody_else_wait_in_vain(
    runtime: Runtime, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inflight, "MAX_CALLS", 80)
    server = Sse()
    app = MCPMiddleware(server, runtime)

    async with stream_of(server, app, ANN):
        await post(app, call("hers", 1), [ANN], **POSTS)
        for number in range(200):
            await post(app, call("his", number), [BOB], **POSTS)
        for number in range(200):
            made_up: dict[str, Any] = {**POSTS, "query": f"session_id=made-up-{number}"}
            await post(app, call("his", number), [BOB], **made_up)
        assert len(runtime.exchanges.inflight.waiting) == 80
        await server.sent.send(event(result(1)))
        await settled()
        assert ("hers", None) in [one[:2] for one in outcomes(telemetry)]

    runtime.exchanges.close()
    assert not runtime.exchanges.inflight.waiting
    assert not vars(runtime.exchanges.inflight)["_parties"]
    assert vars(runtime.exchanges.inflight)["_size"] == 0


@pytest.mark.parametrize("flood", [1, 50], ids=["same id", "flood"])
async def test_a_strangers_calls_do_not_hide_a_call_from_its_own_cancellation(
    flood: int, runtime: Runtime, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inflight, "MAX_CALLS", 20)
    monkeypatch.setattr(inflight, "MAX_CALLS_OF_ONE", 10)
    waiting = anyio.Event()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        if b"cancelled" in await read(receive):
            await respond(send, b"", 202)
            return
        await waiting.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": b'{"jsonrpc":"2.0","id":1,"error":{"code":-32800}}'})

    watched = MCPMiddleware(app, runtime)
    headers = legacy_headers("own")
    async with anyio.create_task_group() as group:
        group.start_soon(post, watched, call("hers", 1), [*headers, ANN])
        await settled()
        for number in range(1, flood + 1):
            group.start_soon(post, watched, call("his", number), [*headers, BOB])
        await settled()
        await post(watched, notify("notifications/cancelled", requestId=1), [*headers, ANN])
        waiting.set()

    (hers,) = [one for one in outcomes(telemetry) if one[0] == "hers"]
    assert hers[1] == "cancelled"
    assert not vars(runtime.exchanges.inflight)["_cancellable"]
    assert not vars(runtime.exchanges.inflight)["_counts"]


async def test_made_up_paths_do_not_evict_paths_in_use(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Paths, "MAX_PATHS", 10)
    app = MCPMiddleware(Server(session_id="own"), runtime)
    await post(app, initialize(), path="/mcp")

    for number in range(100):
        await post(app, initialize(), path=f"/made-up/{number}")
        await post(app, call(), legacy_headers("own"), path="/mcp")

    paths: Paths[bool] = vars(runtime.exchanges.session_ids)["owners"]
    assert paths.get("/mcp") is True
    assert len(paths) == 10
    await post(app, initialize(), path="/" + "x" * 1000)
    assert paths.get("/" + "x" * 1000) is None


async def test_an_echoing_server_gives_out_no_ids(runtime: Runtime) -> None:
    inner = Server()

    async def echoing(scope: Message, receive: Receive, send: Send) -> None:
        async def repeating(message: Message) -> None:
            echoed = [header for header in scope["headers"] if header[0] == b"mcp-session-id"]
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *echoed]}
            await send(message)

        await inner(scope, receive, repeating)

    app = MCPMiddleware(echoing, runtime)
    await post(app, initialize())

    await post(app, call(), legacy_headers("made-up"))
    await post(app, initialize(), [("mcp-session-id", "made-up")])

    paths: Paths[bool] = vars(runtime.exchanges.session_ids)["owners"]
    assert paths.get("/mcp") is False


async def test_one_odd_handshake_does_not_make_a_stateful_server_stateless(runtime: Runtime) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        named = any(name == b"mcp-session-id" for name, _ in scope["headers"])
        await read(receive)
        await respond(send, initialized(), 200, [] if named else [("mcp-session-id", "own")])

    watched = MCPMiddleware(app, runtime)
    await post(watched, initialize())
    await post(watched, initialize(), [("mcp-session-id", "made-up")])

    paths: Paths[bool] = vars(runtime.exchanges.session_ids)["owners"]
    assert paths.get("/mcp") is True
