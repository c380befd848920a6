"""Made-up clients on several replicas whose store hangs, drops connections, and whose processes come and go.

Sessions last for 0.6 s here, so that most calls come at an end, a beginning, or both. Whatever happens, each session
that begins ends once, each call is counted once, replicas agree on who a client is, and no deadline is left. But for
one thing, see the end of the test.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import anyio
import pytest

from otel_mcp import MCPMiddleware, guard, settings
from otel_mcp.model.delta import SessionDelta, WriteResult
from otel_mcp.runtime import Runtime
from otel_mcp.sessions import flusher
from otel_mcp.sessions.flusher import Flusher
from otel_mcp.types import Message, Receive, Send
from tests.support.answers import result
from tests.support.asgi import Headers, Reply, delete, post, read, respond
from tests.support.messages import MODERN_HEADERS, call, legacy_headers, modern
from tests.support.providers import Telemetry
from tests.support.stores import Server as Valkey
from tests.unit.identity.test_resolver import jwt

pytestmark = pytest.mark.anyio

SEEDS: Final = range(20) if "OTEL_MCP_LONG_TESTS" in os.environ else range(1)
SECONDS: Final = 5.0
REPLICAS: Final = 3
PEOPLE: Final = ("ann", "bob", "cleo", "dan")
"""Clients of 2026-07-28 with a credential; the first two have two connections each."""
CLIENTS: Final = ("one", "two", "three", "four", "five")
"""Clients of an older revision, each with one id after another."""
PAUSES: Final = (0.01, 0.05, 0.2, 0.55, 0.65, 1.0, 2.2)
TAKES: Final = (0.0, 0.0, 0.0, 0.02, 0.1, 0.5, 0.9, 1.4)
DEADLINES: Final = "otel_mcp:model:deadlines"


class Replica:
    """A process, as far as it matters here: a runtime that may be replaced by another."""

    def __init__(self, make: Callable[[], Runtime]) -> None:
        self._make = make
        self.runtime = make()
        self._serving = 0
        self._open, self._idle = asyncio.Event(), asyncio.Event()
        self._open.set()
        self._idle.set()

    @contextmanager
    def serving(self) -> Generator[Runtime]:
        self._serving += 1
        self._idle.clear()
        try:
            yield self.runtime
        finally:
            self._serving -= 1
            if not self._serving:
                self._idle.set()

    async def opened(self) -> None:
        await self._open.wait()

    async def restart(self) -> None:
        """Finish what is being served, end in order, and begin again."""
        self._open.clear()
        await self._idle.wait()
        await self.end()
        self.runtime = self._make()
        self._open.set()

    async def end(self) -> None:
        await self.runtime.shut_down()


class World:
    """Clients, replicas and what hurts them."""

    def __init__(self, seed: int, valkey: Valkey, telemetry: Telemetry) -> None:
        self._chance = random.Random(seed)
        self._valkey = valkey
        self._telemetry = telemetry
        self.replicas = [Replica(self._make) for _ in range(REPLICAS)]
        self.calls = 0
        self.over = False

    def _make(self) -> Runtime:
        known = settings.load(
            service_name="model",
            redis_url=self._valkey.url,
            flush_interval=0.05,
            session_idle_gap=0.6,
            session_ttl=0.6,
            sweep_interval=0.2,
        )
        providers = self._telemetry
        return Runtime(known, providers.tracer_provider, providers.meter_provider, providers.logger_provider)

    async def ask(self, replica: Replica, message: Any, headers: Headers, takes: float = 0.0) -> Reply:
        async def app(scope: Message, receive: Receive, send: Send) -> None:
            said = json.loads(await read(receive))
            await anyio.sleep(takes)
            await respond(send, result(said["id"]))

        await replica.opened()
        with replica.serving() as runtime:
            reply = await post(MCPMiddleware(app, runtime), message, headers)
        self.calls += 1
        return reply

    async def _leave(self, replica: Replica, headers: Headers) -> None:
        async def app(scope: Message, receive: Receive, send: Send) -> None:
            await respond(send, b"", 200)

        await replica.opened()
        with replica.serving() as runtime:
            await delete(MCPMiddleware(app, runtime), headers)

    async def person(self, name: str) -> None:
        chance = self._chance
        while not self.over:
            await anyio.sleep(chance.choice(PAUSES))
            headers = [*MODERN_HEADERS, jwt(name)]
            await self.ask(chance.choice(self.replicas), modern(), headers, chance.choice(TAKES))

    async def client(self, name: str) -> None:
        chance, number = self._chance, 0
        while not self.over:
            await anyio.sleep(chance.choice(PAUSES))
            headers = legacy_headers(f"{name}-{number}")
            await self.ask(chance.choice(self.replicas), call(), headers, chance.choice(TAKES))
            if chance.random() < 0.15:
                await self._leave(chance.choice(self.replicas), headers)
                number += 1

    async def trouble(self) -> None:
        chance = self._chance
        while not self.over:
            await anyio.sleep(chance.uniform(0.05, 0.5))
            what: Callable[[], Awaitable[None]] = chance.choice((self._hang, self._disconnect, self._restart))
            await what()

    async def _hang(self) -> None:
        self._valkey.hang()
        await anyio.sleep(self._chance.choice((0.05, 0.3, 1.0)))
        self._valkey.resume()

    async def _disconnect(self) -> None:
        """Whatever is under way is done or not, without an answer."""
        with self._valkey.client() as client:
            await asyncio.to_thread(client.execute_command, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    async def _restart(self) -> None:
        await self._chance.choice(self.replicas).restart()

    async def live(self) -> None:
        async def stop() -> None:
            await anyio.sleep(SECONDS)
            self.over = True

        async with anyio.create_task_group() as group:
            group.start_soon(stop)
            group.start_soon(self.trouble)
            for name in (*PEOPLE, *PEOPLE[:2]):
                group.start_soon(self.person, name)
            for name in CLIENTS:
                group.start_soon(self.client, name)

    async def sessions_of(self, people: Sequence[str]) -> dict[str, set[str | None]]:
        """The sessions of these people on each replica."""
        found: dict[str, set[str | None]] = defaultdict(set)
        for name in people:
            for replica in self.replicas:
                found[name].add((await self.ask(replica, modern(), [*MODERN_HEADERS, jwt(name)])).session_id)
        return found


@pytest.fixture(scope="module")
def valkey() -> Iterator[Valkey]:
    server = Valkey()
    yield server
    server.resume()
    server.close()


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Calls that were added to the document of a session that had ended, before its end was reported or after."""
    found: list[int] = []
    apply: Callable[..., None] = Flusher.apply

    def listening(self: Flusher, delta: SessionDelta, result: WriteResult) -> None:
        if result.after_end and result.refused is None:
            found.append(delta.call_count)
        apply(self, delta, result)

    monkeypatch.setattr(Flusher, "apply", listening)
    return found


