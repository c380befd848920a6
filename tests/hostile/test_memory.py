"""Whatever passes, little of it is held: the peak of what is allocated while it does, in bytes."""

from __future__ import annotations

import gc
import json
import tracemalloc
from collections.abc import Iterable
from typing import Any

import pytest

from otel_mcp import MCPMiddleware, current
from otel_mcp.integrations import http
from otel_mcp.model.call import SCOPE_KEY, Call
from otel_mcp.runtime import Runtime
from otel_mcp.types import Message, Receive, Send
from otel_mcp.wire.sse import Decoder
from tests.support.answers import result
from tests.support.asgi import JSON_HEADERS, make_scope, post, read, respond
from tests.support.messages import call, legacy_headers
from tests.support.providers import Telemetry

pytestmark = pytest.mark.anyio

MIB = 1024 * 1024
HEAD = b'{"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"text","text":"'


async def peak(runtime: Runtime, incoming: Iterable[Any], outgoing: Iterable[Any], content_type: bytes) -> int:
    """Bytes allocated at most while one exchange passes, over what server and app hold of it."""
    chunks = iter(incoming)

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        while (await receive())["more_body"]:
            pass
        headers = [(b"content-type", content_type)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for body in outgoing:
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def receive() -> Message:
        body = next(chunks, None)
        return {"type": "http.request", "body": body or b"", "more_body": body is not None}

    async def send(message: Any) -> None:
        pass

    scope = make_scope(headers=[*JSON_HEADERS, *legacy_headers("x")])
    watched = MCPMiddleware(app, runtime)
    gc.collect()
    tracemalloc.start()
    try:
        await watched(scope, receive, send)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


ASKED = [b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"add"}}']
PIECE = b"x" * 64 * 1024
LINES = b"\n" * 64 * 1024
WHOLE = b"data: " + HEAD + b"x" * 50 * MIB + b'"}]}}\n\n'
SHORT_LINES = b"data: x\n" * (MIB // 2)
ANSWERS: dict[str, tuple[Iterable[Any], bytes]] = {
    "100 MiB of JSON": ([HEAD, *[PIECE] * 1600, b'"}]}}'], b"application/json"),
    "100 MiB of JSON at once": ([memoryview(bytearray(100 * MIB))], b"application/json"),
    "100 MiB event": ([b"data: " + HEAD, *[PIECE] * 1600, b'"}]}}\n\n'], b"text/event-stream"),
    "50 MiB event at once": ([WHOLE], b"text/event-stream"),
    "4 MiB of short lines at once": ([SHORT_LINES], b"text/event-stream"),
    "2 MiB of empty lines": ([LINES] * 32, b"text/event-stream"),
    "100 MiB without an end of line": ([PIECE] * 1600, b"text/event-stream"),
    "100 MiB of some other field": ([b"retry: ", *[PIECE] * 1600], b"text/event-stream"),
    "endless comments": ([b": ping\n\n"] * 50_000, b"text/event-stream"),
    "tiny chunks": ([b"x"] * 50_000, b"text/event-stream"),
    "tiny chunks of JSON": ([b"x"] * 50_000, b"application/json"),
}


@pytest.mark.parametrize("name", ANSWERS)
async def test_an_answer_of_any_size_passes_in_a_few_mib(name: str, runtime: Runtime) -> None:
    chunks, content_type = ANSWERS[name]

    assert await peak(runtime, ASKED, chunks, content_type) < 4 * MIB


@pytest.mark.parametrize("chunks", [[PIECE] * 256, [b"x" * 16 * MIB], [b"x"] * 50_000, [b""] * 50_000])
async def test_a_request_of_16_mib_passes_in_a_few_mib(chunks: list[bytes], runtime: Runtime) -> None:
    assert await peak(runtime, chunks, [b"{}"], b"application/json") < 4 * MIB


@pytest.mark.parametrize("kind", [memoryview, bytearray])
async def test_an_answer_in_a_buffer_is_read_without_changing_the_buffer(
    kind: Any, runtime: Runtime, telemetry: Telemetry
) -> None:
    body = b'{"jsonrpc":"2.0","id":1,"result":{"isError":true,"content":[]}}'
    first, second = bytearray(body[:20]), bytearray(body[20:])

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await read(receive)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": kind(first), "more_body": True})
        await send({"type": "http.response.body", "body": kind(second), "more_body": False})

    reply = await post(MCPMiddleware(app, runtime), call(), legacy_headers("x"))

    assert reply.body == body
    assert bytes(first + second) == body
    assert dict(telemetry.span().attributes or {})["error.type"] == "tool_error"


@pytest.mark.parametrize("kind", [bytes, memoryview, bytearray])
def test_a_slice_of_a_huge_chunk_may_end_anywhere(kind: Any) -> None:
    stream = b"".join(b"event: e\r\ndata: %d\r\n\r\n" % number for number in range(20_000))
    expected = [str(number).encode() for number in range(20_000)]

    for shift in range(4):
        events = list(Decoder(100).feed(kind(b"\n" * shift + stream)))
        assert [event.data for event in events] == expected


async def test_large_arguments_do_not_wait_to_be_recorded(runtime: Runtime, telemetry: Telemetry) -> None:
    calls: list[Call] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await read(receive)
        calls.extend(scope[SCOPE_KEY].calls)
        await respond(send, result())

    message = call(meta={"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01", "blob": "x" * 100_000})
    message["params"]["arguments"] = {"text": "x" * 100_000}
    await post(MCPMiddleware(app, runtime), message, legacy_headers("x"))

    assert len(repr((calls[0].params, calls[0].meta, calls[0].arguments))) < 1000
    span = telemetry.span()
    assert span.context is not None
    assert f"{span.context.trace_id:032x}" == "ab" * 16


@pytest.mark.parametrize(("sessions", "kept"), [(1, range(6, 10)), (100, range(58, 68))])
async def test_calls_that_wait_for_answers_hold_at_most_64_mib(runtime: Runtime, sessions: int, kept: range) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await read(receive)
        await respond(send, b"", 202)

    watched = MCPMiddleware(app, runtime)
    for number in range(100):
        message = call(request_id=number)
        message["params"]["arguments"] = {"text": "x" * 1_000_000}
        await post(watched, message, legacy_headers(f"x-{number % sessions}"))

    waiting = list(runtime.exchanges.inflight.waiting)
    assert len(waiting) in kept
    # Of one session the newest are waited for; others' are not given up for a newer one.
    assert waiting[-1 if sessions == 1 else 0].id == (99 if sessions == 1 else 0)
    assert all(len(repr(one.params)) < 1000 for one in waiting)


class Route:
    """A route of Starlette's, as far as the patch looks at it."""

    def __init__(self, endpoint: Any) -> None:
        self.endpoint = endpoint

    async def handle(self, scope: Message, receive: Receive, send: Send) -> None:
        await self.endpoint(scope, receive, send)


@pytest.fixture
def route_app(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the app of a server that has one route."""
    monkeypatch.setattr(current, "runtime", runtime)
    handle = vars(http)["_route"](Route.handle)

    def make(endpoint: Any) -> Any:
        async def app(scope: Message, receive: Receive, send: Send) -> None:
            await handle(Route(endpoint), scope, receive, send)

        return MCPMiddleware(app, runtime)

    return make


async def test_who_sends_no_length_changes_nothing_for_those_who_do(route_app: Any, telemetry: Telemetry) -> None:
    async def endpoint(scope: Message, receive: Receive, send: Send) -> None:
        if b"fail" not in await read(receive):
            return await respond(send, {"jsonrpc": "2.0", "id": 1, "result": {}})
        await respond(send, b"", 500)
        raise LookupError

    app, failing = route_app(endpoint), json.dumps(call("fail")).encode()
    for headers in ([], [("content-length", str(len(failing)))]):
        await post(app, failing if headers else call(), [*legacy_headers("x"), *headers])

    assert [(span.attributes or {}).get("error.type") for span in telemetry.spans()] == [None, "500"]
