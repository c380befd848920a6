"""Which sessions a server has cut, and which clients are back, in memory, on fakeredis, on Valkey and on Redis."""

from __future__ import annotations

import time
from typing import Any

import pytest

from otel_mcp.model.session import Interruption, Refusal
from otel_mcp.model.state import EndReason
from otel_mcp.sessions.tables import gone, leave
from otel_mcp.store.base import ProducerId, SessionStore
from otel_mcp.store.redis import reports
from tests.store.conftest import Replicas
from tests.support.stores import delta, facts, flush

pytestmark = pytest.mark.anyio


@pytest.fixture
def now() -> float:
    """A minute ago, in whole seconds: there is time for what comes after."""
    return float(int(time.time())) - 60.0


def refusal(at: float, *, served: bool | None = False, session_id: str = "abc", user: str | None = None) -> Refusal:
    return Refusal(session_id, at, user, served)


def told(cuts: list[Interruption]) -> list[tuple[str, str, float]]:
    return [(cut.facts.session_id, cut.cause, cut.at) for cut in cuts]


async def began(replicas: Replicas, at: float, **known: Any) -> tuple[SessionStore, ProducerId]:
    """A process that has served one call of the session at `at`."""
    store, process = replicas.store(at - 1000)
    await store.apply(
        [flush(process, delta(1, of=facts(at=at, client_name="client", source="header", **known), at=at))]
    )
    return store, process


async def noted(store: SessionStore) -> tuple[float, str] | None:
    state = await store.load("abc")
    assert state is not None
    return state.interrupted and (state.interrupted.at.timestamp(), state.interrupted.cause)


@pytest.mark.parametrize(
    ("started", "served", "cause"),
    [(10, False, "restart"), (-10, False, "replica"), (10, True, "idle_reaper"), (10, None, "restart")],
)
async def test_a_refused_session_is_cut_once_by_its_cause(
    replicas: Replicas, now: float, started: float, served: bool | None, cause: str
) -> None:
    _, _ = await began(replicas, now)
    other, _ = replicas.store(now + started)
    if not replicas.shared:  # Whatever is there, this process has served.
        cause = "replica" if served is None else "idle_reaper"

    (cut,) = await other.cut([refusal(now + 20, served=served)])

    assert told([cut]) == [("abc", cause, now + 20)]
    assert (cut.facts.client_name, cut.facts.source, cut.has_tool_calls) == ("client", "header", True)
    assert await noted(other) == (now + 20, cause)
    third, _ = replicas.store(now + 15)
    assert await third.cut([refusal(now + 21), refusal(now + 22, served=True)]) == []
    assert await noted(other) == (now + 20, cause)


async def test_a_process_knows_by_the_store_that_it_has_served_a_session(replicas: Replicas, now: float) -> None:
    store, _ = await began(replicas, now)

    assert told(await store.cut([refusal(now + 20)])) == [("abc", "idle_reaper", now + 20)]


@pytest.mark.parametrize("reason", ["client_delete", "replaced", "server_closed"])
async def test_an_ended_session_is_cut_only_where_the_server_has_ended_it(
    replicas: Replicas, now: float, reason: EndReason
) -> None:
    store, process = await began(replicas, now)
    await store.apply([flush(process, delta(0, of=facts(at=now), at=now + 5, ended=reason))])

    cuts = await store.cut([refusal(now + 20)])

    assert told(cuts) == ([("abc", "idle_reaper", now + 20)] if reason == "server_closed" else [])


async def test_what_is_no_live_session_of_the_caller_is_not_cut(replicas: Replicas, now: float) -> None:
    store, _ = await began(replicas, now, principal="ann")

    assert (
        await store.cut([refusal(now + 9, session_id="made-up"), refusal(now + 9), refusal(now + 9, user="bob")]) == []
    )
    assert await store.cut([refusal(now + 3700, user="ann")]) == []  # It has expired.
    assert len(await store.cut([refusal(now + 9, user="ann")])) == 1
    await store.delete("abc")
    assert await store.cut([refusal(now + 9, user="ann")]) == []


async def test_a_session_of_another_service_is_not_cut(replicas: Replicas, now: float) -> None:
    if not replicas.shared:
        pytest.skip("memory has one service")
    await began(replicas, now)
    other, _ = replicas.store(now, service="other")

    assert await other.cut([refusal(now + 9)]) == []


async def test_the_same_question_is_answered_alike(replicas: Replicas, now: float) -> None:
    if not replicas.shared:
        pytest.skip("no answer of the memory is lost")
    await began(replicas, now)
    other, _ = replicas.store(now + 10)
    asked = refusal(now + 20)

    assert told(await other.cut([asked])) == told(await other.cut([asked])) == [("abc", "restart", now + 20)]


async def test_a_session_that_goes_on_is_back(replicas: Replicas, now: float) -> None:
    store, process = await began(replicas, now)
    other, _ = replicas.store(now - 10)
    await other.cut([refusal(now + 20, served=None)])
    # Written late, but of a time before: nobody has come back by that.
    (before,) = await store.apply([flush(process, delta(1, at=now + 19))])
    sent = flush(process, delta(1, at=now + 50))

    (answer,) = await store.apply([sent])
    (again,) = await store.apply([sent])
    (later,) = await store.apply([flush(process, delta(1, at=now + 55))])

    assert (before.back_after, answer.back_after, later.back_after) == (None, 30.0, None)
    assert (again.duplicate, again.back_after) == (True, 30.0)
    assert await noted(store) == (now + 20, "replica")


