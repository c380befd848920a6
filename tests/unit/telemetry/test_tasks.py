"""Tasks that tool calls begin, on spans, in metrics and in the document, as one process sees them."""

from __future__ import annotations

import time
from typing import Any

import pytest

from otel_mcp import MCPMiddleware
from otel_mcp.model.task import Followed, TaskEnd
from otel_mcp.runtime import Runtime
from otel_mcp.types import Message
from tests.support.answers import FAILED, Server
from tests.support.asgi import Reply, post
from tests.support.messages import MODERN, legacy_headers
from tests.support.providers import Clock, Telemetry, id_of, trace_of
from tests.support.tasks import OLD, REVISIONS, TaskServer, by_status, notification, of
from tests.unit.conftest import MakeRuntime

pytestmark = pytest.mark.anyio

ID, STATUS = "otel_mcp.task.id", "otel_mcp.task.status"
STARTED, DURATION = "otel_mcp.task.started", "otel_mcp.task.duration"
ACTIVE, UNFETCHED, OLDEST = "otel_mcp.task.active", "otel_mcp.task.unfetched", "otel_mcp.task.oldest"


class Watched:
    """One process of a service, and its client."""

    def __init__(self, runtime: Runtime, telemetry: Telemetry, server: TaskServer, revision: str) -> None:
        self.runtime, self.telemetry, self.server, self.revision = runtime, telemetry, server, revision
        self.app = MCPMiddleware(server, runtime)

    async def ask(self, method: str, number: object = 1, /, **params: Any) -> Reply:
        message, headers = of(self.revision, method, number, **params)
        return await post(self.app, message, headers)

    async def settle(self) -> None:
        """Have the store know what has been seen, and count."""
        self.runtime.recorder.drain()
        await self.runtime.sessions.worker.turn()
        await getattr(self.runtime.sessions, "_flusher").tasks.count()  # noqa: B009

    async def counted(self) -> Message:
        await self.settle()
        names = (DURATION, UNFETCHED, ACTIVE)
        found = {name.rpartition(".")[2]: by_status(self.telemetry.points(name)) for name in names}
        return {name: values for name, values in found.items() if values}


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time of calls, which goes on only when a test moves it; it begins at that of the store."""
    stopped = Clock(time.time())
    stopped.install(monkeypatch)
    return stopped


@pytest.fixture(params=REVISIONS)
def watched(request: pytest.FixtureRequest, make_runtime: MakeRuntime, telemetry: Telemetry) -> Watched:
    return Watched(make_runtime(flush_interval=60), telemetry, TaskServer(), request.param)


async def test_a_task_is_measured_from_its_call_until_its_end_is_seen(watched: Watched, now: Clock) -> None:
    await watched.ask("tools/call")
    await watched.ask("tasks/get", taskId="task-1")
    running = await watched.counted()
    watched.server.put("task-1", "completed")
    for number in (2, 3):
        now.now += 20.0
        await watched.ask("tasks/get", number, taskId="task-1")
    if watched.revision == OLD:
        await watched.ask("tasks/result", 4, taskId="task-1")

    ended = await watched.counted()

    assert running == {"active": {("add", "working"): 1}}
    assert ended == {"duration": {("add", "completed"): (1, pytest.approx(20.0))}}
    assert watched.telemetry.points(STARTED) == [({"gen_ai.tool.name": "add"}, 1)]


async def test_where_the_server_says_when_it_ended_that_counts(watched: Watched, now: Clock) -> None:
    await watched.ask("tools/call")
    watched.server.put("task-1", "failed", after=7.0)
    now.now += 90.0

    await watched.ask("tasks/get", 2, taskId="task-1")

    assert await watched.counted() == {"duration": {("add", "failed"): (1, pytest.approx(7.0, abs=5.0))}}


async def test_each_request_about_a_task_says_which_and_leads_to_its_call(watched: Watched) -> None:
    await watched.ask("tools/call")
    watched.runtime.recorder.drain()  # The first span of a bare app is made afterwards.
    watched.server.put("task-1", "input_required")
    await watched.ask("tasks/get", 2, taskId="task-1")
    await watched.ask("tasks/cancel", 3, taskId="task-1")
    await watched.ask("tasks/get", 4, taskId="other")
    if watched.revision == OLD:
        await watched.ask("tasks/result", 5, taskId="task-1")
        fetched = watched.telemetry.spans()[-1]
        assert (STATUS in (fetched.attributes or {}), len(fetched.links)) == (False, 1)

    began, asked, cancelled, unknown = watched.telemetry.spans()[:4]
    hashed = watched.runtime.resolver.hashes.digest("task", "task-1", size=8)
    statuses = [dict(span.attributes or {}).get(STATUS) for span in (began, asked, cancelled, unknown)]
    assert statuses == ["working", "input_required", "cancelled", None]
    assert [dict(span.attributes or {}).get(ID) for span in (began, asked, cancelled, unknown)] == [*[hashed] * 3, None]
    links = [[id_of(began)], [id_of(began)], []]
    assert [[f"{link.context.span_id:016x}" for link in span.links] for span in (asked, cancelled, unknown)] == links
    assert trace_of(asked) != trace_of(began)
    assert "task-1" not in watched.telemetry.everything()


async def test_a_completed_task_whose_result_is_an_error_has_failed(watched: Watched) -> None:
    await watched.ask("tools/call")
    watched.server.put("task-1", "completed")
    watched.server.tasks["task-1"]["result"] = FAILED
    await watched.ask("tasks/get", 2, taskId="task-1")

    assert set((await watched.counted())["duration"]) == {("add", "failed")}


async def test_a_cancelled_task_has_ended_and_nothing_is_left_to_fetch(watched: Watched) -> None:
    await watched.ask("tools/call")
    await watched.ask("tasks/cancel", 2, taskId="task-1")
    await watched.ask("tasks/get", 3, taskId="task-1")

    assert set((await watched.counted())["duration"]) == {("add", "cancelled")}
    later(watched, 100_000)
    assert set(await watched.counted()) == {"duration"}


def later(watched: Watched, seconds: float) -> None:
    """Have the store's clock go on."""
    store: Any = getattr(watched.runtime.sessions, "_store")  # noqa: B009
    tell = store._clock
    store._clock = lambda: tell() + seconds


