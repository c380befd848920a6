"""Tasks that several processes have seen, in memory, on fakeredis, on Valkey and on Redis."""

from __future__ import annotations

import itertools
import time
from typing import Any

import anyio
import pytest

from otel_mcp.model.task import Followed, TaskCensus, TaskEnd, TaskNews
from otel_mcp.sessions.tasks import TaskTable
from otel_mcp.wire.tasks import TaskStatus
from tests.store.conftest import Replicas

pytestmark = pytest.mark.anyio

LINK = f"{'ab' * 16}-{'cd' * 8}"
DAY = 86_400.0
_COUNTS = itertools.count()


@pytest.fixture
def now() -> float:
    return float(int(time.time()))


def begun(key: str, at: float, *, ttl: float | None = 600.0, tool: str = "build it") -> TaskNews:
    return TaskNews(key, at + 0.005, "working", None, ttl, began=at, tool=tool, link=LINK)


def seen(key: str, at: float, status: TaskStatus, *, ended: float | None = None, fetched: bool = False) -> TaskNews:
    return TaskNews(key, at, status, ended, None, fetched)


def stores(replicas: Replicas, now: float) -> tuple[TaskTable, TaskTable]:
    return TaskTable(replicas.store(now - 100)[0]), TaskTable(replicas.store(now - 100)[0])


async def active(store: TaskTable) -> dict[tuple[str, str], int]:
    return (await count(store)).active


async def count(store: TaskTable, batch: str | None = None) -> TaskCensus:
    """Count the tasks, by default not for the second time."""
    return await store.count(batch or f"count:{next(_COUNTS)}")


async def test_any_process_ends_a_task_and_learns_who_began_it(replicas: Replicas, now: float) -> None:
    one, two = stores(replicas, now)
    assert await one.follow("1:1", [begun("a", now - 30)]) == Followed([], [LINK])
    assert await active(two) == {("build it", "working"): 1}
    assert (await count(two)).oldest == {"build it": pytest.approx(now - 30, abs=0.01)}

    asked = await two.follow("2:1", [seen("a", now - 20, "input_required")])
    waiting = await active(one)
    ended = await two.follow("2:2", [seen("a", now - 5, "completed", ended=now - 10)])
    again = await one.follow("1:2", [seen("a", now, "completed", fetched=True)])

    assert (asked, waiting) == (Followed([], [LINK]), {("build it", "input_required"): 1})
    assert ended == Followed([TaskEnd("build it", "completed", 20.0)], [LINK])
    assert again == Followed([], [LINK])
    assert await count(one) == TaskCensus()


async def test_the_same_news_are_answered_alike_and_end_a_task_once(replicas: Replicas, now: float) -> None:
    one, two = stores(replicas, now)
    beginning, end = [begun("a", now - 9)], [seen("a", now - 4, "failed"), seen("a", now - 3, "failed")]

    answers = [await one.follow("1:1", beginning), await two.follow("2:1", end)]
    again = [await one.follow("1:1", beginning), await two.follow("2:1", end)]

    assert answers == again == [Followed([], [LINK]), Followed([TaskEnd("build it", "failed", 5.0)], [LINK, LINK])]


async def test_processes_that_see_one_end_at_once_report_it_once(replicas: Replicas, now: float) -> None:
    tables = [table for _ in range(4) for table in stores(replicas, now)]
    await tables[0].follow("0:1", [begun(str(number), now - 9) for number in range(20)])
    ends = [seen(str(number), now - 4, "completed") for number in range(20)]
    found: list[Followed] = []

    async def follow(at: int, table: TaskTable) -> None:
        found.append(await table.follow(f"{at}:2", ends[at:] + ends[:at]))

    async with anyio.create_task_group() as group:
        for at, table in enumerate(tables):
            group.start_soon(follow, at, table)

    assert [end for answer in found for end in answer.ends] == [TaskEnd("build it", "completed", 5.0)] * 20
    assert [set(answer.links) for answer in found] == [{LINK}] * 8


async def test_an_end_that_comes_before_the_beginning_is_reported_with_that(replicas: Replicas, now: float) -> None:
    one, two = stores(replicas, now)
    assert await two.follow("2:1", [seen("a", now - 2, "cancelled")]) == Followed([], [""])
    assert await count(one) == TaskCensus()

    assert await one.follow("1:1", [begun("a", now - 3)]) == Followed([TaskEnd("build it", "cancelled", 1.0)], [LINK])


async def test_an_end_waits_ten_minutes_for_the_beginning_of_a_replica_cut_off(replicas: Replicas, now: float) -> None:
    one, two = stores(replicas, now)
    await two.follow("2:1", [seen("a", now - 590, "completed", fetched=True), seen("b", now - 610, "cancelled")])
    await count(two)

    assert (await one.follow("1:1", [begun("a", now - 600)])).ends == [TaskEnd("build it", "completed", 10.0)]
    assert (await one.follow("1:2", [begun("b", now - 620)])).ends == []


