"""Rounds of one logical call in every store: one entry, whichever process writes which round first."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import permutations
from typing import Any

import anyio
import pytest

from otel_mcp.model.delta import CallRecord, SessionDelta
from otel_mcp.store.base import ProducerId, SessionStore
from otel_mcp.store.redis import client
from tests.store.conftest import Replicas
from tests.store.test_contract import loaded, store
from tests.support.stores import call, delta, facts, flush

pytestmark = pytest.mark.anyio
__all__ = ["store"]


def rounds_of(number: int, at: float) -> list[CallRecord]:
    """Three rounds of one logical call, 10 s apart, each of 0.25 s."""
    keys = [f"{number:08x}{each:08x}" for each in (1, 2)]
    return [
        call(number, at, waiting=keys[0]),
        call(number + 1, at + 10, answers=keys[0], waiting=keys[1], result_bytes=40),
        call(number + 2, at + 20, answers=keys[1], result_bytes=50, failure="tool", error_type="tool_error"),
    ]


def with_rounds(*made: CallRecord, at: float) -> SessionDelta:
    last = at + 30
    return replace(delta(len(made), of=facts(at=at), at=last), calls=list(made), has_rounds=True, first_activity=at)


@pytest.mark.parametrize("order", list(permutations(range(3))))
async def test_rounds_become_one_call_in_any_order_of_their_flushes(
    store: SessionStore, order: tuple[int, ...]
) -> None:
    at = float(int(time.time())) - 40
    made = rounds_of(1, at)

    answers = [
        answer for each in order for answer in await store.apply([flush(ProducerId(), with_rounds(made[each], at=at))])
    ]

    state = await loaded(store)
    (whole,) = state.tool_calls
    assert (whole.rounds, whole.request_id, whole.started_at.timestamp()) == (3, 1, at)
    assert (whole.duration, whole.input_wait) == (pytest.approx(0.75), pytest.approx(19.5))
    assert (whole.result_bytes, whole.failure, whole.waiting, whole.answers) == (50, "tool", None, None)
    assert (state.tool_call_count, state.request_count) == (1, 3)
    assert [tool for answer in answers for tool, _ in answer.waits] == ["add", "add"]
    assert sum(seconds for answer in answers for _, seconds in answer.waits) == pytest.approx(19.5)


async def test_rounds_that_are_written_at_once_become_one_call_each(
    backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "TIMEOUT", 20.0)  # Sixty connections begin at once.
    replicas, at = Replicas(backend), float(int(time.time())) - 90
    whole = [rounds_of(100 * number + 1, at) for number in range(20)]
    waits: list[tuple[str, float]] = []

    async def write(made: CallRecord) -> None:
        writer, process = replicas.store(at)
        (answer,) = await writer.apply([flush(process, with_rounds(made, at=at))])
        while answer.retry is not None:
            (answer,) = await writer.apply([flush(process, with_rounds(made, at=at))])
        waits.extend(answer.waits)

    async with anyio.create_task_group() as group:
        for made in sorted((each for rounds in whole for each in rounds), key=lambda made: hash(made.waiting)):
            group.start_soon(write, made)

    state = await loaded(replicas.store(at)[0])
    found = {(each.request_id, each.rounds, each.answers, each.waiting) for each in state.tool_calls}
    assert found == {(rounds[0].request_id, 3, None, None) for rounds in whole}
    assert (state.tool_call_count, len(waits)) == (20, 40)
    await replicas.close()


async def test_rounds_in_one_flush_stand_among_other_calls(store: SessionStore, process: ProducerId) -> None:
    at = float(int(time.time())) - 40
    first, second = rounds_of(1, at), rounds_of(7, at + 1)
    others = [call(20, at + 3), call(21, at + 4)]
    mixed = [others[0], first[0], second[0], first[1], second[1], others[1], first[2]]

    (answer,) = await store.apply([flush(process, with_rounds(*mixed, at=at))])

    state = await loaded(store)
    found = [(each.request_id, each.rounds, each.waiting) for each in state.tool_calls]
    assert found == [(20, 1, None), (7, 2, second[1].waiting), (21, 1, None), (1, 3, None)]
    assert (answer.total_calls, state.tool_call_count, len(answer.waits)) == (4, 4, 3)


async def test_an_answer_that_nobody_waits_for_is_a_call_of_its_own(store: SessionStore, process: ProducerId) -> None:
    at = float(int(time.time())) - 40
    asks, brings, _ = rounds_of(1, at)
    again = replace(brings, request_id=9, started_at=at + 12, waiting=None)

    await store.apply([flush(process, with_rounds(asks, brings, again, at=at))])

    state = await loaded(store)
    assert [(each.request_id, each.rounds, each.answers) for each in state.tool_calls] == [
        (1, 2, None), (9, 1, brings.answers),
    ]  # fmt: skip
    assert state.tool_call_count == 2


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
async def test_input_that_came_before_it_was_asked_for_is_a_call(store: SessionStore, order: tuple[int, int]) -> None:
    at = float(int(time.time())) - 40
    asks, brings, _ = rounds_of(1, at + 10)
    forged = replace(brings, request_id=9, started_at=at + 2, waiting=None)

    for each in order:
        await store.apply([flush(ProducerId(), with_rounds((asks, forged)[each], at=at))])
    await store.apply([flush(ProducerId(), with_rounds(replace(brings, waiting=None), at=at))])

    state = await loaded(store)
    found = {(each.request_id, each.rounds, each.answers) for each in state.tool_calls}
    assert found == {(9, 1, brings.answers), (1, 2, None)}
    assert state.tool_call_count == 2


async def test_rounds_with_content_are_joined_by_their_last_fields(store: SessionStore, process: ProducerId) -> None:
    at = float(int(time.time())) - 40
    asks, brings, _ = rounds_of(1, at)
    tricky = {"a": '"},"waiting":"', "rounds": 7, "input_wait": 1.0, "line": "\n", "empty": [], "answers": "x"}
    asks.arguments = brings.arguments = tricky
    brings.result = {"content": [], "duration": 3}
    asks.tool_name = brings.tool_name = '"started_at":"x","duration":7'

    await store.apply([flush(process, with_rounds(asks, at=at))])
    await store.apply([flush(process, with_rounds(brings, at=at))])

    (whole,) = (await loaded(store)).tool_calls
    assert (whole.rounds, whole.arguments, whole.result) == (2, tricky, brings.result)
    assert (whole.tool_name, whole.duration, whole.input_wait) == (asks.tool_name, 0.5, pytest.approx(9.75))


async def test_a_flush_of_rounds_that_is_sent_again_is_answered_alike(store: SessionStore, process: ProducerId) -> None:
    at = float(int(time.time())) - 40
    asks, brings, last = rounds_of(1, at)
    sent = flush(process, with_rounds(brings, at=at))

    await store.apply([flush(ProducerId(), with_rounds(asks, at=at))])
    (answer,) = await store.apply([sent])
    await store.apply([flush(ProducerId(), with_rounds(last, at=at))])
    (again,) = await store.apply([sent])

    assert (list(answer.waits), answer.duplicate) == ([("add", pytest.approx(9.75))], False)
    assert (list(again.waits), again.duplicate, again.total_calls) == (list(answer.waits), True, 1)
    assert [each.rounds for each in (await loaded(store)).tool_calls] == [3]


@pytest.mark.parametrize("is_reported", [False, True])
async def test_input_for_a_session_that_has_expired_is_a_call_of_the_next(
    store: SessionStore, process: ProducerId, *, is_reported: bool
) -> None:
    now = float(int(time.time()))
    asks, brings, last = rounds_of(1, now - 4000)
    brings.started_at, last.started_at = now - 30, now - 20
    before, after = (
        replace(with_rounds(*made, at=at), facts=facts(at=at, limit=600.0))
        for made, at in (((asks,), now - 4000), ((brings, last), now - 30))
    )

    await store.apply([flush(process, before)])
    ends = await store.claim_expired(now, 10) if is_reported else []
    await store.ack_ends(ends)
    (answer,) = await store.apply([flush(process, after)])

    ends += [answer.expired] if answer.expired is not None else []
    assert [(end.tool_call_count, [each.rounds for each in end.calls]) for end in ends] == [(1, [1])]
    assert (answer.created, answer.total_calls, list(answer.waits)) == (True, 1, [("add", pytest.approx(9.75))])
    state = await loaded(store)
    assert [(each.request_id, each.rounds, each.answers) for each in state.tool_calls] == [(2, 2, brings.answers)]
    assert (state.tool_call_count, state.request_count) == (1, 2)


async def test_many_rounds_of_one_flush_are_joined(store: SessionStore, process: ProducerId) -> None:
    at = float(int(time.time())) - 40
    whole = [rounds_of(100 * number + 1, at) for number in range(20)]

    for made in range(3):
        (answer,) = await store.apply([flush(process, with_rounds(*(rounds[made] for rounds in whole), at=at))])
        assert (len(answer.waits), answer.total_calls) == (20 if made else 0, 20)

    state = await loaded(store)
    assert [(each.request_id, each.rounds) for each in state.tool_calls] == [
        (rounds[0].request_id, 3) for rounds in whole
    ]
