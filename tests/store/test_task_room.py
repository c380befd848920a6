"""Tasks of a service that has more of them than are followed, in memory, on fakeredis, on Valkey and on Redis."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import anyio
import pytest

from otel_mcp.model.task import Followed, TaskEnd
from otel_mcp.sessions.tasks import TaskTable
from otel_mcp.store.base import Change, StoreDown
from tests.store.conftest import Replicas
from tests.store.test_tasks import LINK, active, begun, count, now, seen, stores
from tests.support.stores import Server

__all__ = ["now"]

pytestmark = pytest.mark.anyio


@pytest.fixture
def has_room_for(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    return lambda most: monkeypatch.setattr("otel_mcp.sessions.tasks.MOST", most)


async def test_beyond_the_bound_only_what_is_over_makes_room(
    replicas: Replicas, now: float, has_room_for: Callable[[int], None]
) -> None:
    has_room_for(3)
    one, _ = stores(replicas, now)
    await one.follow("1:1", [begun(str(number), now - 9) for number in range(3)])

    full = await one.follow("1:2", [begun("3", now - 8), seen("unknown", now, "working"), begun("0", now - 9)])
    await one.follow("1:3", [seen("0", now, "completed", fetched=True)])
    taken = await one.follow("1:4", [begun("4", now - 7)])

    assert full == Followed([], [None, "", LINK])
    assert (taken.ends, await active(one)) == ([], {("build it", "working"): 3})


async def test_what_has_ended_longest_ago_makes_room_for_what_begins(
    replicas: Replicas, now: float, has_room_for: Callable[[int], None]
) -> None:
    has_room_for(3)
    one, _ = stores(replicas, now)
    await one.follow("1:1", [begun(str(number), now - 9) for number in range(3)])
    await one.follow("1:2", [seen("1", now - 3, "completed"), seen("2", now - 5, "failed")])

    unknown = await one.follow("1:3", [seen("unknown", now, "working")])
    answer = await one.follow("1:4", [begun(key, now - 2) for key in ("3", "4", "5")])

    assert unknown == Followed([], [""])
    ends = [TaskEnd("build it", status, None) for status in ("failed", "completed")]
    assert answer == Followed(ends, [LINK, LINK, None])
    assert await active(one) == {("build it", "working"): 3}


async def test_a_full_store_reads_its_tasks_once_in_a_batch(
    replicas: Replicas, backend: Any, now: float, has_room_for: Callable[[int], None]
) -> None:
    if not isinstance(backend, Server):
        return
    has_room_for(10)
    store, _ = stores(replicas, now)
    await store.follow("1:1", [begun(str(number), now - 9) for number in range(10)])
    both = [(seen(f"unknown-{number}", now, "working"), begun(str(number), now - 5)) for number in range(10)]
    with backend.client() as client:
        client.config_resetstat()
        await store.follow("1:2", [news for pair in both for news in pair])
        statistics: Any = client.info("commandstats")

    assert statistics["cmdstat_hgetall"]["calls"] == 1


async def fill(table: TaskTable, now: float, most: int) -> None:
    """Have tasks that all have ended, and that nobody fetches; the first one first."""
    await table.follow("fill:1", [begun(f"old-{number}", now - 90) for number in range(most)])
    ended = [seen(f"old-{number}", now - 80 + number / 1000, "completed") for number in range(most)]
    assert len((await table.follow("fill:2", ended)).ends) == most


async def test_processes_that_make_room_at_once_all_find_it(
    replicas: Replicas, now: float, has_room_for: Callable[[int], None]
) -> None:
    has_room_for(200)
    tables = [table for _ in range(8) for table in stores(replicas, now)]
    await fill(tables[0], now, 200)
    found: list[Followed] = []

    async def follow(at: int, table: TaskTable) -> None:
        found.append(await table.follow(f"{at}:1", [begun(f"{at}-{number}", now - 9) for number in range(5)]))

    async with anyio.create_task_group() as group:
        for at, table in enumerate(tables):
            group.start_soon(follow, at, table)

    assert [link for answer in found for link in answer.links] == [LINK] * 80
    assert [end for answer in found for end in answer.ends] == [TaskEnd("build it", "completed", None)] * 80
    assert await active(tables[0]) == {("build it", "working"): 80}


async def test_ends_are_reported_though_beginnings_with_them_find_no_room(
    replicas: Replicas, now: float, has_room_for: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("otel_mcp.sessions.tasks._TRIES", 1)  # Others are faster each time.
    has_room_for(1)
    one, _ = stores(replicas, now)
    await one.follow("1:1", [begun("0", now - 9)])

    answer = await one.follow("1:2", [begun("1", now - 5), seen("0", now - 4, "failed")])

    assert answer == Followed([TaskEnd("build it", "failed", 5.0)], [None, LINK])


async def test_what_made_room_is_reported_though_the_answer_was_lost(
    replicas: Replicas, now: float, has_room_for: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    has_room_for(3)
    (store, _) = replicas.store(now - 100)
    one, swap = TaskTable(store), store.swap
    await fill(one, now, 3)
    news, lost = [begun("a", now - 5), begun("b", now - 5)], list[int]()

    async def lose_answer(table: str, changes: Mapping[str, Change], most: int, kept: float) -> set[str]:
        missed = await swap(table, changes, most, kept)
        if not missed and not lost:
            lost.append(len(changes))
            raise StoreDown("TimeoutError")
        return missed

    monkeypatch.setattr(store, "swap", lose_answer)
    with pytest.raises(StoreDown):
        await one.follow("1:1", news)

    again = [await one.follow("1:1", news) for _ in range(2)]

    assert lost == [2]
    assert again == [Followed([TaskEnd("build it", "completed", None)] * 2, [LINK, LINK])] * 2


async def test_a_place_is_taken_with_the_entry_that_had_it_or_not(replicas: Replicas, now: float) -> None:
    store, _ = replicas.store(now)
    entries = {name: Change(None, f"text {name}") for name in "ab"}
    assert await store.swap("table", entries, 2, 60.0) == set()

    late = await store.swap("table", {"c": Change(None, "new", ("a", "text of before"))}, 2, 60.0)
    known = await store.swap("table", {"b": Change(None, "new", ("a", "text a"))}, 2, 60.0)
    assert (late, known, await store.entries("table")) == ({"c"}, {"b"}, {"a": "text a", "b": "text b"})

    assert await store.swap("table", {"c": Change(None, "new", ("a", "text a"))}, 2, 60.0) == set()
    assert await store.entries("table") == {"b": "text b", "c": "new"}


async def test_ids_that_no_call_began_make_room_first(
    replicas: Replicas, now: float, has_room_for: Callable[[int], None]
) -> None:
    has_room_for(3)
    one, two = stores(replicas, now)
    await fill(one, now, 1)
    made_up = [await two.follow(f"2:{at}", [seen(str(at), now, "cancelled")]) for at in range(4)]

    answers = [await one.follow(f"1:{at}", [begun(key, now - 5)]) for at, key in enumerate("abcd")]

    assert made_up == [Followed([], [""])] * 4
    ends = [[], [], [TaskEnd("build it", "completed", None)], []]
    assert answers == [Followed(end, [LINK if at < 3 else None]) for at, end in enumerate(ends)]


async def test_an_end_that_comes_first_finds_room_among_what_has_ended(
    replicas: Replicas, now: float, has_room_for: Callable[[int], None]
) -> None:
    has_room_for(2)
    one, two = stores(replicas, now)
    await fill(one, now, 2)

    early = await two.follow("2:1", [seen("a", now - 2, "completed")])
    answer = await one.follow("1:1", [begun("a", now - 3)])

    assert early == Followed([TaskEnd("build it", "completed", None)], [""])
    assert answer == Followed([TaskEnd("build it", "completed", 1.0)], [LINK])
    assert (await count(one)).active == {}
