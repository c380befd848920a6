"""Calls an ASGI app in this process, without a socket, and tells the CPU that it took."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from time import thread_time_ns
from typing import Any, Final

Message = MutableMapping[str, Any]
ASGIApp = Callable[[Any, Any, Any], Awaitable[None]]
WARM: Final = 200
"""Calls before the first that counts."""
_TURNS: Final = 2
"""Turns of the loop after the app has returned: what it left to other tasks belongs to the call."""


@dataclass(frozen=True, slots=True)
class Request:
    """One kind of HTTP request; ``%d`` in the body stands for the number of the call."""

    method: str
    path: str
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes = b""

    def scope(self) -> dict[str, Any]:
        """A new ASGI scope: apps write into it."""
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": self.method,
            "scheme": "http",
            "path": self.path,
            "raw_path": self.path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": list(self.headers),
            "client": ("127.0.0.1", 51844),
            "server": ("127.0.0.1", 8000),
            "state": {},
        }


class Exchange:
    """One request on its way through the app, with the answer."""

    __slots__ = ("_answered", "_body", "_receives", "chunks", "headers", "status")

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._receives = 0
        self._answered = asyncio.Event()
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.chunks: list[bytes] = []

    async def receive(self) -> Message:
        """The body at once; then, as servers do, nothing until the response is complete."""
        self._receives += 1
        if self._receives == 1:
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self._answered.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = dict(message["headers"])
        elif message["type"] == "http.response.body":
            self.chunks.append(message.get("body", b""))
            if not message.get("more_body", False):
                self._answered.set()


async def call(app: ASGIApp, request: Request, number: int = 1) -> tuple[Exchange, float]:
    """One call, with its number as JSON-RPC id and as argument: the exchange, and us of CPU of this thread."""
    scope = request.scope()
    exchange = Exchange(request.body.replace(b"%d", b"%d" % number))
    began = thread_time_ns()
    await app(scope, exchange.receive, exchange.send)
    for _ in range(_TURNS):
        await asyncio.sleep(0)
    return exchange, (thread_time_ns() - began) / 1000


async def serve(app: ASGIApp, request: Request, calls: int) -> None:
    """Have the app serve so many calls, one after another.

    Raises:
        RuntimeError: One was not answered with 200.
    """
    for number in range(calls):
        exchange, _ = await call(app, request, number + 1)
        if exchange.status != 200:
            raise RuntimeError(f"HTTP {exchange.status} {b''.join(exchange.chunks)!r}")


class Lifespan:
    """Runs the app's lifespan as a server would."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._inbox: asyncio.Queue[Message] = asyncio.Queue()
        self._outbox: asyncio.Queue[Message] = asyncio.Queue()
        self._task: asyncio.Future[None] | None = None

    async def __aenter__(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": {}}
        self._task = asyncio.ensure_future(self._app(scope, self._inbox.get, self._outbox.put))
        await self._inbox.put({"type": "lifespan.startup"})
        assert (await self._outbox.get())["type"] == "lifespan.startup.complete"

    async def __aexit__(self, *_: object) -> None:
        await self._inbox.put({"type": "lifespan.shutdown"})
        await self._outbox.get()
        if self._task is not None:
            await self._task


def settle_memory() -> None:
    """Take what start-up left out of the collector's sight, so that it does not run over it again and again."""
    gc.collect()
    gc.freeze()