async def test_a_result_never_fetched_is_counted_when_its_time_is_over(
    make_runtime: MakeRuntime, telemetry: Telemetry
) -> None:
    watched = Watched(make_runtime(flush_interval=60), telemetry, TaskServer(), OLD)
    for number in (1, 2, 3):
        await watched.ask("tools/call", number)
    watched.server.put("task-1", "completed")
    watched.server.put("task-2", "completed")
    await watched.ask("tasks/list", 4)
    await watched.ask("tasks/result", 5, taskId="task-2")
    assert (await watched.counted())["active"] == {("add", "working"): 1}
    assert dict(telemetry.points(OLDEST)[0][0]) == {"gen_ai.tool.name": "add"}

    later(watched, 130)

    counted = await watched.counted()
    assert counted["unfetched"] == {("add", "completed"): 1, ("add", "working"): 1}
    assert {key: count for key, (count, _) in counted["duration"].items()} == {("add", "completed"): 2}
    assert "active" not in counted
    assert telemetry.points(OLDEST) == [({"gen_ai.tool.name": "add"}, 0)]


@pytest.mark.parametrize(
    ("code", "left"), [(-32603, set[str]()), (-32602, {"unfetched"})], ids=["the task's own error", "an unknown task"]
)
async def test_the_error_by_which_a_task_failed_is_its_result(
    make_runtime: MakeRuntime, telemetry: Telemetry, code: int, left: set[str]
) -> None:
    watched = Watched(make_runtime(flush_interval=60), telemetry, TaskServer(), OLD)
    watched.server.results["task-1"] = {"error": {"code": code, "message": "boom"}}
    await watched.ask("tools/call")
    watched.server.put("task-1", "failed")
    await watched.ask("tasks/get", 2, taskId="task-1")
    await watched.settle()
    await watched.ask("tasks/result", 3, taskId="task-1")
    await watched.settle()
    later(watched, 130)

    assert set(await watched.counted()) - {"duration"} == left


async def test_a_result_without_content_is_that_of_a_failed_task(
    make_runtime: MakeRuntime, telemetry: Telemetry
) -> None:
    watched = Watched(make_runtime(flush_interval=60), telemetry, TaskServer(), OLD)
    watched.server.results["task-1"] = {"result": {"_meta": {}}}
    await watched.ask("tools/call")
    await watched.ask("tasks/result", 2, taskId="task-1")

    assert set((await watched.counted())["duration"]) == {("add", "failed")}


