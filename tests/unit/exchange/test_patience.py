"""A request waits for the store within one patience, however many questions it has."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, Final

import pytest

from otel_mcp import MCPMiddleware
from otel_mcp.model.call import SCOPE_KEY, Exchange
from otel_mcp.runtime import Runtime
from otel_mcp.sessions import service
from otel_mcp.sessions.health import PATIENCE
from otel_mcp.store.memory import MemoryStore
from otel_mcp.types import Message, Receive, Send
from tests.support.answers import Server
from tests.support.asgi import Headers, post
from tests.support.messages import MODERN_HEADERS, call, initialize, legacy_headers, modern
from tests.unit.conftest import MakeRuntime

pytestmark = pytest.mark.anyio

LINK: Final = 0.03
"""Seconds that an answer takes: two of them are more than one patience."""


class FarStore:
    """A store at the other end of a slow link; only what a request asks takes long."""

    def __init__(self, memory: MemoryStore) -> None:
        self.memory = memory
        self.asked: Counter[str] = Counter()
        self.seconds: dict[str, float] = {}
        """That answers take to an operation, where it is not `LINK`."""
        self.near = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.memory, name)
        if name not in {"describe", "get", "get_or_set", "get_or_set_successor"}:
            return method

        async def far(*arguments: Any) -> Any:
            self.asked[name] += 1
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.near.wait(), self.seconds.get(name, LINK))
            return await method(*arguments)

        return far


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> list[FarStore]:
    made: list[FarStore] = []

    def choose(settings: Any, _: Any) -> FarStore:
        made.append(FarStore(MemoryStore(settings)))
        return made[-1]

    monkeypatch.setattr(service, "choose", choose)
    return made


@pytest.fixture
async def runtime(make_runtime: MakeRuntime, store: list[FarStore]) -> AsyncIterator[Runtime]:
    runtime = make_runtime(session_sources="conversation,header,cookie,inferred")
    yield runtime
    store[-1].near.set()
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
        far.near.set()
        await post(app, call(), [("mcp-protocol-version", "2025-11-25"), ("via", "1.1 proxy")])
        far.near.clear()

    reply = await post(app, message, headers)

    assert reply.status == 200
    assert seen.exchanges[-1].waited <= PATIENCE + 0.011
    assert reply.session_id is not None


async def test_a_question_beyond_patience_is_asked_all_the_same(runtime: Runtime, store: list[FarStore]) -> None:
    app = MCPMiddleware(Server(), runtime)
    far = store[-1]
    await post(app, initialize())  # Now the hash key is known.
    far.seconds["get_or_set_successor"] = 3600

    reply = await post(app, call(), legacy_headers("lost"))
    await asyncio.sleep(0)
    assert far.asked["get_or_set_successor"] == 1, far.asked
    assert (await far.memory.describe("lost")).successor is None
    far.near.set()
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