async def comes_true(what: Callable[[], Awaitable[bool]], seconds: float = 60.0) -> bool:
    with anyio.move_on_after(seconds):
        while not await what():  # noqa: ASYNC110 (what is waited for lies in a store)
            await anyio.sleep(0.1)
        return True
    return False


@pytest.mark.parametrize("seed", SEEDS)
async def test_whatever_happens_each_session_ends_once_and_each_call_is_counted_once(
    seed: int, valkey: Valkey, late: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flusher, "_AFTER_OUTAGE", 0.5)
    guard.failures.clear()
    redis, telemetry = valkey.client(decode_responses=True), Telemetry()
    redis.flushall()
    world = World(seed, valkey, telemetry)

    await world.live()

    async def agreed() -> bool:
        found = await world.sessions_of(PEOPLE)
        return all(len(sessions) == 1 for sessions in found.values())

    assert await comes_true(agreed)

    async def quiet() -> bool:
        for replica in world.replicas:
            replica.runtime.recorder.drain()
        written = all(replica.runtime.sessions.pending == 0 for replica in world.replicas)
        return written and redis.zcard(DEADLINES) == 0

    assert await comes_true(quiet)
    assert redis.zrange(DEADLINES, 0, -1, withscores=True) == []
    for replica in world.replicas:
        await replica.end()

    events = telemetry.events()
    begun, ended = (
        Counter(event["attributes"]["session.id"] for event in events if event["name"] == name)
        for name in ("session.start", "session.end")
    )
    reported = sum(
        event["attributes"]["otel_mcp.session.tool_calls"] for event in events if event["name"] == "session.end"
    )
    points = telemetry.points("otel_mcp.store.dropped")
    dropped: Counter[str] = Counter({attributes["otel_mcp.reason"]: count for attributes, count in points})
    missing = world.calls - reported - sum(dropped.values())
    unreported = sum((begun - ended).values())
    unanswered = sum(
        count
        for attributes, (count, _) in telemetry.points("otel_mcp.store.operation.duration")
        if attributes["otel_mcp.store.outcome"] != "ok"
    )
    # What a process has sent and not heard of when it ends counts as lost, whether it was written or not.
    assert dropped["shutdown"] or ended - begun == Counter()
    assert missing >= -dropped["shutdown"]
    # An expiry whose claim was not answered is not reported where another process begins a session under the id then.
    assert unreported <= unanswered
    assert unreported or missing <= sum(late)
    assert guard.failures == Counter()
    telemetry.shut_down()
