"""What every store does, in memory, on fakeredis, on Valkey and on Redis."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, cast

import anyio
import fakeredis
import pytest

from otel_mcp.model.delta import EndedSession, OpenCall, SessionFacts
from otel_mcp.model.state import EndReason, SessionState, ToolCall
from otel_mcp.sessions.tables import CATALOGUES, meet, put_in_flight
from otel_mcp.store.base import ProducerId, SessionStore
from otel_mcp.store.memory import MemoryStore
from otel_mcp.store.redis.client import Client
from otel_mcp.store.redis.store import RedisStore
from tests.support.stores import call, delta, facts, flush, settings

pytestmark = pytest.mark.anyio

ANN, BOB = "a" * 32, "b" * 32
"""Users, or visitors."""


@pytest.fixture
async def store(backend: Any, process: ProducerId) -> AsyncIterator[SessionStore]:
    """The store of `process`, which holds the ends that its flushes bring."""
    if backend == "memory":
        yield MemoryStore(settings())
        return
    if backend == "fakeredis":
        fake = fakeredis.FakeServer()
        made = RedisStore(settings(), process, client=lambda: cast(Client, fakeredis.FakeAsyncRedis(server=fake)))
    else:
        backend.client().flushall()
        made = RedisStore(settings(backend.url), process)
    yield made
    await made.aclose()


@pytest.fixture
def now() -> float:
    """A whole second, so that no text of it depends on how a float is rounded."""
    return float(int(time.time()))


async def loaded(store: SessionStore, session_id: str = "abc") -> SessionState:
    state = await store.load(session_id)
    assert state is not None
    return state


async def test_a_flush_makes_the_document_of_its_session(store: SessionStore, process: ProducerId, now: float) -> None:
    known = facts(at=now, user_agent="agent/1", client_name="client", client_version="2", source="header")
    record = call(7, now, error_type="tool_error", result_bytes=12, trace_id="ab" * 16, span_id="cd" * 8)
    record.service_instance_id = "shop-0"
    change = delta(1, of=known, at=now, errors=1, requests=3)
    change.calls = [record]

    (answer,) = await store.apply([flush(process, change)])

    assert (answer.created, answer.total_calls, answer.duplicate, answer.after_end) == (True, 1, False, False)
    assert (await loaded(store)).model_dump(exclude_none=True, mode="json") == {
        "session_id": "abc",
        "service": "svc",
        "user_agent": "agent/1",
        "client_name": "client",
        "client_version": "2",
        "source": "header",
        "attributes": {},
        "findings": [],
        "created_at": iso(now),
        "last_activity": iso(now),
        "tool_call_count": 1,
        "error_count": 1,
        "request_count": 3,
        "context_bytes": 100,
        "catalogue_bytes": 10,
        "tool_calls": [
            {
                "tool_name": "add",
                "request_id": 7,
                "started_at": iso(now),
                "duration": 0.25,
                "error_type": "tool_error",
                "result_bytes": 12,
                "trace_id": "ab" * 16,
                "span_id": "cd" * 8,
                "service_instance_id": "shop-0",
                "rounds": 1,
                "input_wait": 0.0,
            }
        ],
    }


def iso(seconds: float) -> str:
    state = SessionState(session_id="", created_at=cast(Any, round(seconds, 6)))
    return state.model_dump(mode="json")["created_at"]


async def test_the_same_flush_counts_once_and_is_answered_alike(store: SessionStore, process: ProducerId) -> None:
    sent = flush(process, delta(2, at=time.time()))
    first = (await store.apply([sent]))[0]

    again = (await store.apply([sent]))[0]

    assert (first.created, first.duplicate) == (True, False)
    assert (again.created, again.duplicate, again.total_calls) == (True, True, 2)
    assert (await loaded(store)).tool_call_count == 2


async def test_a_process_that_comes_between_does_not_hide_a_repeat(store: SessionStore, process: ProducerId) -> None:
    sent, other = flush(process, delta(2, at=time.time())), ProducerId()
    await store.apply([sent])
    await store.apply([flush(other, delta(3, at=time.time()))])

    assert (await store.apply([sent]))[0].duplicate
    assert (await loaded(store)).tool_call_count == 5


async def test_the_document_keeps_the_newest_calls_and_counts_all(
    store: SessionStore, process: ProducerId, now: float
) -> None:
    for number in range(90):
        await store.apply([flush(process, delta(1, at=now, first=number))])
        state = await loaded(store)
        kept = [made.request_id for made in state.tool_calls]
        assert kept == list(range(number + 1))[-len(kept) :]
        assert min(number + 1, 25) <= len(kept) <= 50
        assert state.tool_call_count == number + 1


async def test_a_flush_larger_than_the_window_leaves_its_newest_calls(store: SessionStore, process: ProducerId) -> None:
    await store.apply([flush(process, delta(300, at=time.time()))])

    state = await loaded(store)

    assert state.tool_call_count == 300
    assert [made.request_id for made in state.tool_calls] == list(range(275, 300))


async def test_what_one_process_does_not_know_erases_nothing(store: SessionStore, now: float) -> None:
    await store.apply([flush(ProducerId(), delta(1, of=facts(at=now, client_name="client", user_agent="a"), at=now))])
    await store.apply([flush(ProducerId(), delta(1, of=facts(at=now - 5, protocol_version="2025-11-25"), at=now))])
    await store.apply([flush(ProducerId(), delta(1, of=facts(at=now + 5, user_agent="b"), at=now - 60))])

    state = await loaded(store)

    assert (state.client_name, state.protocol_version, state.user_agent) == ("client", "2025-11-25", "b")
    assert state.created_at is not None
    assert state.last_activity is not None
    assert state.created_at.timestamp() == pytest.approx(now - 5, abs=1e-3)
    assert state.last_activity.timestamp() == pytest.approx(now, abs=1e-3)


async def test_two_processes_with_different_facts_do_not_take_turns(store: SessionStore, now: float) -> None:
    one, other = ProducerId(), ProducerId()
    for _ in range(3):
        await store.apply([flush(one, delta(1, of=facts(at=now, user_agent="one"), at=now))])
        await store.apply([flush(other, delta(1, of=facts(at=now, user_agent="other"), at=now))])

    assert (await loaded(store)).user_agent == "other"


async def test_an_end_is_held_by_the_first_that_brings_it(store: SessionStore, process: ProducerId, now: float) -> None:
    known = facts(at=now - 60, client_name="client", source="header", previous_id="before", visitor=ANN)
    await store.apply([flush(process, delta(4, of=known, at=now - 30, errors=1))])
    ending = flush(process, delta(1, of=known, at=now, first=4, ended="client_delete"))

    first = (await store.apply([ending]))[0]
    other = (await store.apply([flush(ProducerId(), delta(0, of=facts(at=now), at=now, ended="client_delete"))]))[0]
    again = (await store.apply([ending]))[0]

    assert (first.ended, first.after_end, first.duplicate) == (True, False, False)
    assert (other.ended, other.after_end, other.created) == (False, True, False)
    assert (again.ended, again.duplicate) == (True, True)
    state = await loaded(store)
    assert state.ended is not None
    assert (state.ended.reason, state.outcome) == ("client_delete", None)
    assert await store.active() == 0
    (end,) = await store.claim_held(["abc", "unknown"], time.time())
    assert rounded(end) == EndedSession(
        facts(at=round(now - 60, 3), client_name="client", source="header", previous_id="before", visitor=ANN),
        reason="client_delete",
        last_activity=round(now, 3),
        tool_call_count=5,
        error_count=1,
        request_count=5,
        context_bytes=500,
        calls=state.tool_calls,
    )
    assert [made.request_id for made in end.calls] == [0, 1, 2, 3, 4]


async def test_a_report_has_what_came_before_and_the_document_its_outcome(
    store: SessionStore, process: ProducerId, now: float
) -> None:
    known = facts(at=now - 60)
    await store.apply([flush(process, delta(1, of=known, at=now, ended="client_delete"))])
    await store.apply([flush(ProducerId(), delta(2, of=known, at=now - 1, first=7))])
    (end,) = await store.claim_held(["abc"], time.time())
    end.outcome = "corrected"

    await store.ack_ends([end])
    (late,) = await store.apply([flush(ProducerId(), delta(1, of=known, at=now - 1, first=9))])

    assert (end.tool_call_count, [made.request_id for made in end.calls]) == (3, [7, 8, 0])
    assert (late.after_end, late.total_calls) == (True, 4)
    state = await loaded(store)
    assert (state.outcome, state.tool_call_count, state.ended is not None) == ("corrected", 4, True)
    assert await store.claim_held(["abc"], time.time()) == []
    assert await store.claim_expired(now + 10_000, 10) == []
    assert await store.active() == 0


async def test_the_next_session_under_an_id_takes_over_a_held_end(store: SessionStore, process: ProducerId) -> None:
    now = time.time()
    await store.apply([flush(process, delta(2, of=facts(at=now - 60), at=now - 50, ended="client_delete"))])

    (begun,) = await store.apply([flush(ProducerId(), delta(1, of=facts(at=now), at=now))])

    assert begun.expired is not None
    assert (begun.expired.reason, begun.expired.tool_call_count, len(begun.expired.calls)) == ("client_delete", 2, 2)
    assert (begun.created, begun.total_calls) == (True, 1)
    assert await store.claim_held(["abc"], time.time()) == []
    state = await loaded(store)
    assert (state.ended, state.outcome, state.tool_call_count) == (None, None, 1)
    assert await store.active() == 1


async def test_an_outcome_does_not_reach_the_next_session_under_the_id(
    store: SessionStore, process: ProducerId
) -> None:
    now = time.time()
    await store.apply([flush(process, delta(2, of=facts(at=now - 60), at=now - 50, ended="client_delete"))])
    (end,) = await store.claim_held(["abc"], time.time())
    end.outcome = "worked"
    await store.ack_ends([end])

    await store.apply([flush(ProducerId(), delta(1, of=facts(at=now), at=now))])

    assert (await loaded(store)).outcome is None


async def test_the_first_mark_of_a_finding_is_the_one_that_counts(store: SessionStore, process: ProducerId) -> None:
    now, other = time.time(), ProducerId()
    assert not await store.mark("abc", "looped")
    await store.apply([flush(process, delta(2, of=facts(at=now), at=now))])

    assert [await store.mark("abc", name) for name in ("looped", "looped", "ping_pong", "looped")] == [
        True, False, True, False
    ]  # fmt: skip
    assert (await loaded(store)).findings == ["looped", "ping_pong"]
    assert len((await loaded(store)).tool_calls) == 2

    await store.apply([flush(other, delta(1, at=now))])
    await store.save(SessionState(session_id="abc", attributes={"team": "red"}))
    state = await loaded(store)
    assert (state.findings, state.tool_call_count, state.attributes) == (["looped", "ping_pong"], 3, {"team": "red"})


async def test_findings_reach_the_end_and_no_other_session(store: SessionStore, process: ProducerId) -> None:
    now = time.time()
    await store.apply([flush(process, delta(1, of=facts(at=now - 50), at=now - 50))])
    await store.mark("abc", "looped")
    await store.apply([flush(process, delta(of=facts(at=now - 50), at=now - 40, ended="client_delete"))])
    assert not await store.mark("abc", "ping_pong")
    (end,) = await store.claim_held(["abc"], now)
    assert end.findings == ["looped"]
    end.outcome = "looped"
    await store.ack_ends([end])
    assert (await loaded(store)).findings == ["looped"]

    await store.apply([flush(process, delta(1, of=facts(at=now), at=now))])
    assert (await loaded(store)).findings == []
    assert await store.mark("abc", "looped")


async def test_the_mere_end_of_an_overdue_session_is_its_expiry(store: SessionStore, process: ProducerId) -> None:
    now = time.time()
    await store.apply([flush(process, delta(3, of=facts(at=now - 99, limit=10.0), at=now - 99))])
    end = delta(0, of=facts(at=now - 99, limit=10.0), at=now, ended="client_delete")

    (answer,) = await store.apply([flush(process, end)])

    assert (answer.ended, answer.after_end, answer.expired, answer.created) == (True, True, None, False)
    (reported,) = await store.claim_held(["abc"], time.time())
    assert (reported.reason, reported.tool_call_count) == ("expired", 3)
    reported.outcome = "worked"
    await store.ack_ends([reported])
    assert (await loaded(store)).outcome == "worked"
    assert await store.claim_expired(now + 10_000, 10) == []


async def test_a_second_end_changes_nothing(store: SessionStore, process: ProducerId, now: float) -> None:
    await store.apply([flush(process, delta(1, of=facts(at=now - 9), at=now - 9, ended="client_delete"))])
    before = await loaded(store)

    (answer,) = await store.apply([flush(process, delta(0, of=facts(at=now - 9), at=now, ended="replaced"))])

    assert (answer.ended, answer.after_end) == (False, True)
    assert await loaded(store) == before
    assert [end.reason for end in await store.claim_held(["abc"], time.time())] == ["client_delete"]


async def test_the_first_visitor_of_a_session_stands(store: SessionStore, process: ProducerId, now: float) -> None:
    for visitor in (None, ANN, BOB):
        await store.apply([flush(process, delta(1, of=facts(at=now - 99, limit=10.0, visitor=visitor), at=now - 99))])

    (end,) = await store.claim_expired(now, 10)

    assert (end.facts.visitor, (await loaded(store)).model_extra) == (ANN, {})


async def test_a_session_of_one_call_goes_on_in_another_transport_session(
    store: SessionStore, process: ProducerId, now: float
) -> None:
    known = facts(at=now - 9, source="header", visitor=ANN)
    await store.apply([flush(process, delta(1, of=known, at=now - 9))])
    (closed,) = await store.apply([flush(process, delta(0, of=known, at=now - 8, ended="client_delete"))])
    before = await store.describe("abc")
    lasting = facts(at=now - 5, limit=1800.0, source="inferred", visitor=ANN, lasting=True)

    (answer,) = await store.apply([flush(ProducerId(), delta(1, of=lasting, at=now - 5, first=1))])
    # What the first process has still to write of the transport session, its end too.
    (late,) = await store.apply([flush(process, delta(0, of=known, at=now - 4, requests=1, ended="client_delete"))])

    assert (closed.ended, closed.brief) == (True, True)
    assert (before.exists, before.ended, before.may_go_on, before.live) == (True, True, True, None)
    assert (answer.after_end, answer.created, answer.total_calls) == (False, False, 2)
    assert (late.after_end, late.ended) == (False, False)
    assert await store.claim_held(["abc"], time.time()) == []
    state = await loaded(store)
    assert (state.ended, state.source, state.tool_call_count, state.request_count) == (None, "inferred", 2, 3)
    assert await store.active() == 1
    described = await store.describe("abc")
    assert described.live is not None
    assert (described.live.lasting, described.live.limit, described.may_go_on) == (True, 1800.0, True)
    assert await store.claim_expired(now + 1700, 10) == []
    (end,) = await store.claim_expired(now + 1800, 10)
    assert (end.reason, end.tool_call_count, end.facts.source) == ("expired", 2, "inferred")


@pytest.mark.parametrize("how", ["two calls", "no visitor", "reported", "replaced"])
async def test_only_a_session_of_one_call_goes_on_after_its_end(
    store: SessionStore, process: ProducerId, now: float, how: str
) -> None:
    known = facts(at=now - 9, source="header", visitor=None if how == "no visitor" else ANN)
    await store.apply([flush(process, delta(1 + (how == "two calls"), of=known, at=now - 9))])
    reason: EndReason = "replaced" if how == "replaced" else "client_delete"
    (closed,) = await store.apply([flush(process, delta(0, of=known, at=now - 8, ended=reason))])
    if how == "reported":
        await store.ack_ends(await store.claim_held(["abc"], time.time()))
    lasting = facts(at=now - 9, limit=1800.0, source="inferred", visitor=ANN, lasting=True)

    may_go_on = (await store.describe("abc")).may_go_on
    (answer,) = await store.apply([flush(ProducerId(), delta(1, of=lasting, at=now - 5))])

    assert closed.brief is (how == "reported")
    assert (may_go_on, answer.after_end) == (False, True)


async def test_a_lasting_session_begins_again_after_its_gap(
    store: SessionStore, process: ProducerId, now: float
) -> None:
    lasting = facts(at=now - 99, limit=10.0, source="inferred", visitor=ANN, lasting=True)
    await store.apply([flush(process, delta(1, of=lasting, at=now - 99))])

    (answer,) = await store.apply([flush(process, delta(1, of=lasting, at=now))])

    assert answer.expired is not None
    assert (answer.created, answer.total_calls) == (True, 1)


async def test_a_value_can_be_replaced(store: SessionStore) -> None:
    await store.get_or_set("calls:1", "first", 60.0)
    await store.set_value("calls:1", "second", 60.0)
    assert await store.get("calls:1") == "second"


async def test_visits_without_a_call_are_remembered_until_a_tool_is_called(store: SessionStore, now: float) -> None:
    def end(at: float, calls: int, visitor: str | None) -> EndedSession:
        return EndedSession(facts(at=at, visitor=visitor), "expired", at, calls, 0, 0)

    answers = await store.visits([end(now, 0, ANN), end(now + 1, 0, BOB), end(now + 2, 0, ANN), end(now, 0, None)])
    assert answers == [[now], [now + 1], [now, now + 2], []]
    for number in range(20):
        (kept,) = await store.visits([end(now + number, 0, BOB)])
    assert kept == [now + number for number in range(10, 20)]
    assert await store.visits([end(now, 3, ANN), end(now + 3, 0, ANN)]) == [[], [now + 3]]
    assert await store.visits([]) == []


async def test_a_call_in_a_session_that_lives_forgets_visits_without_one(
    store: SessionStore, process: ProducerId, now: float
) -> None:
    looked = EndedSession(facts("looked", now, visitor=ANN), "expired", now, 0, 0, 0)
    await store.visits([looked, replace(looked, facts=facts("looked", now, visitor=BOB))])

    await store.apply([flush(process, delta(0, of=facts("silent", now, visitor=BOB), at=now, requests=1))])
    await store.apply([flush(process, delta(1, of=facts("calls", now, visitor=ANN), at=now))])

    found = await store.visits([replace(looked, facts=facts("again", now + 60, visitor=who)) for who in (ANN, BOB)])
    assert [len(starts) for starts in found] == [1, 2]


async def test_callers_of_a_day_are_counted_once(store: SessionStore) -> None:
    assert await store.callers("2026-11-30", []) == 0
    assert await store.callers("2026-11-30", ["ann", "bob"]) == 2
    assert await store.callers("2026-11-30", ["bob", "cid"]) == 3
    assert await store.callers("2026-12-01", ["bob"]) == 1
    assert await store.active() == 0


async def test_calls_in_flight_are_taken_and_make_no_session(store: SessionStore, process: ProducerId) -> None:
    await put_in_flight(store, process, [OpenCall("export", 1.0, "abc", "shop-0")])
    await put_in_flight(store, process, [], again=True)

    assert (await store.load("abc"), await store.active()) == (None, 0)


def rounded(ended: EndedSession) -> EndedSession:
    """To milliseconds: the stores keep microseconds, which a float does not quite."""
    at_start = replace(ended.facts, created_at=round(ended.facts.created_at, 3))
    return replace(ended, facts=at_start, last_activity=round(ended.last_activity, 3))


async def test_what_was_in_flight_is_counted_and_does_not_reopen(store: SessionStore, process: ProducerId) -> None:
    now = time.time()
    known = facts(at=now - 60)
    await store.apply([flush(process, delta(1, of=known, at=now - 10))])
    await store.apply([flush(process, delta(0, of=known, at=now, ended="client_delete"))])

    late = (await store.apply([flush(ProducerId(), delta(2, of=known, at=now + 1))]))[0]

    state = await loaded(store)
    assert (late.after_end, late.created, late.total_calls) == (True, False, 3)
    assert (state.tool_call_count, len(state.tool_calls), state.ended is not None) == (3, 3, True)
    assert await store.active() == 0


async def test_another_session_may_begin_under_an_ended_id(store: SessionStore, process: ProducerId) -> None:
    now = time.time()
    await store.apply([flush(process, delta(5, of=facts(at=now - 60), at=now - 50, ended="client_delete"))])

    (begun,) = await store.apply([flush(process, delta(1, of=facts(at=now), at=now))])

    state = await loaded(store)
    assert (begun.created, begun.total_calls, begun.after_end) == (True, 1, False)
    assert (state.tool_call_count, state.ended, len(state.tool_calls)) == (1, None, 1)
    assert await store.active() == 1


async def test_the_mere_end_of_an_unknown_session_begins_none(store: SessionStore, process: ProducerId) -> None:
    (answer,) = await store.apply([flush(process, delta(0, at=time.time(), ended="client_delete"))])

    assert (answer.created, answer.ended, answer.after_end) == (False, False, True)
    assert await store.load("abc") is None
    assert await store.active() == 0


async def test_a_session_that_begins_and_ends_within_a_flush_is_both(store: SessionStore, process: ProducerId) -> None:
    (answer,) = await store.apply([flush(process, delta(2, at=time.time(), ended="client_delete"))])

    assert (answer.created, answer.ended) == (True, True)
    assert [end.tool_call_count for end in await store.claim_held(["abc"], time.time())] == [2]


async def test_a_session_expires_by_its_own_limit(store: SessionStore, process: ProducerId) -> None:
    now = time.time()
    await store.apply(
        [
            flush(process, delta(1, of=facts("short", now, 60.0), at=now)),
            flush(process, delta(1, of=facts("long", now, 7200.0), at=now)),
        ]
    )
    assert await store.claim_expired(now + 59, 10) == []

    (ended,) = await store.claim_expired(now + 61, 10)

    assert (ended.session_id, ended.reason, ended.tool_call_count) == ("short", "expired", 1)
    assert ended.last_activity == pytest.approx(now, abs=1e-3)
    assert await store.claim_expired(now + 61, 10) == []
    await store.ack_ends([ended])
    assert await store.claim_expired(now + 200, 10) == []
    state = await loaded(store, "short")
    assert state.ended is not None
    assert (state.ended.reason, state.ended.at) == ("expired", state.last_activity)
    assert await store.active() == 1


async def test_activity_moves_the_deadline(store: SessionStore, process: ProducerId) -> None:
    now = time.time()
    await store.apply([flush(process, delta(1, of=facts(at=now, limit=60.0), at=now))])
    await store.apply([flush(process, delta(1, of=facts(at=now, limit=60.0), at=now + 50))])

    assert await store.claim_expired(now + 61, 10) == []
    assert [ended.session_id for ended in await store.claim_expired(now + 111, 10)] == ["abc"]


async def test_activity_after_the_deadline_ends_the_session_and_begins_another(
    store: SessionStore, process: ProducerId
) -> None:
    now = time.time()
    await store.apply([flush(process, delta(3, of=facts(at=now - 200, limit=60.0), at=now - 100))])
    after = flush(process, delta(1, of=facts(at=now - 200, limit=60.0), at=now))

    (answer,) = await store.apply([after])

    assert answer.expired is not None
    assert (answer.expired.tool_call_count, answer.expired.reason) == (3, "expired")
    assert (answer.created, answer.total_calls, answer.ended) == (True, 1, False)
    state = await loaded(store)
    assert state.created_at is not None
    assert state.created_at.timestamp() == pytest.approx(now, abs=1e-3)
    assert state.tool_call_count == 1
    assert await store.claim_expired(now + 30, 10) == []
    assert (await store.apply([after]))[0].duplicate


async def test_a_long_wait_for_the_store_is_no_gap(store: SessionStore, process: ProducerId) -> None:
    now = time.time()
    await store.apply([flush(process, delta(1, of=facts(at=now - 200, limit=60.0), at=now - 100))])
    waited = delta(5, of=facts(at=now - 200, limit=60.0), at=now)
    waited.first_activity = now - 90

    (answer,) = await store.apply([flush(process, waited)])

    assert (answer.expired, answer.created, answer.total_calls) == (None, False, 6)


async def test_what_was_late_is_late_when_it_is_sent_again(store: SessionStore, process: ProducerId) -> None:
    now = time.time()
    await store.apply([flush(process, delta(1, of=facts(at=now - 9), at=now - 9, ended="client_delete"))])
    after = flush(process, delta(2, of=facts(at=now - 9), at=now - 10))

    answers = [answer for _ in range(2) for answer in await store.apply([after])]

    assert [(answer.after_end, answer.duplicate, answer.refused) for answer in answers] == [
        (True, False, None),
        (True, True, None),
    ]
    assert (await loaded(store)).tool_call_count == 3


async def test_late_activity_of_an_expired_session_does_not_reopen_it(store: SessionStore, process: ProducerId) -> None:
    now = time.time()
    known = facts(at=now - 200, limit=60.0)
    await store.apply([flush(process, delta(1, of=known, at=now - 100))])
    await store.ack_ends(await store.claim_expired(now, 10))

    (answer,) = await store.apply([flush(process, delta(1, of=known, at=now - 50))])

    assert (answer.after_end, answer.created, answer.total_calls) == (True, False, 2)


async def test_flush_in_flight_at_expiry_does_not_hold_back_the_next_session(
    store: SessionStore, process: ProducerId
) -> None:
    now = time.time()
    known = facts(at=now - 200, limit=60.0)
    await store.apply([flush(process, delta(1, of=known, at=now - 150))])
    await store.ack_ends(await store.claim_expired(now, 10))
    long = delta(1, of=known, at=now - 50)
    long.first_activity = now - 140

    (late,) = await store.apply([flush(process, long)])
    (begun,) = await store.apply([flush(process, delta(1, of=known, at=now - 49))])

    assert (late.after_end, late.created, late.total_calls) == (True, False, 2)
    assert (begun.after_end, begun.created, begun.total_calls) == (False, True, 1)
    assert (await loaded(store)).created_at.timestamp() == pytest.approx(now - 49, abs=1e-3)  # pyright: ignore[reportOptionalMemberAccess]


async def test_saving_replaces_the_head_and_keeps_what_others_counted(store: SessionStore, process: ProducerId) -> None:
    now = time.time()
    await store.apply([flush(process, delta(2, of=facts(at=now, client_name="client"), at=now))])
    state = await loaded(store)
    await store.apply([flush(ProducerId(), delta(3, of=facts(at=now), at=now))])

    state.attributes = {"plan": "pro", "deep": {"list": [1, None, "x\n"]}}
    state.user_agent = "mine"
    state.client_name = None
    answer = await store.save(SessionState.model_validate({**state.model_dump(), "extra": {"a": []}}))

    saved = await loaded(store)
    assert not answer.created
    assert saved.attributes == {"plan": "pro", "deep": {"list": [1, None, "x\n"]}}
    assert saved.model_extra == {"extra": {"a": []}}
    assert (saved.user_agent, saved.client_name) == ("mine", "client")
    assert (saved.tool_call_count, len(saved.tool_calls)) == (5, 5)

    saved.attributes = {}
    await store.save(saved)
    await store.apply([flush(process, delta(1, of=facts(at=now), at=now))])

    assert (await loaded(store)).attributes == {}
    assert (await loaded(store)).tool_call_count == 6


async def test_saving_an_unknown_document_begins_its_session(store: SessionStore, process: ProducerId) -> None:
    now = time.time()
    given = SessionState(
        session_id="abc",
        created_at=cast(Any, round(now - 10, 6)),
        tool_calls=[ToolCall(tool_name="add", request_id=0, started_at=cast(Any, now), duration=1.5)],
        tool_call_count=8,
        request_count=9,
        context_bytes=7,
        catalogue_bytes=3,
        attributes={"a": 1},
    )

    answer = await store.save(given)
    (flushed,) = await store.apply([flush(process, delta(1, of=facts(at=now), at=now))])

    state = await loaded(store)
    assert answer.created
    assert (flushed.created, flushed.total_calls) == (False, 9)
    assert (state.tool_call_count, state.request_count, len(state.tool_calls)) == (9, 10, 2)
    assert (state.context_bytes, state.catalogue_bytes) == (107, 13)
    assert state.created_at == given.created_at
    assert state.attributes == {"a": 1}
    assert await store.active() == 1


async def test_only_a_new_document_leaves_one_that_is_there_alone(store: SessionStore, process: ProducerId) -> None:
    empty = SessionState(session_id="abc", user_agent="empty")
    assert (await store.save(empty, only_new=True)).created
    await store.save(SessionState(session_id="abc", user_agent="mine", attributes={"cart": [1]}))

    answer = await store.save(empty, only_new=True)

    state = await loaded(store)
    assert (answer.created, answer.refused) == (False, None)
    assert (state.attributes, state.user_agent) == ({"cart": [1]}, "mine")

    await store.delete("abc")
    assert (await store.save(empty, only_new=True)).created


async def test_deleting_leaves_nothing_and_nothing_brings_it_back(store: SessionStore, process: ProducerId) -> None:
    now = time.time()
    await store.apply([flush(process, delta(2, of=facts(at=now), at=now))])

    assert await store.delete("abc") is True
    assert await store.load("abc") is None
    (late,) = await store.apply([flush(process, delta(1, of=facts(at=now), at=now))])
    assert (late.after_end, late.created, late.refused) == (True, False, "ended")
    (nothing,) = await store.apply([flush(process, delta(0, of=facts(at=now), at=now, requests=1))])
    assert (nothing.after_end, nothing.refused) == (True, None)
    assert await store.load("abc") is None
    assert await store.active() == 0
    assert await store.claim_expired(now + 10_000, 10) == []
    assert await store.delete("abc") is False


async def test_activity_after_a_delete_begins_another_session(store: SessionStore, process: ProducerId) -> None:
    now = time.time() - 20
    known = facts(at=now)
    await store.apply([flush(process, delta(2, of=known, at=now))])
    await store.delete("abc")

    (begun,) = await store.apply([flush(process, delta(1, of=known, at=now + 30))])

    assert (begun.created, begun.after_end, begun.total_calls) == (True, False, 1)
    assert (await loaded(store)).tool_call_count == 1


async def test_flush_in_flight_keeps_the_limit_of_an_expired_session(store: SessionStore, process: ProducerId) -> None:
    now = time.time()
    await store.apply([flush(process, delta(1, of=facts(at=now - 300, limit=60.0), at=now - 300))])
    await store.ack_ends(await store.claim_expired(now, 10))

    (late,) = await store.apply([flush(process, delta(1, of=facts(at=now - 300, limit=3600.0), at=now - 290))])
    (begun,) = await store.apply([flush(process, delta(1, of=facts(at=now - 300, limit=60.0), at=now))])

    assert (late.after_end, begun.after_end, begun.created) == (True, False, True)


async def test_a_deleted_session_can_be_saved_again(store: SessionStore, process: ProducerId) -> None:
    await store.apply([flush(process, delta(2, at=time.time()))])
    await store.delete("abc")

    assert (await store.save(SessionState(session_id="abc"))).created
    assert (await loaded(store)).tool_call_count == 0


async def test_describe_distinguishes_live_ended_and_unknown_sessions(store: SessionStore, process: ProducerId) -> None:
    now = time.time()
    known = facts("live", round(now - 9, 6), 1800.0, client_name='"c\n', user_agent="ü", source="header")
    await store.apply(
        [
            flush(process, delta(1, of=known, at=now)),
            flush(process, delta(1, of=facts("ended", now), at=now, ended="client_delete")),
            flush(process, delta(1, of=facts("over", now - 100, 50.0), at=now - 60)),
        ]
    )

    live = await store.describe("live")

    assert (live.exists, live.ended, live.successor) == (True, False, None)
    assert live.facts == SessionFacts(
        "live", round(now - 9, 6), 1800.0, user_agent="ü", client_name='"c\n', source="header"
    )
    for session_id, ended in (("ended", True), ("over", True), ("unknown", False)):
        described = await store.describe(session_id)
        assert (described.exists, described.ended, described.facts) == (False, ended, None)


async def test_the_user_of_a_session_is_in_no_document(store: SessionStore, process: ProducerId) -> None:
    now = round(time.time(), 6)
    await store.apply([flush(process, delta(1, of=facts("live", now, principal=ANN), at=now))])

    described, state = await store.describe("live"), await store.load("live")

    assert described.facts is not None
    assert described.principal == described.facts.principal == ANN
    assert described.has_tool_calls
    assert state is not None
    assert "aaaa" not in state.model_dump_json()


@pytest.mark.parametrize("stranger", [BOB, None], ids=["another user", "nobody"])
async def test_what_comes_under_another_users_session_changes_nothing(
    store: SessionStore, process: ProducerId, stranger: str | None
) -> None:
    now = time.time()
    anns = facts(at=now, limit=60.0, principal=ANN, client_name="hers", source="header")
    await store.apply([flush(process, delta(2, of=anns, at=now))])
    before = await loaded(store)
    bobs = facts(at=now - 50, limit=7200.0, principal=stranger, client_name="his", client_version="9")
    tries = [
        delta(3, of=bobs, at=now + 50, errors=2),
        delta(0, of=bobs, at=now + 50, ended="client_delete"),
        delta(0, of=bobs, at=now + 50, ended="server_closed"),
        delta(0, of=bobs, at=now + 50, ended="replaced"),
        delta(1, of=facts(at=now + 50, principal=stranger, opened=False), at=now + 50, ended="client_delete"),
        delta(1, of=facts(at=now + 300, principal=stranger), at=now + 300),
    ]

    for each in tries:
        sent = flush(process, each)
        for _ in range(2):
            (answer,) = await store.apply([sent])
            assert answer.owner == ANN
            assert (answer.created, answer.duplicate, answer.after_end, answer.ended) == (False, False, False, False)
            assert (answer.retry, answer.refused, answer.expired) == (None, None, None)

    assert await loaded(store) == before
    assert await store.active() == 1
    (ended,) = await store.claim_expired(now + 61, 10)
    assert (ended.tool_call_count, ended.error_count, ended.facts.client_name) == (2, 0, "hers")


async def test_another_user_does_not_restore_the_deadline_of_an_ended_session(
    store: SessionStore, process: ProducerId
) -> None:
    now = time.time()
    await store.apply([flush(process, delta(1, of=facts(at=now, principal=ANN), at=now, ended="client_delete"))])

    await store.ack_ends(await store.claim_held(["abc"], now))

    (answer,) = await store.apply([flush(process, delta(1, of=facts(at=now, principal=BOB), at=now + 1))])

    assert answer.owner == ANN
    assert await store.active() == 0
    assert await store.claim_expired(now + 7200, 10) == []


async def test_a_session_that_began_without_a_user_stays_nobodys(store: SessionStore, process: ProducerId) -> None:
    now = time.time()
    for user in (None, ANN, BOB, None):
        (answer,) = await store.apply([flush(process, delta(1, of=facts(at=now, principal=user), at=now))])
        assert answer.owner is None

    assert (await store.describe("abc")).principal is None
    assert (await loaded(store)).tool_call_count == 4


@pytest.mark.parametrize("whose", [ANN, None], ids=["a user's", "nobody's"])
@pytest.mark.parametrize("first", [BOB, None], ids=["after another user", "after nobody"])
async def test_a_handshake_written_late_still_decides_the_user_of_its_session(
    store: SessionStore, process: ProducerId, first: str | None, whose: str | None
) -> None:
    now = time.time()
    other = ProducerId()
    earlier = facts(at=now, principal=first)
    await store.apply([flush(other, delta(1, of=earlier, at=now))])
    opened = facts(at=now, principal=whose, opened=True)

    (answer,) = await store.apply([flush(process, delta(0, of=opened, at=now, requests=1))])
    later = [
        (await store.apply([flush(other, delta(1, of=facts(at=now, principal=user, opened=user == BOB), at=now))]))[0]
        for user in (BOB, None)
    ]

    assert answer.owner is None
    assert (await store.describe("abc")).principal == whose
    assert [answer.owner for answer in later] == [whose, whose]


async def test_a_session_of_the_users_api_is_that_of_its_first_message(
    store: SessionStore, process: ProducerId
) -> None:
    now = time.time()
    await store.save(SessionState(session_id="abc"))

    answers = [
        (await store.apply([flush(process, delta(1, of=facts(at=now, principal=user), at=now))]))[0]
        for user in (ANN, BOB)
    ]

    assert [answer.owner for answer in answers] == [None, ANN]
    assert (await loaded(store)).tool_call_count == 1


async def test_only_its_own_user_goes_on_with_a_session(store: SessionStore, process: ProducerId) -> None:
    now = time.time()
    await store.apply([flush(process, delta(1, of=facts("old", now, principal=ANN), at=now, ended="client_delete"))])

    assert await store.get_or_set_successor("old", "bobs", BOB) == "bobs"
    assert await store.get_or_set_successor("old", "nobodys") == "nobodys"
    bobs = facts("bobs", now, principal=BOB, previous_id="old")
    assert (await store.apply([flush(process, delta(1, of=bobs, at=now))]))[0].agreed_successor is None
    assert (await store.describe("old")).successor is None
    assert await store.get_or_set_successor("old", "anns", ANN) == "anns"
    assert await store.get_or_set_successor("old", "bobs", BOB) == "anns"
    assert (await store.apply([flush(process, delta(1, of=bobs, at=now))]))[0].agreed_successor == "anns"


@pytest.mark.parametrize("how", ["client_delete", "expired", "deleted"])
async def test_an_id_stays_its_users_while_the_store_remembers_the_session(
    store: SessionStore, process: ProducerId, how: str
) -> None:
    now = round(time.time(), 6)
    former = delta(1, of=facts("again", now - 20, 1.0 if how == "expired" else 60.0, principal=ANN), at=now - 15)
    await store.apply([flush(process, former)])
    if how == "client_delete":
        end = delta(0, of=former.facts, at=now - 15, ended="client_delete")
        await store.apply([flush(process, end)])
    elif how == "deleted":
        await store.delete("again")
    else:
        await store.claim_expired(now, 10)
    later = now + 60

    assert (await store.describe("again")).principal == ANN
    answers = [
        (await store.apply([flush(process, delta(1, of=facts("again", later, principal=user), at=later))]))[0]
        for user in (BOB, None, ANN, BOB)
    ]

    assert [answer.owner for answer in answers] == [ANN, ANN, None, ANN]
    assert answers[2].created
    assert (await loaded(store, "again")).tool_call_count == 1


async def test_the_next_session_under_a_free_id_binds_it_to_its_user(store: SessionStore, process: ProducerId) -> None:
    now = round(time.time(), 6)
    await store.apply([flush(process, delta(1, of=facts("again", now - 20), at=now - 15, ended="client_delete"))])
    await store.apply([flush(process, delta(0, of=facts("again", now, principal=ANN), at=now, requests=1))])

    described = await store.describe("again")

    assert (described.principal, described.has_tool_calls) == (ANN, False)


async def test_the_first_candidate_is_agreed(store: SessionStore) -> None:
    assert await store.get_or_set("client:1", "first", 60.0) == "first"
    assert await store.get_or_set("client:1", "second", 60.0) == "first"
    assert await store.get_or_set("client:2", "second", 60.0) == "second"
    assert await store.get_or_set("for good", "key", 0) == "key"
    assert await store.get_or_set("for good", "other", 0) == "key"


async def test_what_was_agreed_can_be_asked_for_without_agreeing(store: SessionStore) -> None:
    assert await store.get("client:1") is None
    await store.get_or_set("client:1", "first", 60.0)
    assert await store.get("client:1") == "first"


async def test_a_catalogue_is_new_once_to_all(store: SessionStore) -> None:
    assert await meet(store, "a", "first") == []
    assert await meet(store, "b", "sec\nond ä") == ["first"]
    assert await meet(store, "c", "third") == ["sec\nond ä", "first"]
    for digest in "abcba":
        assert await meet(store, digest, "again") == []


async def test_the_catalogues_that_were_listed_last_are_known(store: SessionStore) -> None:
    for number in range(CATALOGUES + 5):
        await meet(store, str(number), str(number))

    assert await meet(store, "new", "new") == [str(number) for number in range(CATALOGUES + 4, 5, -1)]
    assert await meet(store, "7", "7") == []
    assert len(await meet(store, "0", "0")) == CATALOGUES - 1


async def test_an_id_has_one_successor(store: SessionStore) -> None:
    assert await store.get_or_set_successor("old", "new") == "new"
    assert await store.get_or_set_successor("old", "newer") == "new"
    assert (await store.describe("old")).successor == "new"


async def test_a_flush_keeps_alive_what_was_agreed_about_its_session(store: SessionStore, process: ProducerId) -> None:
    now = time.time()
    change = delta(1, of=facts("new", now, previous_id="old"), at=now)
    change.touch_key = ("client:1", 60.0)
    await store.apply([flush(process, change)])

    assert await store.get_or_set("client:1", "other", 60.0) == "new"
    assert await store.get_or_set_successor("old", "other") == "new"


async def test_the_later_of_two_sessions_for_one_client_learns_the_agreed_one(
    store: SessionStore, process: ProducerId
) -> None:
    now = time.time()
    first, second = (delta(1, of=facts(name, now, previous_id="old"), at=now) for name in ("first", "second"))
    first.touch_key = second.touch_key = ("client:1", 60.0)

    (stands,) = await store.apply([flush(process, first)])
    (loses,) = await store.apply([flush(process, second)])

    assert (stands.agreed_session, stands.agreed_successor) == (None, None)
    assert (loses.agreed_session, loses.agreed_successor, loses.created, loses.total_calls) == (
        "first",
        "first",
        True,
        1,
    )
    assert await store.get("client:1") == "first"


async def test_what_was_agreed_is_kept_alive_by_its_own_session_alone(store: SessionStore, process: ProducerId) -> None:
    now = time.time()
    first, second = (delta(1, of=facts(name, now), at=now) for name in ("first", "second"))
    first.touch_key, second.touch_key = ("client:1", 0.1), ("client:1", 60.0)
    await store.apply([flush(process, first)])
    await store.apply([flush(process, second)])
    await anyio.sleep(0.2)

    assert await store.get("client:1") is None


async def test_a_flush_prolongs_what_was_agreed_about_its_session(store: SessionStore, process: ProducerId) -> None:
    now = time.time()
    await store.get_or_set("client:1", "abc", 1.0)
    change = delta(1, of=facts(at=now), at=now)
    change.touch_key = ("client:1", 60.0)

    await store.apply([flush(process, change)])
    await anyio.sleep(1.1)

    assert await store.get("client:1") == "abc"


async def test_hostile_text_stays_text(store: SessionStore, process: ProducerId) -> None:
    now = time.time()
    nasty = 'a"],"last_activity":"\\\n\r\t\x00\x7f\u2028\ud800</script>{}%s' + "x" * 5000
    known = facts(at=now, user_agent=nasty, client_name=nasty, conversation_id=nasty, source="header")
    change = delta(1, of=known, at=now)
    change.calls = [
        call(0, now, error_type=nasty, arguments_digest=nasty, arguments={nasty: [nasty, float("nan")]}, result=nasty)
    ]
    change.calls[0].tool_name = nasty
    change.calls[0].request_id = nasty
    await store.apply([flush(process, change)])
    await store.apply([flush(process, delta(1, of=facts(at=now, source=nasty), at=now))])

    state = await loaded(store)

    expected = nasty.replace("\ud800", "?")
    assert state.user_agent == expected[:1024]
    assert state.client_name == expected[:64]
    assert state.tool_calls[0].tool_name == expected[:1024]
    assert state.tool_calls[0].arguments == {expected: [expected, None]}
    assert state.tool_calls[0].result == expected
    assert state.tool_call_count == 2


async def test_an_empty_batch_is_nothing(store: SessionStore) -> None:
    assert await store.apply([]) == []
    await store.ack_ends([])
