"""A request waits for the store within one patience, however many questions it has: counted in looks at the answers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any, Final

import pytest

from otel_mcp import MCPMiddleware
from otel_mcp.model.call import SCOPE_KEY, Exchange
from otel_mcp.runtime import Runtime
from otel_mcp.sessions import service
from otel_mcp.sessions.pulse import PATIENCE, Pulse
from otel_mcp.store.memory import MemoryStore
from tests.unit.conftest import MakeRuntime
from tests.unit.kit import (
    MODERN_HEADERS,
    Headers,
    Message,
    Receive,
    Send,
    Server,
    call,
    initialize,
    legacy_headers,
    modern,
    post,
)

pytestmark = pytest.mark.anyio

LINK: Final = 12
"""Looks that an answer takes: 30 ms."""
MOST: Final = 20
"""Looks in one patience."""


class FarStore:
    """A store at the other end of a slow link; only what a request asks takes long."""

    def __init__(self, memory: MemoryStore) -> None:
        self.memory = memory
        self.looks = 0
        self.asked: Counter[str] = Counter()
        self.is_far = True
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []

    def looked(self) -> None:
        self.looks += 1
        for due, future in self._waiting:
            if due <= self.looks and not future.done():
                future.set_result(None)

    def come_near(self) -> None:
        self.is_far = False
        for _, future in self._waiting:
            if not future.done():
                future.set_result(None)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.memory, name)
        if name not in {"describe", "get", "get_or_set", "get_or_set_successor"}:
            return method

        async def far(*arguments: Any) -> Any:
            self.asked[name] += 1
            if self.is_far:
                future = asyncio.get_running_loop().create_future()
                self._waiting.append((self.looks + LINK, future))
                await future
            return await method(*arguments)

        return far


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> FarStore:
    made: list[FarStore] = []

    def choose(settings: Any, _: Any) -> FarStore:
        made.append(FarStore(MemoryStore(settings)))
        return made[-1]

    count = vars(Pulse)["_count"]

    def looked(pulse: Pulse, late: float) -> None:
        count(pulse, 0.0)  # As if this machine were never late.
        made[-1].looked()

    monkeypatch.setattr(service, "choose", choose)
    monkeypatch.setattr(Pulse, "_count", looked)
    return made  # type: ignore[return-value]


@pytest.fixture
async def runtime(make_runtime: MakeRuntime, store: list[FarStore]) -> AsyncIterator[Runtime]:
    runtime = make_runtime(session_sources="conversation,header,cookie,inferred")
    for _ in range(32):
        vars(runtime.sessions)["_lookups"].pace.note(0.03)
    yield runtime
    store[-1].come_near()
    await runtime.shut_down()


class Seen:
    """An app that keeps the record of each request, and hands it on."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.exchanges: list[Exchange] = []

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        self.exchanges.append(scope[SCOPE_KEY])
        await self.app(scope, receive, send)


FIRST_SIGHTS: Final = [
    pytest.param(call(), legacy_headers("lost"), id="unknown id"),
    pytest.param(call(), [("x-session-id", "lost"), ("mcp-protocol-version", "2025-11-25")], id="named session"),
    pytest.param(call(meta={"openai/session": "chat"}), legacy_headers("lost"), id="conversation"),
    pytest.param(modern(), [*MODERN_HEADERS, ("authorization", "Bearer t")], id="inferred"),
    pytest.param(initialize(), [], id="handshake"),
    pytest.param(initialize(), [("mcp-session-id", "lost")], id="handshake under an id"),
]


@pytest.mark.parametrize("known", [False, True], ids=["span afterwards", "span at once"])
@pytest.mark.parametrize(("message", "headers"), FIRST_SIGHTS)
async def test_a_first_sight_waits_for_one_patience_at_most(
    message: Message, headers: Headers, known: bool, runtime: Runtime, store: list[FarStore]
) -> None:
    seen = Seen(Server())
    app = MCPMiddleware(seen, runtime)
    far = store[-1]
    if known:
        far.is_far = False
        await post(app, call(), [("mcp-protocol-version", "2025-11-25"), ("via", "1.1 proxy")])
        far.is_far = True
    far.looks = 0

    reply = await post(app, message, headers)

    assert reply.status == 200
    assert seen.exchanges[-1].waited <= PATIENCE + 0.0026
    assert far.looks <= MOST + 3  # Each question begins between two looks.
    assert reply.session_id is not None


async def test_what_a_request_does_not_wait_for_is_asked_all_the_same(runtime: Runtime, store: list[FarStore]) -> None:
    app = MCPMiddleware(Server(), runtime)
    far = store[-1]
    await post(app, initialize())  # Now the hash key is known.

    reply = await post(app, call(), legacy_headers("lost"))
    assert far.asked["get_or_set_successor"] == 1, far.asked
    assert (await far.memory.describe("lost")).successor is None
    far.come_near()
    for _ in range(20):
        await asyncio.sleep(0)

    assert (await far.memory.describe("lost")).successor == reply.session_id
    assert (await post(app, call(), legacy_headers("lost"))).session_id == reply.session_id


async def test_one_slow_request_takes_nothing_of_anothers_patience(runtime: Runtime, store: list[FarStore]) -> None:
    seen = Seen(Server())
    app = MCPMiddleware(seen, runtime)

    for number in range(2):
        await post(app, call(), legacy_headers(f"lost-{number}"))

    assert all(exchange.waited > 0.02 for exchange in seen.exchanges)
