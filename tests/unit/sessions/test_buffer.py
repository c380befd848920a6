"""What waits is merged, bounded, and never miscounted."""

from __future__ import annotations

import random
import threading

from otel_mcp.model.delta import SessionDelta
from otel_mcp.sessions.buffer import Coalescer
from tests.store.support import EPOCH, delta, facts, settings


def test_deltas_of_a_session_become_one() -> None:
    coalescer = Coalescer(settings())
    first = delta(2, of=facts(client_name="client"), at=EPOCH + 5, errors=1)
    second = delta(1, of=facts(at=EPOCH - 9, user_agent="agent"), at=EPOCH + 3, first=2, requests=4)
    second.touch_key = ("client:1", 60.0)
    third = delta(0, at=EPOCH + 4, ended="client_delete")

    for change in (first, second, third):
        coalescer.add(change)

    assert (len(coalescer), coalescer.calls) == (1, 3)
    (merged,) = coalescer.take(64)
    assert (merged.facts.client_name, merged.facts.user_agent, merged.facts.created_at) == (
        "client",
        "agent",
        EPOCH - 9,
    )
    assert (merged.first_activity, merged.last_activity) == (EPOCH + 3, EPOCH + 5)
    assert (merged.requests, merged.errors, merged.call_count) == (6, 1, 3)
    assert [call.request_id for call in merged.calls] == [0, 1, 2]
    assert (merged.ended, merged.touch_key) == ((EPOCH + 4, "client_delete"), ("client:1", 60.0))
    assert (len(coalescer), coalescer.calls) == (0, 0)


def test_the_facts_of_others_are_not_written_to() -> None:
    coalescer, known = Coalescer(settings()), facts()
    coalescer.add(delta(1, of=known))
    coalescer.add(delta(1, of=facts(user_agent="agent")))
    assert known.user_agent is None


def test_a_long_call_is_activity_from_its_start() -> None:
    coalescer = Coalescer(settings())
    change = delta(1, at=EPOCH + 100)
    change.calls[0].started_at = EPOCH
    coalescer.add(change)
    assert coalescer.take(1)[0].first_activity == EPOCH


def test_the_oldest_wait_is_taken_first_and_busy_sessions_stay() -> None:
    coalescer = Coalescer(settings())
    for number in range(5):
        coalescer.add(delta(1, of=facts(f"s{number}")))

    taken = coalescer.take(2, {"s0", "s2"})

    assert [change.facts.session_id for change in taken] == ["s1", "s3"]
    assert [change.facts.session_id for change in coalescer.take(9)] == ["s0", "s2", "s4"]


def test_what_is_taken_together_is_bounded_by_its_records() -> None:
    waiting = Coalescer(settings())
    for name, calls in (("a", 3), ("b", 0), ("c", 4), ("d", 1)):
        waiting.add(delta(calls, of=facts(name)))

    taken = [[one.facts.session_id for one in waiting.take(9, records=5)] for _ in range(3)]

    assert taken == [["a", "b", "c"], ["d"], []]


def test_it_says_when_writing_is_worth_while() -> None:
    coalescer = Coalescer(settings(flush_calls=10))
    assert not any(coalescer.add(delta(1, of=facts(f"s{number}"))) for number in range(100))
    assert not coalescer.add(delta(9, of=facts("many")))
    assert coalescer.add(delta(1, of=facts("many")))
    assert coalescer.add(delta(0, of=facts("over"), ended="client_delete"))
    assert [coalescer.add(delta(1, of=facts(f"t{number}"))) for number in range(50)] == [False] * 49 + [True]


def test_a_session_keeps_its_newest_calls() -> None:
    coalescer = Coalescer(settings(max_tool_calls=4))
    for number in range(100):
        coalescer.add(delta(1, first=number))

    (change,) = coalescer.take(1)

    assert change.call_count == 100
    kept = [call.request_id for call in change.calls]
    assert 4 <= len(kept) <= 8
    assert kept == list(range(100))[-len(kept) :]


def test_when_memory_runs_out_the_oldest_records_go_and_are_still_counted() -> None:
    coalescer = Coalescer(settings(max_pending_calls=100, max_tool_calls=1000))
    for number in range(250):
        coalescer.add(delta(1, of=facts(f"s{number % 10}"), at=EPOCH + number, first=number))

    taken = coalescer.take(64)

    kept = sorted(int(str(call.request_id)) for change in taken for call in change.calls)
    assert 75 <= len(kept) <= 100
    assert kept == list(range(250))[-len(kept) :]
    assert sum(change.call_count for change in taken) == 250
    assert coalescer.take_dropped() == 0


def test_when_content_takes_too_much_memory_the_oldest_goes_and_the_records_stay() -> None:
    waiting = Coalescer(settings())
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


def test_what_is_taken_together_is_bounded_by_its_content() -> None:
    waiting = Coalescer(settings())
    for number in range(4):
        one = delta(1, of=facts(f"s{number}"))
        one.calls[0].arguments = "x" * 500_000
        waiting.add(one)

    assert [len(waiting.take(9, records=200)) for _ in range(3)] == [2, 2, 0]


def test_when_too_many_sessions_wait_the_oldest_is_dropped_and_counted() -> None:
    coalescer = Coalescer(settings(max_sessions=3))
    for number in range(5):
        coalescer.add(delta(number + 1, of=facts(f"s{number}")))

    assert [change.facts.session_id for change in coalescer.take(9)] == ["s2", "s3", "s4"]
    assert (coalescer.take_dropped(), coalescer.take_dropped()) == (1 + 2, 0)


def test_threads_lose_nothing() -> None:
    coalescer = Coalescer(settings(max_pending_calls=50, max_sessions=20, max_tool_calls=5))
    taken: list[SessionDelta] = []
    running = threading.Event()

    def submit(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(3000):
            coalescer.add(delta(1, of=facts(f"s{chance.randrange(40)}")))

    def take() -> None:
        while not running.is_set():
            taken.extend(coalescer.take(7))

    taker = threading.Thread(target=take)
    taker.start()
    threads = [threading.Thread(target=submit, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    running.set()
    taker.join()
    taken += coalescer.take(1000)

    assert sum(change.call_count for change in taken) + coalescer.take_dropped() == 9000
    assert (coalescer.calls, len(coalescer)) == (0, 0)


def test_what_two_users_did_under_one_id_is_written_apart() -> None:
    coalescer = Coalescer(settings())
    anns, bobs = facts(principal="ann"), facts(principal="bob")

    for each in (delta(2, of=bobs, ended="client_delete"), delta(1, of=anns), delta(3, of=bobs), delta(1, of=anns)):
        coalescer.add(each)
    turns = [coalescer.take(10) for _ in range(3)]

    assert [[(each.facts.principal, each.call_count) for each in turn] for turn in turns] == [
        [("bob", 5)],
        [("ann", 2)],
        [],
    ]
    assert coalescer.calls == len(coalescer) == 0
