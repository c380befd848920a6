"""Each end is reported once, when all replicas have written what they know, with how the session went."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from otel_mcp.model.delta import SessionDelta
from otel_mcp.sessions import endings, flusher
from otel_mcp.sessions.service import Sessions
from otel_mcp.store.base import StoreDown
from tests.store.test_service import Remote, until
from tests.support.stores import Listener, Server, delta, facts, settings

pytestmark = pytest.mark.anyio

Replica = tuple[Sessions, Listener]


@pytest.fixture
async def replica(server: Server, raw: Any) -> AsyncIterator[Callable[..., Replica]]:
    """Make processes of one service on one server, whose tasks run."""
    made: list[Sessions] = []

    def make(**values: Any) -> Replica:
        listener = Listener()
        given = {"flush_interval": 0.05, "sweep_interval": 0.1, **values}
        sessions = Sessions(settings(server.patient_url, **given), listener)
        sessions.ensure_running()
        made.append(sessions)
        return sessions, listener

    yield make
    for sessions in made:
        await sessions.aclose()


async def test_an_end_is_reported_with_what_other_replicas_write_meanwhile(
    replica: Callable[..., Replica], raw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endings, "TRAVEL", 1.0)
    (here, listener), (there, others) = replica(), replica()
    now = time.time()
    failed = delta(1, at=now)
    failed.calls[0].failure = "tool"
    here.submit(failed)
    here.submit(delta(0, at=now + 0.001, ended="client_delete"))
    await until(lambda: here.pending == 0 and here._flusher.endings.held)  # pyright: ignore[reportPrivateUsage]
    there.submit(delta(1, at=now + 1, first=1))

    await until(lambda: listener.ends)

    (end,) = listener.ends
    assert (end.reason, end.tool_call_count, end.outcome) == ("client_delete", 2, "corrected")
    assert [call.request_id for call in end.calls] == [0, 1]
    assert others.ends == []
    await until(lambda: b'"outcome":"corrected"' in raw.get("mcp_session:abc"))
    state = await there.load("abc")
    assert state is not None
    assert (state.outcome, state.tool_call_count) == ("corrected", 2)


async def test_a_process_that_ends_reports_at_once_what_it_holds(replica: Callable[..., Replica]) -> None:
    sessions, listener = replica()
    sessions.submit(delta(1, at=time.time(), ended="client_delete"))

    await sessions.aclose()

    assert [(end.tool_call_count, end.outcome) for end in listener.ends] == [(1, "worked")]


@pytest.mark.parametrize("when", ["claim_held", "visits", "ack_ends"])
async def test_a_task_cancelled_while_it_reports_leaves_no_end_to_another(
    replica: Callable[..., Replica], raw: Any, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    monkeypatch.setattr(endings, "TRAVEL", 0.1)
    sessions, listener = replica()
    reached, use = asyncio.Event(), getattr(sessions._store, when)  # pyright: ignore[reportPrivateUsage]

    async def lost(*about: Any) -> Any:
        answer = await use(*about) if when == "claim_held" else None
        if about[0]:
            monkeypatch.undo()
            reached.set()
            await asyncio.Event().wait()
        return answer

    monkeypatch.setattr(sessions._store, when, lost)  # pyright: ignore[reportPrivateUsage]
    sessions.submit(delta(0, of=facts(visitor="v" * 32), at=time.time(), requests=1, ended="server_closed"))
    await asyncio.wait_for(reached.wait(), 60)
    task = sessions.worker._task()  # pyright: ignore[reportPrivateUsage]
    assert task is not None

    task.cancel()
    await asyncio.wait((task,))
    await sessions.aclose()

    assert [end.outcome for end in listener.ends] == ["no_call"]
    assert raw.hget("{mcp_session:abc}:stats", "w") is None
    assert raw.zcard("otel_mcp:svc:deadlines") == 0


async def test_an_end_whose_process_dies_before_it_reports_is_reported_by_another(
    replica: Callable[..., Replica], raw: Any
) -> None:
    (dies, dead), (_, listener) = replica(), replica()
    dies.submit(delta(3, at=time.time(), ended="client_delete"))
    await until(lambda: raw.hget("{mcp_session:abc}:stats", "w"))
    dies._flusher.endings.held.clear()  # pyright: ignore[reportPrivateUsage]
    # As if its claim were a minute old.
    token = raw.hget("{mcp_session:abc}:stats", "w").decode().split(" ")[0]
    raw.hset("{mcp_session:abc}:stats", "w", f"{token} {round((time.time() - 5) * 1e6)}")
    raw.zadd("otel_mcp:svc:deadlines", {"abc": time.time() - 5 - 1e11})

    await until(lambda: listener.ends or dead.ends)

    assert [end.tool_call_count for end in listener.ends + dead.ends] == [3]
    await until(lambda: raw.zcard("otel_mcp:svc:deadlines") == 0)
    assert len(listener.ends + dead.ends) == 1


async def test_sessions_that_expire_have_an_outcome(
    replica: Callable[..., Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endings, "TRAVEL", 0.0)
    monkeypatch.setattr(flusher, "_AFTER_OUTAGE", 0.0)
    sessions, listener = replica()
    now = time.time()
    for session_id, calls in (("called", 1), ("silent", 0)):
        sessions.submit(delta(calls, of=facts(session_id, now, 0.2), at=now, requests=1))

    await until(lambda: len(listener.ends) == 2)

    assert {end.session_id: (end.reason, end.outcome) for end in listener.ends} == {
        "called": ("expired", "worked"),
        "silent": ("expired", "no_call"),
    }


async def test_the_end_of_a_session_without_documents_to_spare_knows_its_calls(
    replica: Callable[..., Replica], raw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flusher, "_AFTER_OUTAGE", 0.0)
    sessions, listener = replica(session_ttl=2.0, sweep_interval=0.5)
    now = time.time()
    failed = delta(3, of=facts("abc", now, 2.0), at=now)
    for call in failed.calls:
        call.failure, call.waiting = "tool", "w" * 16
    sessions.submit(failed)

    await until(lambda: listener.ends)

    (end,) = listener.ends
    assert (end.reason, [call.failure for call in end.calls]) == ("expired", ["tool"] * 3)
    assert end.last_activity + 2.0 + endings.TRAVEL < time.time()
    assert 0 < raw.ttl("mcp_session:abc") <= 600


def visit(number: int, *, calls: int = 0) -> SessionDelta:
    """A session of one visitor, five minutes after the one before."""
    at = time.time() - 3600 + 300 * number
    known = facts(f"visit-{number}", at, 7200.0, visitor="v" * 32)
    return delta(calls, of=known, at=at, requests=2, ended="client_delete")


async def test_a_visitor_that_comes_regularly_and_calls_nothing_is_a_probe(replica: Callable[..., Replica]) -> None:
    (first, _), (second, _) = replicas = replica(), replica()
    for number in range(6):
        (first, second)[number % 2].submit(visit(number))
        await (first, second)[number % 2].flush()
    for sessions, _ in replicas:
        await sessions.aclose()

    ends = sorted((end for _, listener in replicas for end in listener.ends), key=lambda end: end.session_id)
    assert len(ends) == 6
    judged = [end for end in ends if end.outcome == "probe"]
    assert judged
    assert {end.facts.synthetic_type for end in judged} == {"bot"}
    assert {(end.outcome, end.facts.synthetic_type) for end in ends if end not in judged} == {("no_call", None)}


async def test_a_visitor_that_calls_a_tool_now_and_then_is_no_probe() -> None:
    listener = Listener()
    sessions = Sessions(settings(), listener)
    for number in range(9):
        sessions.submit(visit(number, calls=number % 3 // 2))
    await sessions.aclose()

    assert [end.outcome for end in listener.ends] == ["no_call", "no_call", "worked"] * 3


@pytest.mark.parametrize("when", ["before it is claimed", "before it is acknowledged"])
async def test_an_outage_does_not_report_an_end_twice_or_never(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endings, "TRAVEL", 0.1)
    remote, listener = Remote(), Listener()
    sessions = Sessions(settings(flush_interval=0.01), listener, store=remote)
    sessions.ensure_running()
    broken = "claim_held" if when == "before it is claimed" else "ack_ends"
    reach, asked = remote._reach, [0]  # pyright: ignore[reportPrivateUsage]

    async def fails_once(what: str) -> Any:
        if what == broken and not asked[0]:
            asked[0] = 1
            raise StoreDown("ConnectionError")
        return await reach(what)

    monkeypatch.setattr(remote, "_reach", fails_once)
    sessions.submit(delta(2, at=time.time(), ended="client_delete"))

    await until(lambda: listener.ends and not sessions.degraded and asked[0])
    await sessions.aclose()

    assert [(end.tool_call_count, end.outcome) for end in listener.ends] == [(2, "worked")]


async def test_a_verdict_that_fails_does_not_keep_the_end_from_being_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def judge(*_: object, **__: object) -> str:
        raise RuntimeError("bug")

    monkeypatch.setattr(endings, "judge", judge)
    listener = Listener()
    sessions = Sessions(settings(), listener)
    sessions.submit(delta(1, at=time.time(), ended="client_delete"))
    await sessions.flush()

    assert [end.outcome for end in listener.ends] == ["worked"]
    await sessions.aclose()


async def test_deleting_a_session_reports_its_end_before_its_document_is_gone(
    replica: Callable[..., Replica],
) -> None:
    sessions, listener = replica()
    sessions.submit(delta(2, at=time.time()))

    assert await sessions.delete("abc")

    assert [(end.reason, len(end.calls)) for end in listener.ends] == [("server_closed", 2)]
    assert await sessions.load("abc") is None


async def test_ends_are_held_in_bounded_memory(raw: Any, server: Server) -> None:
    listener = Listener()
    sessions = Sessions(settings(server.patient_url, max_sessions=10), listener)
    now = time.time()
    for number in range(25):
        sessions.submit(delta(1, of=facts(f"s{number}", now), at=now, ended="client_delete"))
        await sessions.flush()
    held = len(sessions._flusher.endings.held)  # pyright: ignore[reportPrivateUsage]
    await sessions.aclose()

    assert (held, len(listener.ends)) == (10, 10)
    # Those that were forgotten are left to the sweeper of the time when their claims are over.
    assert (raw.zcard("otel_mcp:svc:deadlines"), raw.zcount("otel_mcp:svc:deadlines", 0, "+inf")) == (15, 0)