async def test_what_a_task_reached_first_stands(replicas: Replicas, now: float) -> None:
    one, two = stores(replicas, now)
    await one.follow("1:1", [begun("a", now - 3)])
    ended = await two.follow("2:1", [seen("a", now - 1, "completed"), seen("a", now, "working")])
    later = await one.follow("1:2", [seen("a", now, "cancelled")])

    assert (ended.ends, later.ends) == ([TaskEnd("build it", "completed", 2.0)], [])


@pytest.mark.parametrize(
    ("shown", "lost"),
    [
        ([], "working"),
        ([("input_required", False)], "input_required"),
        ([("completed", False)], "completed"),
        ([("failed", False)], "failed"),
        ([("completed", True)], None),
        ([("failed", False), ("failed", True)], None),
        ([("cancelled", False)], None),
    ],
)
async def test_what_nobody_fetched_in_time_is_given_to_one_process(
    replicas: Replicas, now: float, shown: list[tuple[TaskStatus, bool]], lost: str | None
) -> None:
    one, two = stores(replicas, now)
    began = now - 1000.0  # With the minute for what comes late its time has long been over.
    await one.follow("1:1", [begun("a", began), *(seen("a", began + 1, *each[:1], fetched=each[1]) for each in shown)])

    censuses = [await count(two), await count(one)]

    ends = [TaskEnd("build it", lost, None)] if lost is not None else []
    assert [(census.active, census.ends) for census in censuses] == [({}, ends), ({}, [])]


@pytest.mark.parametrize(
    ("ttl", "age", "is_followed"),
    [(600.0, 650, True), (600.0, 670, False), (None, DAY, True), (None, DAY + 70, False), (1e12, 7 * DAY + 70, False)],
)
async def test_tasks_are_followed_for_the_time_that_their_server_keeps_them(
    replicas: Replicas, now: float, ttl: float | None, age: float, is_followed: bool
) -> None:
    (store, _) = stores(replicas, now)
    await store.follow("1:1", [begun("a", now - age, ttl=ttl)])

    assert await active(store) == ({("build it", "working"): 1} if is_followed else {})


async def test_an_id_that_a_server_gives_out_again_is_another_task(replicas: Replicas, now: float) -> None:
    one, two = stores(replicas, now)
    await one.follow("1:1", [begun("1", now - 30), begun("2", now - 30)])
    await one.follow("1:2", [seen("2", now - 20, "completed", fetched=True)])

    answer = await two.follow("2:1", [begun("1", now - 10), begun("2", now - 10), seen("2", now, "failed")])

    assert sorted(answer.ends) == sorted([TaskEnd("build it", "working", None), TaskEnd("build it", "failed", 10.0)])
    assert await active(one) == {("build it", "working"): 1}


async def test_a_count_that_is_sent_again_claims_the_same_tasks(replicas: Replicas, now: float) -> None:
    one, two = stores(replicas, now)
    await one.follow("1:1", [begun(key, now - 1000) for key in "ab"])

    counts = [await count(store, batch) for store, batch in ((one, "1:2"), (two, "2:1"), (one, "1:2"), (one, "1:3"))]

    ends = [TaskEnd("build it", "working", None)] * 2
    assert [(census.active, census.ends) for census in counts] == [({}, ends), ({}, []), ({}, ends), ({}, [])]
    late = await two.follow("2:2", [seen("a", now, "completed")])
    assert (late.ends, await count(two)) == ([], TaskCensus())


async def test_an_id_used_again_is_reported_again_with_the_same_news(replicas: Replicas, now: float) -> None:
    one, _ = stores(replicas, now)
    await one.follow("1:1", [begun("1", now - 30)])
    news = [begun("1", now - 10), seen("1", now - 5, "failed")]

    answers = [await one.follow("1:2", news), await one.follow("1:2", news)]

    ends = [TaskEnd("build it", "working", None), TaskEnd("build it", "failed", 5.0)]
    assert answers == [Followed(ends, [LINK, LINK])] * 2
    assert (await one.follow("1:3", [seen("1", now, "completed")])).ends == []


async def test_services_know_nothing_of_the_tasks_of_others(replicas: Replicas, now: float) -> None:
    if not replicas.shared:
        return
    one, other = (TaskTable(replicas.store(now, service)[0]) for service in ("svc", "other"))
    await one.follow("1:1", [begun("a", now)])

    assert (await active(other), await other.follow("2:1", [seen("a", now, "completed")])) == ({}, Followed([], [""]))


async def test_what_is_no_task_of_ours_is_cleared_away(replicas: Replicas, now: float) -> None:
    if not replicas.shared:
        return
    redis: Any = replicas.store(now)[0]
    store, link = TaskTable(redis), redis._link
    await store.follow("1:1", [begun("a", now)])
    from otel_mcp.store.redis.client import Run

    await link.run(Run("HSET", ("otel_mcp:svc:tasks",), ("odd", "what is this", "b", "1 2 working x")))
    assert await active(store) == {("build it", "working"): 1}
    assert await link.run(Run("HLEN", ("otel_mcp:svc:tasks",))) == 1
    await link.run(Run("DEL", ("otel_mcp:svc:tasks",)))
    await link.run(Run("SET", ("otel_mcp:svc:tasks",), ("somebody else's",)))
    lost = Followed([], [None])
    assert (await store.follow("1:2", [begun("a", now)]), await active(store)) == (lost, {})
