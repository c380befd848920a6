"""Plays the server side of ASGI: hands an app its messages, keeps what the app sends; and what apps do to answer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import anyio

from otel_mcp.types import ASGIApp as App
from otel_mcp.types import Message, Receive, Send

Headers = Iterable[tuple[str, str]]


PATIENCE: Final = 60
"""Seconds after which a test that hangs fails."""


@dataclass
class Reply:
    """What the server got from the app for one request."""

    messages: list[Message] = field(default_factory=list[Message])
    error: BaseException | None = None
    """What the app raised."""

    @property
    def status(self) -> int:
        return next(message["status"] for message in self.messages if message["type"] == "http.response.start")

    @property
    def headers(self) -> dict[str, str]:
        start = next(message for message in self.messages if message["type"] == "http.response.start")
        return {name.decode(): value.decode() for name, value in start["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(
            message.get("body", b"") for message in self.messages if message["type"] == "http.response.body"
        )

    @property
    def session_id(self) -> str | None:
        """The session, as we tell it to proxies and people."""
        return self.headers.get("x-session-id")


def make_scope(
    method: str = "POST",
    path: str = "/mcp",
    headers: Headers = (),
    *,
    query: str = "",
    client: tuple[str, int] | None = ("127.0.0.1", 50_000),
) -> Message:
    """The scope of an HTTP request, as uvicorn makes it."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers],
        "client": client,
        "server": ("127.0.0.1", 8000),
    }


JSON_HEADERS: Final = (
    ("host", "127.0.0.1:8000"),
    ("user-agent", "unit/1"),
    ("accept", "application/json, text/event-stream"),
    ("content-type", "application/json"),
)


async def request(
    app: App,
    scope: Message,
    chunks: Sequence[bytes | bytearray | memoryview] = (b"",),
    *,
    left: anyio.Event | None = None,
    patience: float = PATIENCE,
) -> Reply:
    """Serve one request: hand the app its messages, and keep what it sends and raises.

    Args:
        app: the app.
        scope: the request.
        chunks: its body, in pieces.
        left: set when the client leaves; without it the disconnect comes after the last byte, as uvicorn has it.
        patience: seconds after which the test fails.
    """
    reply = Reply()
    waiting = [
        {"type": "http.request", "body": chunk, "more_body": number < len(chunks)}
        for number, chunk in enumerate(chunks, 1)
    ]
    over = left or anyio.Event()

    async def receive() -> Message:
        if waiting:
            return waiting.pop(0)
        await over.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        reply.messages.append(dict(message))
        if left is None and message["type"] == "http.response.body" and not message.get("more_body", False):
            over.set()

    with anyio.fail_after(patience):
        try:
            await app(scope, receive, send)
        except Exception as error:
            reply.error = error
    return reply


def announcing(app: App, opened: anyio.Event, field: str) -> App:
    """The app, whose first message with something in `field` sets `opened` once it has been sent."""

    async def announced(scope: Message, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            await send(message)
            if message.get(field):
                opened.set()

        await app(scope, receive, sending)

    return announced


async def post(
    app: App,
    message: Any,
    headers: Headers = (),
    *,
    chunks: Sequence[bytes] | None = None,
    path: str = "/mcp",
    query: str = "",
    client: tuple[str, int] | None = ("127.0.0.1", 50_000),
    left: anyio.Event | None = None,
    patience: float = PATIENCE,
) -> Reply:
    """Post a JSON-RPC message."""
    body = message if isinstance(message, bytes) else json.dumps(message).encode()
    scope = make_scope("POST", path, [*JSON_HEADERS, *headers], query=query, client=client)
    return await request(app, scope, [body] if chunks is None else chunks, left=left, patience=patience)


async def get(app: App, headers: Headers = (), path: str = "/mcp") -> Reply:
    """Open the stream of a session, and take what comes until the app ends it."""
    return await request(app, make_scope("GET", path, [("accept", "text/event-stream"), *headers]))


async def delete(app: App, headers: Headers = (), path: str = "/mcp") -> Reply:
    """End a session, as a client does."""
    return await request(app, make_scope("DELETE", path, headers))


async def read(receive: Receive) -> bytes:
    """What an app does to get its request body."""
    body = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return body
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return body


async def respond(
    send: Send,
    payload: object = b"",
    status: int = 200,
    headers: Headers = (),
    *,
    content_type: str = "application/json",
) -> None:
    """What an app does to answer at once."""
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    start = [("content-type", content_type), ("content-length", str(len(body))), *headers]
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [(name.encode(), value.encode()) for name, value in start],
        }
    )
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def stream(send: Send, chunks: Iterable[bytes], headers: Headers = (), status: int = 200) -> None:
    """What an app does to answer with an event stream, each chunk a message of its own."""
    start = [("content-type", "text/event-stream"), *headers]
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [(name.encode(), value.encode()) for name, value in start],
        }
    )
    for chunk in chunks:
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def event(payload: object) -> bytes:
    """One event of a stream."""
    return b"event: message\r\ndata: " + json.dumps(payload, ensure_ascii=False).encode() + b"\r\n\r\n"


async def bare(app: App, scope: Message, chunks: Sequence[bytes] = (b"",)) -> Reply:
    """What a server gets from the app without us."""
    return await request(app, dict(scope), chunks)


ADDED: Final = frozenset({b"mcp-session-id", b"x-session-id"})


def without_added_headers(messages: list[Message], reference: list[Message]) -> list[Message]:
    """The messages, less the headers that we may append; everything else must be as in `reference`."""
    cleaned: list[Message] = []
    for number, message in enumerate(messages):
        if message["type"] == "http.response.start" and number < len(reference) and "headers" in message:
            given = list(reference[number].get("headers", ()))
            headers = list(message["headers"])
            extra = headers[len(given) :]
            if headers[: len(given)] == given and all(name in ADDED for name, _ in extra):
                message = {**message, "headers": given}
                if "headers" not in reference[number]:
                    del message["headers"]
        cleaned.append(message)
    return cleaned
