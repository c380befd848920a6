"""`Sessions` over a store that fails in every way: nothing raises, nothing is lost in silence."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, cast

import anyio
import pytest

from otel_mcp import loops
from otel_mcp.model.delta import EndedSession, Flush, Known, OpenCall, SessionDelta, SessionFacts, WriteResult
from otel_mcp.model.session import Interruption, Refusal, Return
from otel_mcp.model.state import SessionState
from otel_mcp.sessions import health
from otel_mcp.sessions.flusher import BATCH
from otel_mcp.sessions.health import PATIENCE
from otel_mcp.sessions.service import Sessions
from otel_mcp.store.base import Change, StoreDown
from otel_mcp.store.memory import MemoryStore
from tests.support.stores import Listener, delta, facts, settings
from tests.support.waiting import at_once

pytestmark = pytest.mark.anyio


request: contextvars.ContextVar[str] = contextvars.ContextVar("request", default="none")


class Remote:
    """A store elsewhere: it can be away, hang, and lose an answer after it has done the work."""

    def __init__(self) -> None:
        self.memory = MemoryStore(settings())
        self.down: Exception | None = None
        self.loses_answer = False
        self.ahead = 0.0
        self.answers = asyncio.Event()
        self.answers.set()
        self.asked: list[str] = []
        self.sent: list[Flush] = []
        self.in_flight: list[str | None] = []
        self.foreign: set[str] = set()
        self.stuck: set[str] = set()
        """Sessions that cannot be written now."""
        self.contexts: list[str] = []

    async def _reach(self, what: str) -> MemoryStore:
        self.asked.append(what)
        self.contexts.append(request.get())
        await self.answers.wait()
        if self.down is not None:
            raise self.down
        return self.memory

    async def apply(self, deltas: Sequence[Flush]) -> list[WriteResult]:
        self.sent += deltas
        memory = await self._reach("apply")
        done = [
            WriteResult(flush.delta.facts.session_id, retry="TryAgainError")
            if flush.delta.facts.session_id in self.stuck
            else WriteResult(flush.delta.facts.session_id, refused="foreign")
            if flush.delta.facts.session_id in self.foreign
            else (await memory.apply([flush]))[0]
            for flush in deltas
        ]
        if self.loses_answer:
            self.loses_answer = False
            raise StoreDown("TimeoutError")
        return done

    async def load(self, session_id: str) -> SessionState | None:
        return await (await self._reach("load")).load(session_id)

    async def save(self, state: SessionState, *, only_new: bool = False) -> WriteResult:
        return await (await self._reach("save")).save(state, only_new=only_new)

    async def delete(self, session_id: str) -> bool:
        return await (await self._reach("delete")).delete(session_id)

    async def describe(self, session_id: str) -> Known:
        return await (await self._reach("describe")).describe(session_id)

    async def mark(self, session_id: str, finding: str) -> bool:
        return await (await self._reach("mark")).mark(session_id, finding)

    async def get(self, key: str) -> str | None:
        return await (await self._reach("get")).get(key)

    async def get_or_set(self, key: str, candidate: str, ttl: float) -> str:
        return await (await self._reach("get_or_set")).get_or_set(key, candidate, ttl)

    async def set_value(self, key: str, value: str, ttl: float) -> None:
        await (await self._reach("set_value")).set_value(key, value, ttl)

    async def get_or_set_successor(self, old_id: str, candidate: str, user: str | None = None) -> str:
        return await (await self._reach("get_or_set_successor")).get_or_set_successor(old_id, candidate, user)

    async def entries(self, table: str, names: Sequence[str] | None = None) -> dict[str, str]:
        return await (await self._reach(f"read {table}" if names else f"read all {table}")).entries(table, names)

    async def swap(self, table: str, changes: Mapping[str, Change], most: int, kept: float) -> set[str]:
        memory = await self._reach(f"change {table}")
        missed = await memory.swap(table, changes, most, kept)
        if table == "in_flight":
            self.in_flight += [change.new for change in changes.values()]
        if self.loses_answer:
            self.loses_answer = False
            raise StoreDown("lost")
        return missed

    async def bind(self, facts: SessionFacts) -> None:
        await (await self._reach("bind")).bind(facts)

    async def claim_expired(self, now: float, limit: int) -> list[EndedSession]:
        return await (await self._reach("claim_expired")).claim_expired(now, limit)

    async def claim_held(self, session_ids: Sequence[str], now: float) -> list[EndedSession]:
        return await (await self._reach("claim_held")).claim_held(session_ids, now)

    async def visits(self, ended: Sequence[EndedSession]) -> list[list[float]]:
        return await (await self._reach("visits")).visits(ended)

    async def ack_ends(self, ended: Sequence[EndedSession]) -> None:
        await (await self._reach("ack_ends")).ack_ends(ended)

    async def callers(self, day: str, hashes: Sequence[str]) -> int:
        return await (await self._reach("callers")).callers(day, hashes)

    async def cut(self, refusals: Sequence[Refusal], gone: Sequence[str] = ()) -> list[Interruption]:
        return await (await self._reach("cut")).cut(refusals, gone)

    async def back(self, visitor: str, at: float, session_id: str) -> Return | None:
        return await (await self._reach("back")).back(visitor, at, session_id)

    async def active(self) -> int:
        return await (await self._reach("active")).active()

    async def aclose(self) -> None:
        pass

    def read(self, session_id: str) -> SessionState | None:
        """What is in the store, whether it answers or not."""
        return at_once(self.memory.load(session_id))


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
async def remote() -> Remote:
    return Remote()


@pytest.fixture
async def sessions(remote: Remote, listener: Listener) -> AsyncIterator[Sessions]:
    """Sessions that are flushed by hand, unless their task is started."""
    sessions = remote_sessions(remote, listener, flush_interval=0.01)
    yield sessions
    remote.answers.set()
    remote.down = None
    await sessions.aclose()


def remote_sessions(remote: Remote, listener: Listener, **values: Any) -> Sessions:
    return Sessions(settings(**values), listener, store=remote)


async def until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(60):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0.002)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# Writing.


async def test_submitted_calls_are_written_in_the_background(
    sessions: Sessions, remote: Remote, listener: Listener
) -> None:
    sessions.ensure_running()
    for number in range(3):
        sessions.submit(delta(1, at=time.time(), first=number))
    assert sessions.pending == 3

    await until(lambda: sessions.active == 1)

    assert (sessions.pending, listener.started_ids) == (0, ["abc"])
    state = remote.read("abc")
    assert state is not None
    assert (state.tool_call_count, len(state.tool_calls)) == (3, 3)
    assert listener.operations["flush", "ok"] == 1


@pytest.mark.parametrize("many", [delta(64), delta(1, ended="client_delete")])
async def test_many_calls_of_a_session_or_its_end_are_written_at_once(
    remote: Remote, listener: Listener, many: SessionDelta
) -> None:
    sessions = remote_sessions(remote, listener, flush_interval=3600.0)
    sessions.ensure_running()
    sessions.submit(delta(1, of=facts("other")))

    sessions.submit(many)

    await until(lambda: sessions.pending == 0)
    assert sorted(listener.started_ids) == ["abc", "other"]
    await sessions.aclose()


async def test_a_lost_answer_is_asked_for_again_with_the_same_flush(
    sessions: Sessions, remote: Remote, listener: Listener
) -> None:
    remote.loses_answer = True
    sessions.submit(delta(2, at=time.time()))
    await sessions.flush()
    assert sessions.degraded
    sessions.submit(delta(1, at=time.time(), ended="client_delete"))

    sessions.ensure_running()
    await until(lambda: listener.ends and not sessions.degraded)

    first, again, other = remote.sent
    assert first is again
    assert other.sequence > first.sequence
    assert (listener.started_ids, [end.tool_call_count for end in listener.ends]) == (["abc"], [3])


async def test_an_outage_is_one_warning_and_one_line_and_loses_nothing(
    sessions: Sessions, remote: Remote, listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "otel_mcp")
    sessions.ensure_running()
    sessions.submit(delta(1, at=time.time()))
    await until(lambda: sessions.active == 1)
    remote.down = StoreDown("ConnectionError")
    sessions.submit(delta(5, at=time.time()))
    await until(lambda: sessions.degraded and listener.operations["flush", "error"] >= 3)
    sessions.submit(delta(2, at=time.time()))
    assert (sessions.pending, sessions.active, sessions.local) == (7, None, 1)
    asked = len(remote.asked)
    assert await sessions.describe("abc") is None
    assert await sessions.get_or_set("key", "mine", 1.0) == "mine"
    assert await sessions.get_or_set_successor("old", "mine") == "mine"
    assert remote.asked[asked:] == []

    remote.down = None
    await until(lambda: not sessions.degraded and sessions.pending == 0)

    state = remote.read("abc")
    assert state is not None
    assert state.tool_call_count == 8
    assert [line.partition(";")[0] for line in warnings(caplog)] == ["otel_mcp: Redis cannot be used (ConnectionError)"]
    assert [record.getMessage()[:36] for record in caplog.records if record.levelno == logging.INFO] == [
        "otel_mcp: Redis can be used again; w"
    ]
    assert not listener.dropped_calls
    await until(lambda: sessions.active == 1)


async def test_a_catalogue_is_noted_once_the_store_is_back(
    sessions: Sessions, remote: Remote, listener: Listener
) -> None:
    sessions.ensure_running()
    await until(lambda: sessions.shared_key.is_agreed)
    remote.down = StoreDown("ConnectionError")
    listener.catalogues = ["first", "second"]
    sessions.worker.listed()
    await until(lambda: listener.operations["meet", "error"])
    assert listener.met_catalogues == []

    remote.down = None
    await until(lambda: not listener.catalogues)

    assert listener.met_catalogues == [("first", []), ("second", ["first"])]


async def test_an_outage_is_noticed_to_end_where_nothing_waits(sessions: Sessions, remote: Remote) -> None:
    sessions.ensure_running()
    remote.down = StoreDown("ConnectionError")
    assert await sessions.describe("abc") is None
    assert sessions.degraded

    remote.down = None

    await until(lambda: not sessions.degraded)
    assert "apply" not in remote.asked


async def test_an_outage_that_the_sweep_meets_ends_without_any_request(remote: Remote, listener: Listener) -> None:
    sessions = remote_sessions(remote, listener, flush_interval=0.01, sweep_interval=0.05)
    sessions.ensure_running()
    # By now the first flush of the task has been, and none is due.
    await until(lambda: listener.operations["sweep", "ok"] >= 2)
    remote.down = StoreDown("ConnectionError")
    await until(lambda: sessions.degraded)

    remote.down = None

    await until(lambda: not sessions.degraded)
    swept = listener.operations["sweep", "ok"]
    await until(lambda: listener.operations["sweep", "ok"] > swept)
    await sessions.aclose()


async def test_a_store_that_keeps_us_out_is_asked_seldom(
    sessions: Sessions, remote: Remote, listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    remote.down = StoreDown("AuthenticationError", denied=True)
    sessions.submit(delta(1))

    await sessions.flush()
    await sessions.flush()

    assert remote.asked == ["apply"]
    assert sessions._health.wait > 10  # pyright: ignore[reportPrivateUsage]
    (line,) = warnings(caplog)
    assert "denies access (AuthenticationError)" in line
    assert listener.operations == {("flush", "denied"): 1}


async def test_a_bug_of_ours_in_the_store_is_an_outage_too(sessions: Sessions, remote: Remote) -> None:
    remote.down = KeyError("bug")
    sessions.submit(delta(1))
    await sessions.flush()
    assert (sessions.degraded, sessions.pending) == (True, 1)


async def test_calls_that_the_store_refuses_are_dropped_and_counted(
    sessions: Sessions, remote: Remote, listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    remote.foreign = {"theirs"}
    for _ in range(2):
        sessions.submit(delta(3, of=facts("theirs")))
        sessions.submit(delta(1, of=facts("ours")))
        await sessions.flush()

    assert (sessions.pending, listener.dropped_calls) == (0, {"foreign": 6})
    assert listener.started_ids == ["ours"]
    assert len(warnings(caplog)) == 1


async def test_waiting_sessions_are_bounded_and_dropped_calls_counted(remote: Remote, listener: Listener) -> None:
    sessions = remote_sessions(remote, listener, max_sessions=10)
    remote.down = StoreDown("ConnectionError")
    for number in range(25):
        sessions.submit(delta(2, of=facts(f"s{number}")))
    await sessions.flush()
    for number in range(25):
        sessions.submit(delta(2, of=facts(f"t{number}")))
    remote.down = None
    await sessions._flusher.flush()  # pyright: ignore[reportPrivateUsage]
    await sessions.flush()

    stored = [remote.read(f"{kind}{number}") for kind in "st" for number in range(25)]
    counted = sum(state.tool_call_count for state in stored if state is not None)
    assert counted == 40
    assert listener.dropped_calls == {"full": 60}
    await sessions.aclose()


async def test_an_event_that_raises_does_no_harm(remote: Remote) -> None:
    class Broken(Listener):
        def written(self, delta: SessionDelta, result: WriteResult) -> SessionDelta | None:
            raise RuntimeError("bug")

        def store_operation(self, operation: str, outcome: str, seconds: float) -> None:
            raise RuntimeError("bug")

    listener = Broken()
    sessions = remote_sessions(remote, listener)
    sessions.submit(delta(1, ended="client_delete"))
    await sessions.aclose()
    assert (sessions.pending, len(listener.ends)) == (0, 1)


def test_submitting_nonsense_does_not_raise(listener: Listener) -> None:
    sessions = Sessions(settings(), listener)
    sessions.submit(cast(SessionDelta, None))
    sessions.ensure_running()


# Questions.


async def test_a_late_question_is_answered_here_and_the_next_at_once(
    sessions: Sessions, remote: Remote, listener: Listener
) -> None:
    remote.answers.clear()

    assert await sessions.describe("abc") is None
    assert sessions.degraded
    assert await sessions.describe("abc") is None
    assert await sessions.get_or_set("key", "mine", 1.0) == "mine"

    assert remote.asked == ["describe"]
    assert listener.operations == {("recall", "timeout"): 1}


async def test_no_request_waits_while_the_store_is_slow(sessions: Sessions, remote: Remote, listener: Listener) -> None:
    sessions.ensure_running()
    remote.answers.clear()
    assert await sessions.describe("abc") is None
    assert sessions.degraded

    # The background task finds out, for no request's sake.
    await until(lambda: "get_or_set" in remote.asked)
    assert await sessions.describe("abc") is None
    assert listener.operations == {("recall", "timeout"): 1}
    remote.answers.set()
    await until(lambda: not sessions.degraded)

    assert await sessions.describe("abc") is not None


async def test_a_store_whose_probe_is_late_stays_slow(sessions: Sessions, remote: Remote) -> None:
    sessions.ensure_running()
    remote.answers.clear()
    assert await sessions.describe("abc") is None
    await until(lambda: "get_or_set" in remote.asked)
    await asyncio.sleep(PATIENCE)

    remote.answers.set()
    remote.asked.clear()
    await until(lambda: remote.asked)

    assert "get_or_set" in remote.asked
    await until(lambda: not sessions.degraded)


async def test_the_same_question_is_asked_once_at_a_time(sessions: Sessions, remote: Remote) -> None:
    answers = await asyncio.gather(*(sessions.get_or_set("key", f"mine{number}", 9.0) for number in range(50)))

    assert set(answers) == {"mine0"}
    assert remote.asked == ["get_or_set"]


async def test_many_questions_at_once_are_all_answered(sessions: Sessions) -> None:
    answers = await asyncio.gather(*(sessions.describe(f"s{number}") for number in range(100)))

    assert {answer.exists for answer in answers if answer is not None} == {False}
    assert None not in answers


async def test_a_question_whose_asker_goes_away_is_answered_for_the_others(sessions: Sessions, remote: Remote) -> None:
    remote.answers.clear()
    one = asyncio.create_task(sessions.get_or_set("key", "mine", 9.0))
    other = asyncio.create_task(sessions.get_or_set("key", "theirs", 9.0))
    await until(lambda: remote.asked)
    one.cancel()
    remote.answers.set()

    assert await other == "mine"
    assert one.cancelled() or await asyncio.wait({one})


# Documents.


async def test_a_document_includes_calls_that_still_wait(sessions: Sessions) -> None:
    sessions.submit(delta(2, at=time.time()))

    state = await sessions.load("abc")

    assert state is not None
    assert state.tool_call_count == 2


async def test_a_document_saved_during_an_outage_is_written_later(
    sessions: Sessions, remote: Remote, listener: Listener
) -> None:
    now = time.time()
    remote.down = StoreDown("ConnectionError")
    created = await sessions.get_or_create("abc", user_agent="agent")
    created.attributes["plan"] = "pro"
    await sessions.save(created)
    sessions.submit(delta(2, of=facts(at=now), at=now))
    seen = await sessions.load("abc")
    assert seen is not None
    assert (seen.attributes, seen.user_agent, seen.tool_call_count) == ({"plan": "pro"}, "agent", 2)
    assert await sessions.load("unknown") is None

    remote.down = None
    sessions.ensure_running()
    await until(lambda: (state := remote.read("abc")) and state.attributes)
    state = await sessions.load("abc")
    assert state is not None
    assert (state.attributes, state.user_agent, state.tool_call_count) == ({"plan": "pro"}, "agent", 2)
    assert listener.started_ids == ["abc"]


async def test_get_or_create_leaves_a_document_alone_that_another_replica_wrote_meanwhile(
    sessions: Sessions, remote: Remote, listener: Listener
) -> None:
    other, memory_load = remote_sessions(remote, listener), remote.load

    async def meanwhile(session_id: str) -> SessionState | None:
        found, remote.load = await memory_load(session_id), memory_load
        theirs = await other.get_or_create(session_id)
        theirs.attributes["cart"] = [1, 2]
        await other.save(theirs)
        return found

    remote.load = meanwhile
    state = await sessions.get_or_create("abc", user_agent="agent")

    read = remote.read("abc")
    assert read is not None
    assert (state.attributes, read.attributes) == ({"cart": [1, 2]}, {"cart": [1, 2]})
    assert read.user_agent is None


async def test_get_or_create_during_an_outage_keeps_the_document_of_another_replica(
    sessions: Sessions, remote: Remote
) -> None:
    remote.down = StoreDown("ConnectionError")
    await sessions.get_or_create("abc")
    await remote.memory.save(SessionState(session_id="abc", attributes={"cart": [1]}))

    remote.down = None
    sessions.ensure_running()
    await until(lambda: sessions.local == 0)

    read = remote.read("abc")
    assert read is not None
    assert read.attributes == {"cart": [1]}


async def test_get_or_create_after_a_delete_in_an_outage_begins_without_attributes(
    sessions: Sessions, remote: Remote
) -> None:
    await remote.memory.save(SessionState(session_id="abc", attributes={"cart": [1]}))
    remote.down = StoreDown("ConnectionError")
    await sessions.delete("abc")
    await sessions.get_or_create("abc")

    remote.down = None
    sessions.ensure_running()
    await until(lambda: sessions.local == 0)

    read = remote.read("abc")
    assert read is not None
    assert read.attributes == {}


@pytest.mark.parametrize("back", [False, True], ids=["twice in the outage", "once after it"])
async def test_a_second_save_keeps_the_facts_of_one_that_waits(sessions: Sessions, remote: Remote, back: bool) -> None:
    remote.down = StoreDown("ConnectionError")
    await sessions.save(
        SessionState(session_id="abc", user_agent="agent", client_name="one", attributes={"a": 1}, tool_call_count=3)
    )
    if back:
        remote.down = None
        sessions._health.succeeded()  # pyright: ignore[reportPrivateUsage]
    await sessions.save(SessionState(session_id="abc", client_name="two", attributes={"b": 2}))

    remote.down = None
    sessions.ensure_running()
    await until(lambda: sessions.local == 0)

    read = remote.read("abc")
    assert read is not None
    assert (read.user_agent, read.client_name, read.tool_call_count) == ("agent", "two", 3)
    assert read.attributes == {"b": 2}


async def test_a_delete_during_an_outage_is_done_later_and_its_end_reported(
    sessions: Sessions, remote: Remote, listener: Listener
) -> None:
    sessions.submit(delta(2, at=time.time()))
    await sessions.flush()
    remote.down = StoreDown("ConnectionError")
    sessions.submit(delta(1, at=time.time()))
    await sessions.delete("abc")
    assert await sessions.load("abc") is None

    remote.down = None
    sessions.ensure_running()

    await until(lambda: remote.read("abc") is None)
    await until(lambda: sessions.pending == 0)
    assert [(end.reason, end.tool_call_count) for end in listener.ends] == [("server_closed", 3)]


async def test_deleting_a_live_session_reports_its_end(sessions: Sessions, listener: Listener) -> None:
    sessions.submit(delta(2, at=time.time()))

    assert await sessions.delete("abc") is True

    assert await sessions.load("abc") is None
    assert [(end.reason, end.tool_call_count) for end in listener.ends] == [("server_closed", 2)]
    assert await sessions.delete("abc") is False


@pytest.mark.parametrize("user", ["a" * 32, None], ids=["a user's", "nobody's"])
async def test_deleting_an_expired_session_reports_its_end(
    remote: Remote, listener: Listener, user: str | None
) -> None:
    sessions, now = remote_sessions(remote, listener), time.time()
    remote.memory = MemoryStore(settings(session_ttl=0.05))
    sessions.submit(delta(2, of=facts(at=now, limit=0.05, principal=user), at=now))
    await sessions.flush()
    await anyio.sleep(0.1)
    assert await sessions.load("abc") is None

    await sessions.delete("abc")

    assert [(end.reason, end.tool_call_count) for end in listener.ends] == [("expired", 2)]
    assert await remote.memory.claim_expired(time.time(), 10) == []


async def test_a_delete_that_cannot_be_written_is_done_later_and_reported(remote: Remote, listener: Listener) -> None:
    sessions = remote_sessions(remote, listener, flush_interval=0.01, redis_url="redis+cluster://127.0.0.1:1")
    now = time.time()
    sessions.submit(delta(2, of=facts(at=now), at=now))
    sessions.submit(delta(1, of=facts("other", at=now), at=now))
    await sessions.flush()
    remote.stuck = {"abc"}
    sessions.submit(delta(1, of=facts(at=now), at=now))
    sessions.submit(delta(1, of=facts("other", at=now), at=now))
    await sessions.flush()

    await sessions.delete("abc")
    assert remote.read("abc") is not None
    assert await sessions.load("abc") is None

    remote.stuck.clear()
    sessions.ensure_running()
    await until(lambda: remote.read("abc") is None)
    assert [(end.reason, end.tool_call_count) for end in listener.ends] == [("server_closed", 3)]
    await sessions.aclose()


async def test_get_or_create_creates_once(sessions: Sessions, listener: Listener) -> None:
    first = await sessions.get_or_create("abc", user_agent="agent")
    again = await sessions.get_or_create("abc", user_agent="other")

    assert first == again
    assert (first.user_agent, listener.started_ids) == ("agent", ["abc"])


async def test_sessions_that_cannot_be_written_do_not_stand_in_front_of_others(
    sessions: Sessions, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "_FIRST", 0.001)
    names = [f"s{number}" for number in range(2 * BATCH + 5)]
    remote.stuck = set(names)
    for name in names:
        sessions.submit(delta(1, of=facts(name)))
    sessions.ensure_running()
    await until(lambda: {flush.delta.facts.session_id for flush in remote.sent} == set(names))

    remote.stuck = set(names[: 2 * BATCH])
    await until(lambda: all(remote.read(name) is not None for name in names[2 * BATCH :]))
    assert sessions.pending == 2 * BATCH
    remote.stuck.clear()
    await until(lambda: not sessions.pending)


async def test_who_is_asked_when_it_ends_is_not_waited_for(sessions: Sessions, remote: Remote) -> None:
    remote.answers.clear()
    before = asyncio.all_tasks()
    asking = asyncio.create_task(sessions.describe("abc"))
    await until(lambda: "describe" in remote.asked)

    await sessions.aclose()

    assert await asking is None
    assert asyncio.all_tasks() == before


# The shared key.


async def test_replicas_agree_on_the_hash_key(sessions: Sessions, remote: Remote, listener: Listener) -> None:
    other = remote_sessions(remote, listener)

    assert await sessions.hash_key() == await other.hash_key()
    assert len(await other.hash_key()) == 64
    assert other.shared_key.is_agreed


async def test_without_the_store_the_hash_key_is_our_own_and_offered_later(sessions: Sessions, remote: Remote) -> None:
    remote.down = StoreDown("ConnectionError")
    own = await sessions.hash_key()
    assert await sessions.hash_key() == own
    assert not sessions.shared_key.is_agreed

    remote.down = None
    sessions.ensure_running()

    await until(lambda: sessions.shared_key.is_agreed)
    assert await remote.get_or_set("hash-key", "another", 0) == own.decode()


async def test_replicas_adopt_the_shared_hash_key_after_an_outage(
    sessions: Sessions, remote: Remote, listener: Listener
) -> None:
    sessions.ensure_running()
    remote.down = StoreDown("ConnectionError")
    own = await sessions.hash_key()
    assert listener.keys == []

    remote.down = None
    await remote.get_or_set("hash-key", "common", 0)

    await until(lambda: bool(listener.keys))
    assert (listener.keys, own != b"common", await sessions.hash_key()) == ([b"common"], True, b"common")


async def test_a_hash_key_lost_by_the_store_is_written_again(remote: Remote) -> None:
    first = remote_sessions(remote, Listener(), sweep_interval=0.02)
    first.ensure_running()
    key = await first.hash_key()
    remote.memory = MemoryStore(settings())
    asked = len(remote.asked)

    await until(lambda: "get_or_set" in remote.asked[asked:])
    second = remote_sessions(remote, Listener())

    assert await second.hash_key() == key
    await first.aclose()


async def test_a_configured_hash_key_stands(remote: Remote, listener: Listener) -> None:
    sessions = remote_sessions(remote, listener, hash_key="secret")
    assert await sessions.hash_key() == b"secret"
    assert remote.asked == []


# Ends.


async def test_the_sweep_reports_ends(remote: Remote, listener: Listener) -> None:
    sessions = remote_sessions(remote, listener, flush_interval=0.01, sweep_interval=0.01)
    sessions.ensure_running()
    sessions.submit(delta(2, of=facts(at=time.time(), limit=0.05), at=time.time()))

    await until(lambda: listener.ends)

    assert [(end.session_id, end.reason) for end in listener.ends] == [("abc", "expired")]
    await until(lambda: sessions.active == 0)
    await sessions.aclose()


async def test_calls_in_flight_are_written_while_there_are_any_and_withdrawn_once(
    remote: Remote, listener: Listener
) -> None:
    sessions = remote_sessions(remote, listener, flush_interval=0.01, sweep_interval=0.02)
    sessions.ensure_running()
    await until(lambda: listener.operations["sweep", "ok"] >= 2)
    assert remote.in_flight == []

    listener.open = [OpenCall("export", 1.0, "abc", "shop-0")]
    await until(lambda: len(remote.in_flight) >= 3)
    assert '"tool_name":"export"' in (remote.in_flight[-1] or "")
    listener.open = []
    await until(lambda: remote.in_flight[-1] is None)

    assert remote.asked.count("read all in_flight") == 1  # Not each second the table of all processes.

    written, swept = len(remote.in_flight), listener.operations["sweep", "ok"]
    await until(lambda: listener.operations["sweep", "ok"] > swept + 2)
    assert len(remote.in_flight) == written
    await sessions.aclose()


# Loops.


async def test_the_task_does_not_take_the_context_of_the_request_along(sessions: Sessions, remote: Remote) -> None:
    request.set("one")
    sessions.ensure_running()
    await sessions.describe("abc")
    sessions.submit(delta(1))
    await until(lambda: sessions.pending == 0)

    assert set(remote.contexts) == {"none"}


async def test_after_closing_nothing_runs_and_the_next_request_begins_again(sessions: Sessions, remote: Remote) -> None:
    others = asyncio.all_tasks()
    sessions.ensure_running()
    (task,) = asyncio.all_tasks() - others
    sessions.submit(delta(1))
    await sessions.aclose()
    await asyncio.wait({task})
    assert (task.cancelled(), sessions.pending) == (False, 0)

    sessions.ensure_running()
    sessions.submit(delta(1))
    await until(lambda: sessions.pending == 0)


async def test_the_task_survives_the_garbage_collector(sessions: Sessions) -> None:
    sessions.ensure_running()
    for _ in range(3):
        await asyncio.sleep(0)
        gc.collect()
    sessions.submit(delta(1))
    await until(lambda: sessions.pending == 0)


def test_each_loop_in_turn_is_served_and_released(listener: Listener) -> None:
    store = MemoryStore(settings())
    sessions = Sessions(settings(flush_interval=3600.0), listener, store=store)

    async def serve() -> weakref.ref[asyncio.AbstractEventLoop]:
        sessions.ensure_running()
        sessions.submit(delta(1))
        await asyncio.sleep(0)
        return weakref.ref(asyncio.get_running_loop())

    served = [asyncio.run(serve()) for _ in range(2)]
    gc.collect()

    # Ending a loop cancels its tasks; ours writes what waits.
    assert sessions.pending == 0
    state = at_once(store.load("abc"))
    assert state is not None
    assert state.tool_call_count == 2
    assert [loop() for loop in served] == [None] * 2


def test_where_loops_come_and_go_one_of_ours_writes(listener: Listener) -> None:
    store, written = MemoryStore(settings()), threading.Event()
    sessions = Sessions(settings(flush_calls=1), listener, store=store)
    apply = store.apply

    async def noted(flushes: Sequence[Flush]) -> list[WriteResult]:
        answers = await apply(flushes)
        if threading.current_thread().name == "otel_mcp":
            written.set()
        return answers

    async def serve() -> None:
        sessions.ensure_running()
        sessions.submit(delta(1))

    store.apply = noted  # type: ignore[method-assign]
    for _ in range(4):
        asyncio.run(serve())

    assert written.wait(60)
    asyncio.run(loops.at_home(sessions.aclose))
    assert sessions.pending == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_loop_that_is_thrown_away_does_not_stop_the_next(listener: Listener) -> None:
    store = MemoryStore(settings())
    sessions = Sessions(settings(flush_interval=0.01), listener, store=store)

    async def serve() -> None:
        sessions.ensure_running()
        sessions.submit(delta(1))
        await asyncio.sleep(0)

    loop = asyncio.new_event_loop()
    logging.getLogger("asyncio").disabled = True
    try:
        loop.run_until_complete(serve())
        loop.close()
        gone = weakref.ref(loop)
        del loop
        gc.collect()
    finally:
        logging.getLogger("asyncio").disabled = False
    assert gone() is None

    async def next_one() -> None:
        sessions.ensure_running()
        await until(lambda: sessions.pending == 0)

    asyncio.run(next_one())
    assert listener.started_ids == ["abc"]


def test_two_loops_at_once_share_sessions(listener: Listener) -> None:
    store = MemoryStore(settings())
    sessions = Sessions(settings(flush_interval=0.01), listener, store=store)
    barrier = threading.Barrier(2)

    async def serve() -> None:
        barrier.wait(60)
        for _ in range(200):
            sessions.ensure_running()
            sessions.submit(delta(1))
            await sessions.flush()
        await sessions.load("abc")

    threads = [threading.Thread(target=lambda: asyncio.run(serve())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    sessions.flush_at_exit()
    state = at_once(store.load("abc"))
    assert state is not None
    assert (state.tool_call_count, sessions.pending) == (400, 0)


def test_waiting_calls_are_written_at_exit_without_a_loop(listener: Listener) -> None:
    store = MemoryStore(settings())
    sessions = Sessions(settings(), listener, store=store)
    sessions.submit(delta(3))

    sessions.flush_at_exit()

    assert (sessions.pending, listener.started_ids, len(store)) == (0, ["abc"], 1)
    sessions.flush_at_exit()
    assert not listener.dropped_calls


def test_calls_that_cannot_be_written_at_exit_are_counted(listener: Listener, caplog: pytest.LogCaptureFixture) -> None:
    sessions = Sessions(settings("redis://127.0.0.1:1"), listener)
    sessions.submit(delta(3))

    sessions.flush_at_exit()

    assert listener.dropped_calls == {"shutdown": 3}
    assert len(warnings(caplog)) == 2


# Warnings at the start.


async def test_one_warning_where_sessions_live_in_memory_only(
    listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    sessions = Sessions(settings(), listener)
    sessions.ensure_running()
    sessions.ensure_running()
    await sessions.aclose()
    sessions.ensure_running()
    await sessions.aclose()

    (line,) = warnings(caplog)
    assert "memory of this process only" in line


@pytest.mark.parametrize(
    "url", ["http://x", "nonsense", "redis+cluster://", "redis+sentinel:///x", "redis://h:secret@x:port/"]
)
async def test_a_url_that_cannot_be_used_is_logged_without_its_text(
    url: str, listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    sessions = Sessions(settings(url), listener)
    sessions.ensure_running()
    sessions.submit(delta(1))
    await sessions.flush()

    assert listener.started_ids == ["abc"]
    assert "the Redis URL cannot be used" in warnings(caplog)[0]
    assert "secret" not in caplog.text
    await sessions.aclose()
