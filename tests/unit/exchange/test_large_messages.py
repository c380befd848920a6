"""Whatever is too large is forwarded, measured, and neither held nor guessed."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from otel_mcp import MCPMiddleware
from otel_mcp.model.call import SCOPE_KEY, Call, Exchange
from otel_mcp.runtime import Runtime
from otel_mcp.types import Message, Receive, Send
from otel_mcp.wire.jsonrpc import Outcome
from tests.support.answers import Server, result
from tests.support.asgi import JSON_HEADERS, make_scope, post, read, respond, stream
from tests.support.messages import MODERN_HEADERS, ask, call, legacy_headers, modern
from tests.support.providers import Telemetry, described

pytestmark = pytest.mark.anyio

HELD = 300 * 1024
"""Bytes that may be held of one answer."""
MEGABYTE = 1024 * 1024


def weight(root: object) -> int:
    """Bytes of everything that is reached from an object, but for modules, classes and functions."""
    seen: set[int] = set()
    waiting, total = [root], 0
    while waiting:
        item = waiting.pop()
        if (
            id(item) in seen
            or isinstance(item, type)
            or type(item).__name__ in {"module", "function", "Runtime", "Replies"}
        ):
            continue
        seen.add(id(item))
        total += sys.getsizeof(item)
        waiting.extend(gc.get_referents(item))
    return total


def held_of_body(receive: Any) -> int:
    """Bytes that are held of the body which an app reads."""
    return weight(receive.__self__._held_body)


def held_by(send: Any) -> int:
    """Bytes that are held of the answer which an app sends."""
    return weight(send.__self__._answer)


def exchange_in(scope: Message) -> Exchange:
    found = scope[SCOPE_KEY]
    assert isinstance(found, Exchange)
    return found


def pieces(size: int, chunk: int) -> Iterator[bytes]:
    """So many bytes in chunks."""
    for _ in range(size // chunk):
        yield b"x" * chunk


@pytest.mark.parametrize("chunk", [16, 1000, 65_536])
@pytest.mark.parametrize("sse", [False, True])
async def test_a_result_beyond_the_bound_is_measured_and_not_classified(
    runtime: Runtime, telemetry: Telemetry, sse: bool, chunk: int
) -> None:
    size = 6 * MEGABYTE if chunk > 16 else 600 * 1024
    before, after = b'{"jsonrpc":"2.0","id":1,"result":{"isError":true,"text":"', b'"}}'
    calls: list[Call] = []
    held: list[int] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await read(receive)
        calls[:] = exchange_in(scope).calls  # It forgets those that are over.
        kind = b"text/event-stream" if sse else b"application/json"
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
        await send({"type": "http.response.body", "body": (b"data: " if sse else b"") + before, "more_body": True})
        for number, piece in enumerate(pieces(size, chunk)):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            if number % max(1, size // chunk // 3) == 0:
                held.append(held_by(send))
        await send({"type": "http.response.body", "body": after + (b"\n\n" if sse else b""), "more_body": False})

    total = len(before) + size // chunk * chunk + len(after)
    reply = await post(MCPMiddleware(app, runtime), call(), legacy_headers("x"))

    assert len(reply.body) == total + (len(b"data: \n\n") if sse else 0)
    (found,) = calls
    assert (found.outcome, found.result_bytes) == (Outcome(unclassified=True), total)
    assert max(held) < 4 * HELD
    assert "error.type" not in (telemetry.span().attributes or {})
    assert telemetry.points("otel_mcp.tool.result.size") == [({"gen_ai.tool.name": "_OTHER"}, (1, total))]


@pytest.mark.parametrize("sse", [False, True])
async def test_a_result_within_the_bound_is_classified(runtime: Runtime, telemetry: Telemetry, sse: bool) -> None:
    server = Server({"tools/call": {"result": {"isError": True, "text": "x" * 200_000}}}, sse=sse)

    await post(MCPMiddleware(server, runtime), call(), legacy_headers("x"))

    assert (telemetry.span().attributes or {})["error.type"] == "tool_error"


async def test_behind_an_event_beyond_the_bound_the_stream_is_read_on(runtime: Runtime, telemetry: Telemetry) -> None:
    notification = (
        b'data: {"jsonrpc":"2.0","method":"notifications/message","params":{"data":"' + b"x" * 400_000 + b'"}}\n\n'
    )
    answer = b'data: {"jsonrpc":"2.0","id":1,"result":{"isError":true}}\n\n'
    calls: list[Call] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await read(receive)
        calls[:] = exchange_in(scope).calls  # It forgets those that are over.
        await stream(send, [notification[:200_000], notification[200_000:], answer])

    await post(MCPMiddleware(app, runtime), call(), legacy_headers("x"))

    assert calls[0].result_bytes == len(answer) - len(b"data: \n\n")
    assert (telemetry.span().attributes or {})["error.type"] == "tool_error"


async def test_a_large_answer_to_several_calls_is_ascribed_to_none(runtime: Runtime) -> None:
    calls: list[Call] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await read(receive)
        calls[:] = exchange_in(scope).calls  # It forgets those that are over.
        await respond(send, b'[{"jsonrpc":"2.0","id":1,"result":{"text":"' + b"x" * 400_000 + b'"}}]')

    for headers in ((), legacy_headers("x")):
        await post(MCPMiddleware(app, runtime), [call(request_id=1), call(request_id=2)], headers)
        assert [(found.outcome, found.result_bytes) for found in calls] == [(Outcome(unclassified=True), None)] * 2


async def test_an_endless_stream_leaves_nothing_behind(runtime: Runtime) -> None:
    held: list[int] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await read(receive)

        def endless() -> Iterator[bytes]:
            for number in range(30_000):
                yield b'data: {"jsonrpc":"2.0","method":"notifications/message"}\n\n: ping\n\nid: 7\ndata:\n'
                if number % 5_000 == 0:
                    held.append(held_by(send))

        await stream(send, endless())

    await post(MCPMiddleware(app, runtime), call(), legacy_headers("x"))

    assert max(held) < 4 * HELD


@pytest.mark.parametrize("headers", [(), tuple(legacy_headers("x")), MODERN_HEADERS])
async def test_a_request_body_beyond_the_bound_passes_and_is_not_held(
    runtime: Runtime, telemetry: Telemetry, headers: tuple[tuple[str, str], ...]
) -> None:
    body = json.dumps(call(text="x" * 16 * MEGABYTE)).encode()
    chunks = [body[start : start + 65_536] for start in range(0, len(body), 65_536)]
    held: list[int] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        got = 0
        while True:
            message = await receive()
            got += len(message["body"])
            held.append(held_of_body(receive))
            if not message["more_body"]:
                break
        assert got == len(body)
        await respond(send, result())

    reply = await post(MCPMiddleware(app, runtime), None, headers, chunks=chunks, patience=30)

    assert reply.status == 200
    assert max(held) < 2 * MEGABYTE


async def test_a_request_body_beyond_the_bound_is_recognised_by_its_headers(
    runtime: Runtime, telemetry: Telemetry
) -> None:
    message = modern()
    message["params"]["arguments"] = {"text": "x" * 2 * MEGABYTE}
    app = MCPMiddleware(Server(), runtime)

    for _ in range(2):
        await post(app, message, MODERN_HEADERS)

    assert [described(span)["name"] for span in telemetry.spans()] == ["tools/call add"] * 2
    assert sum(telemetry.counts("mcp.server.operation.duration").values()) == 2


async def test_a_request_body_beyond_the_bound_is_recognised_by_its_beginning(
    runtime: Runtime, telemetry: Telemetry
) -> None:
    message = call()
    message["params"]["arguments"] = {"text": "x" * 2 * MEGABYTE}

    reply = await post(MCPMiddleware(Server(), runtime), message, legacy_headers("x"))

    assert reply.status == 200
    (span,) = [span for span in telemetry.spans() if span.name.startswith("tools/call")]
    attributes = dict(span.attributes or {})
    assert (attributes["gen_ai.tool.name"], attributes["jsonrpc.request.id"]) == ("add", "1")
    assert attributes["session.id"] == reply.session_id


@pytest.mark.parametrize("piece", [b"", b"x", b"xy"])
async def test_a_million_tiny_pieces_of_a_body_are_not_a_million_objects(runtime: Runtime, piece: bytes) -> None:
    held: list[int] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        for _ in range(100_000):
            await receive()
        held.append(held_of_body(receive))
        await respond(send, b"", 400)

    async def receive() -> Message:
        return {"type": "http.request", "body": bytes(bytearray(piece)), "more_body": True}

    async def send(message: Any) -> None:
        pass

    await MCPMiddleware(app, runtime)(make_scope(headers=[*JSON_HEADERS, *MODERN_HEADERS]), receive, send)

    assert held[0] < 2 * 100_000 * len(piece) + 1000


async def test_a_large_batch_is_bounded(runtime: Runtime, telemetry: Telemetry) -> None:
    calls: list[Call] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await read(receive)
        calls[:] = exchange_in(scope).calls  # It forgets those that are over.
        await respond(send, b"", 400)

    await post(MCPMiddleware(app, runtime), [ask("ping", number) for number in range(10_000)], legacy_headers("x"))

    assert len(calls) == 100
    assert len(telemetry.spans()) == 100