async def test_a_request_that_began_before_the_cut_is_no_return(replicas: Replicas, now: float) -> None:
    store, process = await began(replicas, now)
    await store.cut([refusal(now + 20)])
    late, ping, back = delta(1, at=now + 25), delta(0, at=now + 26, requests=1), delta(1, at=now + 40, requests=2)
    late.began, ping.began, back.began = now + 17, now + 19, now + 30
    late.first_activity, back.first_activity = now + 17, now + 18

    answers = [(await store.apply([flush(process, sent)]))[0] for sent in (late, ping, back)]

    assert [answer.back_after for answer in answers] == [None, None, 10.0]


async def test_who_comes_after_half_an_hour_is_lost(replicas: Replicas, now: float) -> None:
    now -= 3000
    store, process = await began(replicas, now)
    await store.cut([refusal(now + 20)])

    (answer,) = await store.apply([flush(process, delta(1, at=now + 20 + 1801))])

    assert answer.back_after is None
    assert await store.cut([refusal(now + 2000)]) == []


async def test_the_same_wrong_replica_counts_once_and_each_restart(replicas: Replicas, now: float) -> None:
    if not replicas.shared:
        pytest.skip("memory does not outlive a process")
    store, process = await began(replicas, now)
    older, _ = replicas.store(now - 10)
    found: list[tuple[str, str, float]] = []
    for at, refusing in ((10, older), (20, older), (30, replicas.store(now + 25)[0]), (40, replicas.store(now + 25)[0]),
                         (50, replicas.store(now + 45)[0])):  # fmt: skip
        found += told(await refusing.cut([refusal(now + at)]))
        await store.apply([flush(process, delta(1, at=now + at + 1))])

    assert [(cause, at - now) for _, cause, at in found] == [("replica", 10), ("restart", 30), ("restart", 50)]


async def test_what_an_ended_process_has_served_is_cut_by_a_restart(replicas: Replicas, now: float) -> None:
    if not replicas.shared:
        pytest.skip("memory has one process")
    store, process = await began(replicas, now)
    older, _ = replicas.store(now - 10)
    await leave(store, process)

    assert told(await older.cut([refusal(now + 20)], await gone(older))) == [("abc", "restart", now + 20)]


async def test_a_visitor_is_back_with_another_session(replicas: Replicas, now: float) -> None:
    store, _ = await began(replicas, now, visitor="ann", principal="user")
    other, _ = replicas.store(now + 10)
    assert await other.back("ann", now + 15, "next") is None
    await other.cut([refusal(now + 20, user="user")])

    assert await other.back("bob", now + 30, "next") is None
    back = await other.back("ann", now + 30, "next")

    assert back is not None
    assert (back.facts.session_id, back.facts.client_name, back.facts.principal) == ("abc", "client", "user")
    assert (back.after, back.ended) == (10.0, False)
    assert await other.back("ann", now + 31, "another") is None
    (later,) = await store.apply([flush(ProducerId(), delta(1, of=facts(at=now, principal="user"), at=now + 40))])
    assert later.back_after is None


async def test_a_return_whose_answer_is_lost_is_answered_alike(
    replicas: Replicas, now: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not replicas.shared:
        pytest.skip("no answer of the memory is lost")
    store, _ = await began(replicas, now, visitor="ann")
    await store.cut([refusal(now + 20)])

    lost = [await store.back("ann", now + 30, "next") for _ in range(2)]
    other = await store.back("ann", now + 31, "another")
    again = await store.back("ann", now + 30, "next")

    assert [back and (back.facts.session_id, back.after) for back in lost] == [("abc", 10.0), ("abc", 10.0)]
    assert (other, again) == (None, None)


async def test_a_visitor_who_went_on_is_not_back_once_more(replicas: Replicas, now: float) -> None:
    store, process = await began(replicas, now, visitor="ann")
    await store.cut([refusal(now + 20)])
    await store.apply([flush(process, delta(1, at=now + 30))])

    assert await store.back("ann", now + 31, "next") is None


async def test_a_visitor_whom_nobody_cut_lately_is_not_back(replicas: Replicas, now: float) -> None:
    now -= 3000
    store, _ = await began(replicas, now, visitor="ann")
    await store.cut([refusal(now + 20)])

    assert await store.back("ann", now + 20 + 1801, "next") is None


async def test_of_a_visitor_with_very_many_cut_sessions_the_newest_are_kept(
    replicas: Replicas, now: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not replicas.shared:
        pytest.skip("memory keeps as many as there are sessions")
    monkeypatch.setattr(reports, "_MOST_CUT", 3)
    store, process = replicas.store(now - 1000)
    names = [f"s{number}" for number in range(5)]
    for name in names:
        await store.apply([flush(process, delta(1, of=facts(name, now, visitor="gateway"), at=now))])
    await store.cut([refusal(now + 20 + at, session_id=name) for at, name in enumerate(names)])

    found = [await store.back("gateway", now + 40, f"next-{number}") for number in range(4)]

    assert [back.facts.session_id for back in found if back is not None] == ["s2", "s3", "s4"]