@pytest.mark.parametrize("revision", REVISIONS)
async def test_a_notification_on_a_stream_ends_a_task(
    make_runtime: MakeRuntime, telemetry: Telemetry, revision: str
) -> None:
    watched = Watched(make_runtime(flush_interval=60), telemetry, TaskServer(), revision)
    await watched.ask("tools/call")
    watched.server.put("task-1", "failed")
    task = watched.server.tasks["task-1"]
    watched.server.before = [notification(task, modern=revision == MODERN)]
    await watched.ask("tasks/get", 2, taskId="other")

    assert set((await watched.counted())["duration"]) == {("add", "failed")}


async def test_the_document_names_the_task_that_a_call_has_begun(runtime: Runtime) -> None:
    app = MCPMiddleware(TaskServer(), runtime)
    message, headers = of(OLD, "tools/call")
    await post(app, message, [*headers, *legacy_headers("own")])
    runtime.recorder.drain()

    state = await runtime.sessions.load("own")

    assert state is not None
    hashed = runtime.resolver.hashes.digest("task", "task-1", size=8)
    assert [(made.tool_name, made.error_type, made.task) for made in state.tool_calls] == [("add", None, hashed)]


@pytest.mark.parametrize(
    "result",
    [
        {"task": {"taskId": 7, "status": "working"}},
        {"task": {"taskId": "", "status": "working"}},
        {"task": {"taskId": "a", "status": "dreaming"}},
        {"task": {"taskId": "a", "status": ["working"]}},
        {"task": {"taskId": "a"}},
        {"task": "a"},
        {"resultType": "task"},
        {"resultType": "complete", "taskId": "a", "status": "working"},
        {"content": [], "task": {"taskId": "a", "status": "working"}},
    ],
)
async def test_results_that_only_look_like_tasks_begin_none(
    runtime: Runtime, telemetry: Telemetry, result: Message
) -> None:
    message, headers = of(OLD, "tools/call")
    await post(MCPMiddleware(Server({"tools/call": {"result": result}}), runtime), message, headers)

    assert (telemetry.points(STARTED), STATUS in (telemetry.span().attributes or {})) == ([], False)


