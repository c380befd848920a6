"""Patterns of running sessions: when the store is looked at, and who reports what it shows."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest

from otel_mcp.model.delta import CallRecord, SessionDelta
from otel_mcp.model.state import SessionState
from otel_mcp.model.verdict import Finding
from otel_mcp.sessions.buffer import Buffer
from otel_mcp.sessions.findings import LOOKS, PAUSE, Findings
from otel_mcp.sessions.flusher import Flusher
from otel_mcp.sessions.health import StoreHealth
from otel_mcp.store.base import ProducerId, StoreDown
from otel_mcp.store.memory import MemoryStore
from tests.support.stores import EPOCH, Clock, Listener, facts, settings

pytestmark = pytest.mark.anyio


class Counting(MemoryStore):
    """Counts how often each session is read, and fails where it is told to."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(settings(), clock=clock)
        self.reads: Counter[str] = Counter()
        self.down = False

    async def load(self, session_id: str) -> SessionState | None:
        self.reads[session_id] += 1
        if self.down:
            raise StoreDown("TimeoutError")
        return await super().load(session_id)


@dataclass
class Replica:
    """One process on a store."""

    store: Counting
    clock: Clock

    def __post_init__(self) -> None:
        self.listener = Listener()
        self.health = StoreHealth(self.listener)
        given = settings()
        self.buffer = Buffer(given)
        self._flusher = Flusher(given, self.buffer, self.store, self.listener, ProducerId(), self.health)
        self.findings = Findings(self.store, self.listener, self.health, clock=self.clock)
        self._flusher.findings = self.findings

    async def serve(self, *calls: CallRecord, session_id: str = "abc", ended: bool = False) -> None:
        """Write calls."""
        of = SessionDelta(facts(session_id), calls[-1].started_at, requests=len(calls), call_count=len(calls))
        of.calls, of.ended = list(calls), (calls[-1].started_at, "client_delete") if ended else None
        self.buffer.add(of)
        await self._flusher.flush()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> Counting:
    return Counting(clock)


@pytest.fixture
def replica(store: Counting, clock: Clock) -> Replica:
    return Replica(store, clock)


def call(number: int, arguments: str | None = "a", failure: str | None = None) -> CallRecord:
    error = "tool_error" if failure == "tool" else failure
    size = 200 + len(str(number))
    return CallRecord("search", number, EPOCH + 3.0 * number, 0.1, error, failure, size, arguments)


async def test_calls_that_work_and_differ_are_not_looked_at(replica: Replica) -> None:
    for number in range(20):
        await replica.serve(call(number, f"a{number}"))
    await replica.serve(call(20, "b", "cancelled"))
    assert not replica.findings.due
    await replica.findings.look()
    assert not replica.store.reads


async def test_a_loop_is_reported_once_and_marked(replica: Replica, clock: Clock) -> None:
    for number in range(8):
        await replica.serve(call(number))
        await replica.findings.look()
        clock.now += PAUSE
    assert replica.listener.findings == [("abc", Finding("looped", "search", 4), ("looped",))]
    assert replica.store.reads["abc"] == 7
    state = await replica.store.load("abc")
    assert state is not None
    assert state.findings == ["looped"]


async def test_a_look_that_comes_too_soon_is_made_later(replica: Replica, clock: Clock) -> None:
    for number in range(6):
        await replica.serve(call(number))
        await replica.findings.look()
        clock.now += 1.0
    assert replica.store.reads["abc"] == 1
    assert not replica.listener.findings
    assert replica.findings.due
    clock.now += PAUSE
    await replica.findings.look()
    assert replica.listener.findings == [("abc", Finding("looped", "search", 6), ("looped",))]
    assert not replica.findings.due


async def test_calls_of_other_replicas_count_and_one_of_them_reports(store: Counting, clock: Clock) -> None:
    replicas = [Replica(store, clock) for _ in range(3)]
    for number in range(9):
        await replicas[number % 3].serve(call(number, failure="tool"))
        clock.now += PAUSE
        for replica in replicas:
            await replica.findings.look()
    assert [found for replica in replicas for found in replica.listener.findings] == [
        ("abc", Finding("retry_storm", "search", 3), ("retry_storm",))
    ]


async def test_each_pattern_of_a_session_is_reported(replica: Replica, clock: Clock) -> None:
    await replica.serve(*(call(number) for number in range(5)))
    await replica.findings.look()
    clock.now += PAUSE
    await replica.serve(*(call(number, failure="tool") for number in range(10, 13)))
    await replica.findings.look()
    assert [found for _, found, _ in replica.listener.findings] == [
        Finding("looped", "search", 5),
        Finding("retry_storm", "search", 3),
    ]


async def test_an_ended_session_shows_nothing_more(replica: Replica) -> None:
    await replica.serve(*(call(number) for number in range(5)))
    await replica.serve(call(5), ended=True)
    await replica.findings.look()
    assert not replica.listener.findings
    await replica.serve(call(1), call(2), session_id="other", ended=True)
    assert not replica.findings.due


async def test_one_turn_looks_at_a_few_sessions_in_their_order(replica: Replica) -> None:
    names = [f"s{number:03}" for number in range(3 * LOOKS)]
    for name in names:
        await replica.serve(call(1), call(2), session_id=name)
    for turn in (1, 2, 3):
        await replica.findings.look()
        assert list(replica.store.reads) == names[: turn * LOOKS]
    assert not replica.findings.due


async def test_memory_of_sessions_is_bounded(replica: Replica) -> None:
    for number in range(5000):
        replica.findings.want(f"s{number}")
    assert len(replica.findings.due) == 2000
    replica.findings.due.clear()
    await replica.serve(*(call(number, f"a{number}") for number in range(100)))
    await replica.serve(call(100, "a0"))
    assert not replica.findings.due
    await replica.serve(call(101, "a99"))
    assert list(replica.findings.due) == ["abc"]


async def test_a_store_that_fails_stops_nothing_but_the_look(replica: Replica, store: Counting, clock: Clock) -> None:
    await replica.serve(*(call(number) for number in range(5)))
    store.down = True
    await replica.findings.look()
    assert replica.health.is_away
    replica.findings.want("abc")
    clock.now += PAUSE
    await replica.findings.look()
    assert store.reads["abc"] == 1

    store.down = False
    await replica.serve(call(5))
    await replica.findings.look()
    assert [found for _, found, _ in replica.listener.findings] == [Finding("looped", "search", 6)]
