"""What waits is merged, bounded, and never miscounted."""

from __future__ import annotations

import random
import threading
from typing import Any

import pytest

from otel_mcp.model.delta import SessionDelta
from otel_mcp.sessions.buffer import Buffer
from tests.support.stores import EPOCH, delta, facts, settings


def test_deltas_of_a_session_become_one() -> None:
    buffer = Buffer(settings())
    first = delta(2, of=facts(client_name="client"), at=EPOCH + 5, errors=1)
    second = delta(1, of=facts(at=EPOCH - 9, user_agent="agent"), at=EPOCH + 3, first=2, requests=4)
    second.touch_key = ("client:1", 60.0)
    first.began, second.began = EPOCH + 2, EPOCH + 1
    third = delta(0, at=EPOCH + 4, ended="client_delete")

    for change in (first, second, third):
        buffer.add(change)

    assert (len(buffer.pending), buffer.calls) == (1, 3)
    (merged,) = buffer.take(64)
    assert (merged.facts.client_name, merged.facts.user_agent, merged.facts.created_at) == (
        "client",
        "agent",
        EPOCH - 9,
    )
    assert (merged.first_activity, merged.last_activity, merged.began) == (EPOCH + 3, EPOCH + 5, EPOCH + 2)
    assert (merged.requests, merged.errors, merged.call_count) == (6, 1, 3)
    assert [call.request_id for call in merged.calls] == [0, 1, 2]
    assert (merged.ended, merged.touch_key) == ((EPOCH + 4, "client_delete"), ("client:1", 60.0))
    assert (len(buffer.pending), buffer.calls) == (0, 0)


def test_the_facts_of_others_are_not_written_to() -> None:
    buffer, known = Buffer(settings()), facts()
    buffer.add(delta(1, of=known))
    buffer.add(delta(1, of=facts(user_agent="agent")))
    assert known.user_agent is None


def test_a_long_call_is_activity_from_its_start() -> None:
    buffer = Buffer(settings())
    change = delta(1, at=EPOCH + 100)
    change.calls[0].started_at = EPOCH
    buffer.add(change)
    assert buffer.take(1)[0].first_activity == EPOCH


def test_the_oldest_wait_is_taken_first_and_busy_sessions_stay() -> None:
    buffer = Buffer(settings())
    for number in range(5):
        buffer.add(delta(1, of=facts(f"s{number}")))

    taken = buffer.take(2, {"s0", "s2"})

    assert [change.facts.session_id for change in taken] == ["s1", "s3"]
    assert [change.facts.session_id for change in buffer.take(9)] == ["s0", "s2", "s4"]


def test_a_batch_is_bounded_by_its_records() -> None:
    waiting = Buffer(settings())
    for name, calls in (("a", 3), ("b", 0), ("c", 4), ("d", 1)):
        waiting.add(delta(calls, of=facts(name)))

    taken = [[one.facts.session_id for one in waiting.take(9, records=5)] for _ in range(3)]

    assert taken == [["a", "b", "c"], ["d"], []]


def test_it_says_when_writing_is_worth_while() -> None:
    buffer = Buffer(settings(flush_calls=10))
    assert not any(buffer.add(delta(1, of=facts(f"s{number}"))) for number in range(20))
    assert not buffer.add(delta(9, of=facts("many")))
    assert buffer.add(delta(1, of=facts("many")))
    assert buffer.add(delta(0, of=facts("over"), ended="client_delete"))
    assert [buffer.add(delta(1, of=facts(f"t{number}"))) for number in range(10)] == [False] * 9 + [True]


def test_a_session_keeps_its_newest_calls() -> None:
    buffer = Buffer(settings(max_tool_calls=4))
    for number in range(100):
        buffer.add(delta(1, first=number))

    (change,) = buffer.take(1)

    assert change.call_count == 100
    kept = [call.request_id for call in change.calls]
    assert 4 <= len(kept) <= 8
    assert kept == list(range(100))[-len(kept) :]


def test_when_memory_runs_out_the_oldest_records_go_and_are_still_counted() -> None:
    buffer = Buffer(settings(max_pending_calls=100, max_tool_calls=500))
    for number in range(250):
        buffer.add(delta(1, of=facts(f"s{number % 10}"), at=EPOCH + number, first=number))

    taken = buffer.take(64)

    kept = sorted(int(str(call.request_id)) for change in taken for call in change.calls)
    assert 75 <= len(kept) <= 100
    assert kept == list(range(250))[-len(kept) :]
    assert sum(change.call_count for change in taken) == 250
    assert buffer.take_dropped() == 0


def test_the_oldest_content_goes_first_and_records_stay() -> None:
    waiting = Buffer(settings())
    kept = {"text": "x" * 4_000_000}
    for number in range(10):
        one = delta(1, of=facts(f"s{number}"))
        one.calls[0].result = kept
        waiting.add(one)

    deltas = waiting.take(99)

    has_result = [one.calls[0].result is not None for one in deltas]
    assert [one.call_count for one in deltas] == [1] * 10
    assert has_result == sorted(has_result)
    assert 4_000_000 * sum(has_result) <= 32 * 1024 * 1024
    assert sum(has_result) >= 5


