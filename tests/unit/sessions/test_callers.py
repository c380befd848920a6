"""How many callers have called tools today: each counted once, whatever the store does meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from otel_mcp import MCPMiddleware
from otel_mcp.sessions.callers import Callers
from otel_mcp.sessions.health import StoreHealth
from otel_mcp.store.base import StoreDown
from otel_mcp.store.memory import MemoryStore
from tests.support.answers import Server
from tests.support.asgi import post
from tests.support.messages import ask, legacy_headers, modern
from tests.support.providers import Telemetry
from tests.support.stores import Listener, settings
from tests.unit.conftest import MakeRuntime

pytestmark = pytest.mark.anyio

METRIC = "otel_mcp.callers.active"
MORNING = 1_750_000_000.0
KEY = b"shared"


class Counting(MemoryStore):
    """A store that says what it was asked, and may be away."""

    def __init__(self) -> None:
        super().__init__(settings())
        self.asked: list[tuple[str, int]] = []
        self.is_away = False
        self.keeps = True

    async def callers(self, day: str, hashes: Sequence[str]) -> int:
        if self.is_away:
            raise StoreDown("away")
        self.asked.append((day, len(hashes)))
        return await super().callers(day, hashes) if self.keeps else 0


class Day:
    """Callers of one process, with a clock that a test moves."""

    def __init__(self, store: Counting | None = None) -> None:
        self.now = MORNING
        self.store = store if store is not None else Counting()
        self.health = StoreHealth(Listener(), clock=lambda: self.now)
        self.callers = Callers(self.store, self.health, clock=lambda: self.now)

    async def call(self, *names: str) -> int | None:
        self.callers.add(set(names), KEY)
        await self.callers.count()
        return self.callers.number


async def test_each_caller_counts_once_whichever_process_it_calls() -> None:
    one = Day()
    other = Day(one.store)

    assert await one.call("ann", "bob") == 2
    assert await other.call("bob", "cid") == 3
    assert await one.call("ann") == 3


async def test_who_is_counted_is_not_sent_again() -> None:
    day = Day()
    for _ in range(3):
        await day.call("ann")

    assert day.store.asked == [("2025-06-15", 1), ("2025-06-15", 0), ("2025-06-15", 0)]


async def test_a_day_begins_at_midnight_utc_with_nobody() -> None:
    day = Day()
    await day.call("ann", "bob")
    day.now += 86_400.0

    assert await day.call() == 0
    assert await day.call("ann") == 1


async def test_nobody_of_yesterday_counts_today() -> None:
    day = Day()
    await day.call("ann", "bob")
    day.now += 86_400.0

    await day.callers.count()
    assert day.callers.number == 0
    assert day.store.asked[-1] == ("2025-06-16", 0)


async def test_everybody_is_counted_again_after_an_outage() -> None:
    one = Day()
    other = Day(one.store)
    await one.call("ann", "bob", "cid")
    await other.call("dan")
    one.store._callers = "", set()  # pyright: ignore[reportPrivateUsage]
    for day in (one, other):
        day.health.failed(StoreDown("killed"))
        day.health.succeeded()

    assert await one.call("eve") == 4
    assert await other.call() == 5


async def test_callers_of_an_outage_count_for_the_day_on_which_they_called() -> None:
    day = Day()
    day.store.is_away = True
    await day.call("ann", "bob")
    day.now += 86_400.0
    day.store.is_away = False
    day.health.succeeded()

    assert await day.call("ann") == 1
    assert day.store.asked == [("2025-06-15", 2), ("2025-06-16", 1), ("2025-06-16", 1)]  # Once more, to be sure.


async def test_everybody_is_counted_again_where_the_store_has_lost_the_count() -> None:
    one = Day()
    other = Day(one.store)
    await one.call("ann", "bob", "cid")
    await other.call("cid", "dan")
    one.store._callers = "", set()  # pyright: ignore[reportPrivateUsage]

    assert await one.call() == 3  # Though none of them calls again.
    assert await other.call() == 4
    assert await one.call() == 4


async def test_a_store_that_cannot_count_is_asked_once_more_and_no_further() -> None:
    day = Day()
    await day.call("ann", "bob")
    day.store.keeps = False
    day.store.asked.clear()

    assert await day.call() == 0
    assert day.store.asked == [("2025-06-15", 0), ("2025-06-15", 2)]


async def test_what_waits_is_bounded_and_who_finds_no_room_comes_later() -> None:
    day = Day()
    day.store.is_away = True
    names = {str(number) for number in range(12_000)}
    await day.call(*names)
    assert len(day.callers.waiting) == 10_000

    day.store.is_away = False
    day.health.succeeded()
    await day.callers.count()
    assert not day.callers.waiting
    day.callers.add(names, KEY)
    assert len(day.callers.waiting) >= 2000


@pytest.mark.parametrize(
    ("headers", "counted"),
    [
        ([("authorization", "Bearer ann")], [({}, 1)]),
        ([], [({}, 1)]),
        ([("x-forwarded-for", "10.9.9.9"), *legacy_headers("own")], [({}, 0)]),
    ],
)
async def test_a_caller_is_a_credential_else_an_address_of_its_own(
    make_runtime: MakeRuntime, telemetry: Telemetry, headers: list[tuple[str, str]], counted: list[Any]
) -> None:
    runtime = make_runtime()
    app = MCPMiddleware(Server(), runtime)
    for _ in range(2):
        await post(app, modern(), headers, client=("10.0.0.1", 50_000))
    runtime.recorder.drain()
    await runtime.sessions.flush()
    await runtime.sessions.worker.turn()

    assert telemetry.points(METRIC) == counted


async def test_only_calls_of_tools_count(make_runtime: MakeRuntime, telemetry: Telemetry) -> None:
    runtime = make_runtime()
    await post(
        MCPMiddleware(Server(), runtime), ask("tools/list"), [*legacy_headers("own"), ("authorization", "Bearer x")]
    )
    runtime.recorder.drain()
    await runtime.sessions.flush()
    await runtime.sessions.worker.turn()

    assert telemetry.points(METRIC) == [({}, 0)]
