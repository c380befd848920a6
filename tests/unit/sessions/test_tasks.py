"""News of tasks reach the store once, whatever it does meanwhile."""

from __future__ import annotations

import asyncio
import time
from math import inf

import pytest

from otel_mcp.model.task import Followed, Task, TaskCensus, TaskEnd, TaskNews
from otel_mcp.sessions.health import StoreHealth
from otel_mcp.sessions.tasks import Tasks, TaskTable
from otel_mcp.store.base import ProducerId, StoreDown
from tests.store.test_service import Remote, remote_sessions, until
from tests.support.stores import Listener

pytestmark = pytest.mark.anyio


def a_task(number: int = 0, status: str = "working") -> list[TaskNews]:
    """The beginning of a task, and where it has another status, that."""
    began = float(int(time.time())) - 10
    news = [TaskNews(f"key-{number}", began, "working", began=began, tool="add", link="-")]
    return news if status == "working" else [*news, TaskNews(f"key-{number}", began + 5, "completed")]


async def test_a_lost_answer_about_tasks_is_asked_for_again_and_counts_once() -> None:
    remote, listener = Remote(), Listener()
    sessions = remote_sessions(remote, listener, flush_interval=0.01)
    listener.task_news = a_task(status="completed")
    remote.loses_answer = True

    sessions.ensure_running()
    sessions.follow_tasks()
    await until(lambda: listener.tasks)
    await sessions.aclose()

    assert (remote.asked.count("read tasks"), remote.asked.count("change tasks")) == (2, 1)
    assert listener.tasks == [Followed([TaskEnd("add", "completed", 5.0)], ["-", "-"])]


async def test_news_of_tasks_wait_through_an_outage_and_go_in_batches() -> None:
    remote, listener = Remote(), Listener()
    sessions = remote_sessions(remote, listener, flush_interval=0.01)
    listener.task_news = [news for number in range(150) for news in a_task(number)]
    remote.down = StoreDown("ConnectionError")
    sessions.ensure_running()
    sessions.follow_tasks()
    await until(lambda: sessions.degraded)
    assert listener.tasks == []

    remote.down = None
    await until(lambda: not listener.task_news)
    await sessions.aclose()

    assert [len(answer.links) for answer in listener.tasks if isinstance(answer, Followed)] == [100, 50]
    assert (await TaskTable(remote.memory).count("count")).active == {("add", "working"): 150}


async def test_a_backlog_of_tasks_does_not_hold_up_what_else_is_written() -> None:
    remote, listener = Remote(), Listener()
    tasks = Tasks(remote, listener, StoreHealth(listener), ProducerId())
    listener.task_news = [news for number in range(1000) for news in a_task(number)]
    tasks.due = True

    await tasks.follow()
    assert (len(listener.tasks), len(listener.task_news), tasks.due) == (5, 500, True)
    await tasks.follow(inf)
    assert (len(listener.tasks), listener.task_news, tasks.due) == (10, [], False)


async def test_news_sent_again_keep_their_instants_where_clocks_move() -> None:
    remote, listener = Remote(), Listener()
    health = StoreHealth(listener)
    tasks = Tasks(remote, listener, health, ProducerId())
    (news,) = listener.task_news = a_task()
    tasks.due = remote.loses_answer = True
    remote.ahead = 5.0

    await tasks.follow()
    assert (listener.tasks, tasks.due) == ([], True)
    health.answered()
    remote.ahead = 7.0
    await tasks.follow()

    assert listener.tasks == [Followed([], ["-"])]
    (task,) = map(Task.read, (await remote.entries("tasks")).values())
    assert task is not None
    assert task.began == news.at + 5.0


async def test_what_is_seen_last_is_followed_when_the_process_ends() -> None:
    remote, listener = Remote(), Listener()
    sessions = remote_sessions(remote, listener, flush_interval=3600.0)
    sessions.ensure_running()
    await sessions.hash_key()
    listener.task_news = a_task(status="completed")
    sessions.follow_tasks()

    await sessions.aclose()

    assert [answer.ends for answer in listener.tasks if isinstance(answer, Followed)] == [[("add", "completed", 5.0)]]


async def test_tasks_are_counted_with_each_sweep_except_in_an_outage() -> None:
    remote, listener = Remote(), Listener()
    await TaskTable(remote.memory).follow("1:1", a_task())
    sessions = remote_sessions(remote, listener, flush_interval=0.01, sweep_interval=0.02)
    sessions.ensure_running()
    await until(lambda: listener.tasks)
    remote.down = StoreDown("ConnectionError")
    await until(lambda: listener.tasks[-1] is None)
    remote.down = None
    await sessions.aclose()

    counted = listener.tasks[0]
    assert isinstance(counted, TaskCensus)
    assert (counted.active, list(counted.oldest)) == ({("add", "working"): 1}, ["add"])


async def test_tasks_that_cannot_be_written_at_exit_are_reported_lost() -> None:
    remote, listener = Remote(), Listener()
    sessions = remote_sessions(remote, listener, flush_interval=0.01)
    sessions.ensure_running()
    await sessions.hash_key()
    remote.down = StoreDown("ConnectionError")
    listener.task_news = a_task()
    sessions.follow_tasks()

    await sessions.aclose()

    assert (listener.lost_tasks, listener.tasks) == (a_task(), [])


async def test_tasks_seen_after_the_last_loop_are_written_at_exit() -> None:
    remote, listener = Remote(), Listener()
    sessions = remote_sessions(remote, listener, flush_interval=3600.0)
    sessions.ensure_running()
    await sessions.hash_key()
    await sessions.aclose()
    listener.task_news = a_task(status="completed")
    sessions.follow_tasks()

    await asyncio.to_thread(sessions.flush_at_exit)

    assert [answer.ends for answer in listener.tasks if isinstance(answer, Followed)] == [[("add", "completed", 5.0)]]
    assert listener.lost_tasks == []


async def test_tasks_whose_time_is_over_are_reported_though_the_answer_was_lost() -> None:
    remote, listener = Remote(), Listener()
    began = time.time() - 1000
    await TaskTable(remote.memory).follow(
        "1:1", [TaskNews("key", began, "working", None, 60.0, began=began, tool="add")]
    )
    sessions = remote_sessions(remote, listener, flush_interval=0.01, sweep_interval=0.02)
    remote.loses_answer = True
    sessions.ensure_running()
    await until(lambda: any(isinstance(census, TaskCensus) for census in listener.tasks))
    asked = remote.asked.count("read all tasks")
    await until(lambda: remote.asked.count("read all tasks") > asked)
    await sessions.aclose()

    counts = [census for census in listener.tasks if isinstance(census, TaskCensus)]
    assert [census.ends for census in counts] == [[TaskEnd("add", "working", None)]]