async def test_tasks_beyond_the_bound_are_counted_and_no_more(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("otel_mcp.sessions.tasks.MOST", 2)
    for number in range(4):
        await watched.ask("tools/call", number)

    assert await watched.counted() == {"active": {("add", "working"): 2}, "unfetched": {("add", "_OTHER"): 2}}
    assert watched.telemetry.points(STARTED) == [({"gen_ai.tool.name": "add"}, 4)]


async def test_long_lists_take_no_place_from_tasks_that_begin_and_end(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("otel_mcp.telemetry.tasks._MOST", 20)
    await watched.ask("tools/call")
    watched.runtime.recorder.drain()
    mine = watched.server.tasks.pop("task-1")
    for _ in range(300):
        watched.server.begin(modern=watched.revision == MODERN)
    for number in range(2, 6):
        await watched.ask("tasks/list", number)
    watched.server.tasks["task-1"] = mine
    watched.server.put("task-1", "completed")
    await watched.ask("tasks/get", 7, taskId="task-1")
    await watched.ask("tasks/list", 8)

    counted = await watched.counted()

    assert (set(counted["duration"]), "unfetched" in counted) == ({("add", "completed")}, False)


async def test_polls_during_an_outage_lose_no_end(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("otel_mcp.telemetry.tasks._MOST", 20)
    for number in range(10):
        await watched.ask("tools/call", number)
    await watched.settle()
    watched.server.put("task-1", "completed")
    for number in range(20, 120):
        await watched.ask("tasks/get", number, taskId=f"task-{number % 10 + 1}")

    counted = await watched.counted()

    assert counted["active"] == {("add", "working"): 9}
    assert {key: count for key, (count, _) in counted["duration"].items()} == {("add", "completed"): 1}


async def test_a_poll_that_shows_nothing_new_is_not_written(watched: Watched) -> None:
    await watched.ask("tools/call")
    await watched.settle()
    tasks = watched.runtime.metrics.tasks

    async def waiting(status: str) -> list[str | None]:
        watched.server.put("task-1", status)
        await watched.ask("tasks/get", 2, taskId="task-1")
        await watched.ask("tasks/list", 3)
        watched.runtime.recorder.drain()
        return [news.status for news in tasks.take(10)]

    assert await waiting("working") == []
    assert await waiting("input_required") == ["input_required"]
    assert await waiting("working") == ["working"]


async def test_tasks_that_fall_off_are_counted(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, telemetry: Telemetry
) -> None:
    for number in range(3):
        await watched.ask("tools/call", number)
    await watched.settle()
    monkeypatch.setattr("otel_mcp.telemetry.tasks._MOST", 2)
    for number in (1, 2, 3):
        watched.server.put(f"task-{number}", "completed")
        await watched.ask("tasks/get", 10 + number, taskId=f"task-{number}")
    await watched.ask("tools/call", 20)
    await watched.ask("tools/call", 21)
    await watched.ask("tools/call", 22)

    watched.runtime.recorder.drain()

    lost = [count for of, count in telemetry.points("otel_mcp.store.dropped") if of["otel_mcp.reason"] == "tasks"]
    assert lost == [3]
    assert by_status(telemetry.points(UNFETCHED)) == {("add", "_OTHER"): 1}


async def test_an_id_used_again_before_it_was_written_is_another_task(watched: Watched, now: Clock) -> None:
    await watched.ask("tools/call")
    watched.server.put("task-1", "completed")
    await watched.ask("tasks/get", 2, taskId="task-1")
    watched.server.tasks.clear()
    now.now += 5.0
    await watched.ask("tools/call", 3)

    assert await watched.counted() == {"active": {("add", "working"): 1}, "unfetched": {("add", "_OTHER"): 1}}


@pytest.mark.parametrize("ttl", [10**400, float("inf"), 1e308, -1, True, "60000"])
async def test_whatever_ttl_a_server_gives_the_call_is_finished(watched: Watched, ttl: Any) -> None:
    watched.server.ttl = ttl
    await watched.ask("tools/call")

    assert await watched.counted() == {"active": {("add", "working"): 1}}
    assert len(watched.telemetry.points("mcp.server.operation.duration")) == 1


async def test_what_is_not_written_when_the_process_ends_is_counted(watched: Watched) -> None:
    await watched.ask("tools/call")
    await watched.settle()
    await watched.ask("tools/call", 2)
    await watched.ask("tools/call", 3)
    watched.runtime.recorder.drain()
    watched.runtime.metrics.tasks.take(1)  # And is not answered.

    getattr(watched.runtime.sessions, "_flusher").abandon()  # noqa: B009

    assert by_status(watched.telemetry.points(UNFETCHED)) == {("add", "_OTHER"): 2}
    assert watched.runtime.metrics.tasks.take(10) == []


async def test_a_forked_child_knows_nothing_of_the_tasks_of_its_parent(watched: Watched) -> None:
    await watched.ask("tools/call")
    await watched.settle()
    await watched.ask("tools/call", 2)
    watched.runtime.recorder.drain()
    tasks = watched.runtime.metrics.tasks
    watched.runtime.metrics.forget()

    await watched.ask("tasks/get", 3, taskId="task-1")
    watched.runtime.recorder.drain()

    assert ([news.began for news in tasks.take(10)], tasks.active()) == ([None], {})
    assert not watched.telemetry.spans()[-1].links


async def test_ends_are_reported_whatever_comes_with_them(watched: Watched) -> None:
    for number in (1, 2):
        await watched.ask("tools/call", number)
    await watched.settle()
    watched.runtime.metrics.forget()  # As another process.
    for number in (1, 2):
        watched.server.put(f"task-{number}", "completed")
        await watched.ask("tasks/get", 10 + number, taskId=f"task-{number}")
    watched.runtime.recorder.drain()
    tasks = watched.runtime.metrics.tasks
    assert len(tasks.take(10)) == 2

    tasks.followed(Followed([TaskEnd("add", "failed", 2.0)], ["no link of ours", None]))

    assert by_status(watched.telemetry.points(DURATION)) == {("add", "failed"): (1, 2.0)}
    assert ({"otel_mcp.reason": "tasks"}, 1) in watched.telemetry.points("otel_mcp.store.dropped")