def test_a_batch_is_bounded_by_its_content() -> None:
    waiting = Buffer(settings())
    for number in range(4):
        one = delta(1, of=facts(f"s{number}"))
        one.calls[0].arguments = "x" * 500_000
        waiting.add(one)

    assert [len(waiting.take(9, records=200)) for _ in range(3)] == [2, 2, 0]


def test_when_too_many_sessions_wait_the_oldest_is_dropped_and_counted() -> None:
    buffer = Buffer(settings(max_sessions=3))
    for number in range(5):
        buffer.add(delta(number + 1, of=facts(f"s{number}")))

    assert [change.facts.session_id for change in buffer.take(9)] == ["s2", "s3", "s4"]
    assert (buffer.take_dropped(), buffer.take_dropped()) == (1 + 2, 0)


def test_threads_lose_nothing() -> None:
    buffer = Buffer(settings(max_pending_calls=50, max_sessions=20, max_tool_calls=5))
    taken: list[SessionDelta] = []
    running = threading.Event()

    def submit(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(3000):
            buffer.add(delta(1, of=facts(f"s{chance.randrange(40)}")))

    def take() -> None:
        while not running.is_set():
            taken.extend(buffer.take(7))

    taker = threading.Thread(target=take)
    taker.start()
    threads = [threading.Thread(target=submit, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    running.set()
    taker.join()
    taken += buffer.take(1000)

    assert sum(change.call_count for change in taken) + buffer.take_dropped() == 9000
    assert (buffer.calls, len(buffer.pending)) == (0, 0)


def test_calls_of_two_users_under_one_id_are_written_apart() -> None:
    buffer = Buffer(settings())
    anns, bobs = facts(principal="ann"), facts(principal="bob")

    for each in (delta(2, of=bobs, ended="client_delete"), delta(1, of=anns), delta(3, of=bobs), delta(1, of=anns)):
        buffer.add(each)
    turns = [buffer.take(10) for _ in range(3)]

    assert [[(each.facts.principal, each.call_count) for each in turn] for turn in turns] == [
        [("bob", 5)],
        [("ann", 2)],
        [],
    ]
    assert buffer.calls == len(buffer.pending) == 0


# What a transport session does before its first tool call is held, until it is known whose it is.


class Held:
    """A buffer whose clock stands until it is moved."""

    def __init__(self) -> None:
        self.now = 0.0
        self.buffer = Buffer(settings(), lambda: self.now)
        self.buffer.hold("new")

    def happens(self, session_id: str = "new", calls: int = 0, **values: Any) -> None:
        self.buffer.add(delta(calls, of=facts(session_id), **values))

    def taken(self) -> list[tuple[str, int]]:
        return [(each.facts.session_id, each.requests) for each in self.buffer.take(5000)]


def test_a_handshake_is_held_and_others_are_not() -> None:
    held = Held()

    held.happens(requests=1)
    held.happens("other", requests=2)

    assert (held.taken(), held.taken()) == ([("other", 2)], [])


@pytest.mark.parametrize("values", [{"calls": 1}, {"ended": "client_delete"}], ids=["a tool call", "the end"])
def test_a_call_or_an_end_makes_a_session_of_its_own(values: dict[str, Any]) -> None:
    held = Held()
    held.happens(requests=1)

    held.happens("new", **{"requests": 0, **values})

    assert held.taken() == [("new", 1)]


def test_a_handshake_that_nothing_follows_is_written_in_the_end() -> None:
    held = Held()
    held.happens(requests=1)
    held.now += held.buffer.hold_time - 0.001
    assert held.taken() == []

    held.now += 0.001

    assert held.taken() == [("new", 1)]
    assert not held.buffer.hand_over("new", facts("c_chat"))


def test_a_handshake_is_counted_with_its_conversation() -> None:
    held = Held()
    held.happens(requests=1)

    assert held.buffer.hand_over("new", facts("c_chat"))
    assert not held.buffer.hand_over("new", facts("c_chat"))

    assert held.taken() == [("c_chat", 1)]


def test_a_waiting_call_is_counted_with_the_session_that_goes_on() -> None:
    buffer, lasting = Buffer(settings()), facts("lasting", limit=60.0, source="inferred", lasting=True)
    buffer.hold("abc")
    buffer.add(delta(1, of=facts(source="header"), requests=2, ended="client_delete"))

    assert not buffer.hand_over("abc", lasting)
    assert buffer.hand_over("abc", lasting, called=True)
    buffer.add(delta(1, of=facts("lasting", source="header")))

    (counted,) = buffer.take(10)
    assert (counted.facts, counted.call_count, counted.requests) == (lasting, 2, 3)
    assert not buffer.hand_over("abc", lasting, called=True)


def test_nothing_is_held_when_the_process_ends() -> None:
    held = Held()
    held.buffer.hold("other")
    held.happens(requests=1)
    held.happens("other", requests=1)

    held.buffer.release()

    assert held.taken() == [("new", 1), ("other", 1)]


def test_handshakes_are_held_up_to_a_bound() -> None:
    held = Held()
    for number in range(2999):
        held.buffer.hold(f"new-{number}")
        held.happens(f"new-{number}", requests=1)
    assert len(held.taken()) == 2000

    held.now += held.buffer.hold_time
    held.buffer.hold("later")
    held.happens("later", requests=1)
    assert ("later", 1) not in held.taken()
