"""Scopes as adapters, frameworks and tests make them, which uvicorn never would: answered as without us."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from otel_mcp import MCPMiddleware
from otel_mcp.types import Message, Receive, Send
from tests.support.asgi import JSON_HEADERS, read, request, respond
from tests.support.asgi import make_scope as usual
from tests.support.messages import MODERN_HEADERS, call, initialize, modern
from tests.support.providers import Telemetry
from tests.unit.conftest import MakeRuntime

pytestmark = pytest.mark.anyio

Change = Callable[[Message], object]


def _headers(change: Callable[[list[tuple[Any, Any]]], object]) -> Change:
    def changed(scope: Message) -> None:
        scope["headers"] = change(scope["headers"])

    return changed


def _without(*names: str) -> Change:
    def changed(scope: Message) -> None:
        for name in names:
            del scope[name]

    return changed


def _with(**values: object) -> Change:
    return lambda scope: scope.update(values)


IS_MCP: dict[str, Change] = {
    "one name is text": _headers(lambda lines: [("x-forwarded-proto", b"https"), *lines]),
    "all is text": _headers(lambda lines: [(name.decode(), value.decode()) for name, value in lines]),
    "one value is text": _headers(lambda lines: [(b"x-team", "blue"), *lines]),
    "text beyond latin-1": _headers(lambda lines: [("x-name", "ключ"), *lines]),
    "names in mixed case": _headers(lambda lines: [(name.title(), value) for name, value in lines]),
    "lists": _headers(lambda lines: [list(line) for line in lines]),
    "a tuple": _headers(tuple),
    "an iterator": _headers(iter),
    "a line of three": _headers(lambda lines: [(b"a", b"b", b"c"), *lines]),
    "a line of none": _headers(lambda lines: [*lines, None]),
    "a value of none": _headers(lambda lines: [*lines, (b"x-empty", None)]),
    "no client": _with(client=None),
    "a client without a port": _with(client=("10.0.0.1", None)),
    "a client of a socket": _with(client=("", 0)),
    "a server of a socket": _with(server=("/run/app.sock", None)),
    "nothing optional": _without("scheme", "http_version", "client", "server", "root_path", "query_string", "asgi"),
}
IS_NONE: dict[str, Change] = {
    "no headers": _without("headers"),
    "headers of none": _with(headers=None),
    "empty headers": _with(headers=[]),
    "no method": _without("method"),
    "no path": lambda scope: (_without("path", "headers")(scope), None),
    "no type": _without("type"),
    "a type of none": _with(type=None),
    "only a type": lambda scope: [scope.pop(name) for name in list(scope) if name != "type"],
}


class App:
    """Answers with the headers that it was given."""

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        await read(receive)
        await respond(send, {"jsonrpc": "2.0", "id": 1, "result": {"headers": repr(list(scope.get("headers") or ()))}})


def _scope(change: Change) -> Message:
    scope = usual(headers=[*JSON_HEADERS, *MODERN_HEADERS, ("traceparent", f"00-{'ab' * 16}-{'cd' * 8}-01")])
    change(scope)
    return scope


@pytest.mark.parametrize("name", [*IS_MCP, *IS_NONE])
@pytest.mark.parametrize("http_span", ["auto", "off"])
async def test_it_is_answered_as_without_us(
    make_runtime: MakeRuntime, telemetry: Telemetry, name: str, http_span: str
) -> None:
    change = IS_MCP.get(name) or IS_NONE[name]
    body = [repr(modern()).replace("'", '"').encode()]
    app = MCPMiddleware(App(), make_runtime(http_span=http_span, response_headers="none", trusted_proxies="10.0.0.0/8"))

    plain = await request(App(), _scope(change), body)
    watched = await request(app, _scope(change), body)

    assert (watched.messages, watched.error) == (plain.messages, plain.error)
    messages = [span.name for span in telemetry.spans() if span.name.startswith("tools/call")]
    assert messages == (["tools/call add"] if name in IS_MCP else [])


ANSWERS: dict[str, Callable[[list[tuple[bytes, bytes]]], object]] = {
    "text": lambda lines: [(name.decode(), value.decode()) for name, value in lines],
    "an iterator of text": lambda lines: iter([(name.decode(), value.decode()) for name, value in lines]),
    "a text value": lambda lines: [*lines, (b"x-team", "blue")],
    "names in mixed case": lambda lines: [(name.title(), value) for name, value in lines],
    "byte arrays": lambda lines: [(bytearray(name), memoryview(value)) for name, value in lines],
    "an iterator of lists": lambda lines: iter([list(line) for line in lines]),
    "a tuple": tuple,
    "none": lambda _: None,
}


class Taken(list[Any]):
    """What a server has of a start whose headers it has read once, as servers do."""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [(bytes_of(n), bytes_of(v)) for n, v in message["headers"] or ()]}
        self.append(message)


def bytes_of(part: str | bytes) -> bytes:
    return part.encode() if isinstance(part, str) else bytes(part)


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("message", [initialize(), modern(), call()], ids=["initialize", "modern", "legacy"])
async def test_odd_headers_of_an_answer_pass_as_without_us(
    make_runtime: MakeRuntime, telemetry: Telemetry, name: str, message: Message
) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await read(receive)
        lines = ANSWERS[name]([(b"content-type", b"application/json"), (b"x-own", b"1")])
        await send({"type": "http.response.start", "status": 200, "headers": lines})
        body = json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": {}}).encode()
        await send({"type": "http.response.body", "body": body})

    async def serve(app: Any) -> Taken:
        scope = usual(headers=[*JSON_HEADERS, *(MODERN_HEADERS if message == modern() else ())])
        taken, messages = Taken(), [{"type": "http.request", "body": json.dumps(message).encode(), "more_body": False}]

        async def receive() -> Message:
            return messages.pop()

        await app(scope, receive, taken)
        return taken

    plain = await serve(app)
    watched = await serve(MCPMiddleware(app, make_runtime(response_headers="none")))

    assert watched == plain
    assert [span.name for span in telemetry.spans()] in (["initialize"], ["tools/call add"])
