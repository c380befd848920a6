"""When a store counts as silent: told by the steps of a loop whose clock these tests move."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from otel_mcp.sessions.pulse import PATIENCE, Pace, Pulse, _first, _Waiting  # pyright: ignore[reportPrivateUsage]

pytestmark = pytest.mark.anyio

MS = 0.001


class Loop:
    """A loop in which time passes when it is told to, and which may be late."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.timers: list[tuple[float, Callable[..., object], tuple[Any, ...]]] = []

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> object:
        self.timers.append((self.now + delay, callback, args))
        return None

    def turn(self, late: float = 0.0) -> None:
        """Run what is due next, so many seconds late."""
        self.timers.sort(key=lambda timer: timer[0])
        due, callback, args = self.timers.pop(0)
        self.now = due + late
        callback(*args)

    def turns(self, count: int, late: float = 0.0) -> None:
        for _ in range(count):
            self.turn(late)


class Silences:
    """Counts how often a pulse has told of an outage."""

    count = 0

    def __call__(self) -> None:
        self.count += 1


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def silences() -> Silences:
    return Silences()


def paced(*seconds: float) -> Pace:
    pace = Pace()
    for taken in seconds:
        pace.note(taken)
    return pace


FAST = (1 * MS,) * 8


async def settle() -> None:
    """Let woken tasks go on."""
    for _ in range(5):
        await asyncio.sleep(0)


# How long an answer may take.


def test_patience_is_full_until_enough_answers_tell_how_fast_the_store_is() -> None:
    assert paced().limit == PATIENCE
    assert paced(*FAST[:-1]).limit == PATIENCE
    assert paced(*FAST).limit == 10 * MS


def test_one_slow_answer_makes_patient_until_it_is_long_ago() -> None:
    slow = paced(*FAST, 15 * MS)

    assert slow.limit == pytest.approx(30 * MS)
    for _ in range(31):
        slow.note(1 * MS)
    assert slow.limit == pytest.approx(30 * MS)
    slow.note(1 * MS)
    assert slow.limit == 10 * MS


def test_a_store_that_is_far_away_is_never_waited_for_longer() -> None:
    assert paced(*(200 * MS,) * 32).limit == PATIENCE


# What silence is.


def test_a_fast_store_that_says_nothing_is_silent_soon_and_gone_after_patience(loop: Loop, silences: Silences) -> None:
    pulse = Pulse(paced(*FAST), silences)
    pulse.sent(loop)

    loop.turns(3)
    assert not pulse.is_quiet
    loop.turn()
    assert (pulse.is_quiet, silences.count) == (True, 0)
    loop.turns(15)
    assert (pulse.is_quiet, silences.count) == (True, 0)
    loop.turn()
    # From here on it is the breaker that says so.
    assert (pulse.is_quiet, silences.count) == (False, 1)
    assert loop.timers == []


def test_a_store_nothing_is_known_of_has_all_patience(loop: Loop, silences: Silences) -> None:
    pulse = Pulse(paced(), silences)
    pulse.sent(loop)

    loop.turns(19)
    assert (pulse.is_quiet, silences.count) == (False, 0)
    loop.turn()
    assert silences.count == 1


def test_any_answer_shows_that_the_store_is_there(loop: Loop, silences: Silences) -> None:
    pulse = Pulse(paced(*FAST), silences)
    first, second = pulse.sent(loop), pulse.sent(loop)
    loop.turns(3)
    pulse.heard(first, 7.5 * MS)

    # The other one begins anew, and by that answer the store is known to be slower.
    loop.turns(6)
    assert not pulse.is_quiet
    loop.turn()
    assert pulse.is_quiet
    pulse.heard(second, 25 * MS)
    assert not pulse.is_quiet
    loop.turn()
    assert (loop.timers, silences.count) == ([], 0)


def test_a_late_answer_ends_the_silence(loop: Loop, silences: Silences) -> None:
    pulse = Pulse(paced(*FAST), silences)
    question = pulse.sent(loop)
    loop.turns(5)
    assert pulse.is_quiet

    pulse.heard(question, 13 * MS)

    assert not pulse.is_quiet


def test_a_question_that_fails_is_not_silence(loop: Loop, silences: Silences) -> None:
    pulse = Pulse(paced(*FAST), silences)
    one, other = pulse.sent(loop), pulse.sent(loop)
    loop.turns(4)

    pulse.failed(one)
    assert pulse.is_quiet
    pulse.failed(other)
    assert not pulse.is_quiet


def test_a_question_sent_in_the_middle_of_a_step_has_whole_ones(loop: Loop, silences: Silences) -> None:
    pulse = Pulse(paced(*FAST), silences)
    first = pulse.sent(loop)
    pulse.sent(loop)
    loop.turn()
    pulse.failed(first)

    loop.turns(3)
    assert not pulse.is_quiet
    loop.turn()
    assert pulse.is_quiet


# A loop that is late.


def test_after_a_pause_of_the_loop_the_answer_is_read_first(loop: Loop, silences: Silences) -> None:
    pulse = Pulse(paced(*FAST), silences)
    pulse.sent(loop)
    loop.turns(3)

    loop.turn(late=100 * MS)
    assert (pulse.is_quiet, silences.count) == (False, 0)
    loop.turn()
    assert pulse.is_quiet


def test_a_loop_that_is_always_late_gives_an_answer_several_turns(loop: Loop, silences: Silences) -> None:
    pulse = Pulse(paced(), silences)
    pulse.sent(loop)

    loop.turns(10, late=80 * MS)
    assert silences.count == 0
    loop.turns(2, late=80 * MS)
    assert silences.count == 1


# Those who wait.


async def test_all_who_wait_give_up_together_as_soon_as_the_store_is_silent(loop: Loop, silences: Silences) -> None:
    pulse = Pulse(paced(*FAST), silences)
    answer = asyncio.create_task(asyncio.Event().wait())
    pulse.sent(loop)
    waiting = [asyncio.create_task(pulse.wait(loop, answer)) for _ in range(5)]
    await settle()
    loop.turns(3)
    waiting.append(asyncio.create_task(pulse.wait(loop, answer)))
    await settle()
    assert not any(waiter.done() for waiter in waiting)

    loop.turn()
    await settle()

    assert all(waiter.done() for waiter in waiting)
    assert (answer.done(), silences.count) == (False, 0)
    # And nobody else begins to.
    await pulse.wait(loop, answer)
    answer.cancel()


async def test_silence_that_ends_in_the_same_turn_goes_on_waiting(loop: Loop, silences: Silences) -> None:
    pulse = Pulse(paced(*FAST), silences)
    gate = asyncio.Event()
    answer = asyncio.create_task(gate.wait())
    other = pulse.sent(loop)
    waiting = asyncio.create_task(pulse.wait(loop, answer))
    await settle()
    loop.turns(4)
    pulse.heard(other, 11 * MS)
    await settle()
    assert not waiting.done()

    gate.set()
    await waiting

    assert answer.result() is True


async def test_whoever_waits_for_a_turn_has_patience_too(loop: Loop, silences: Silences) -> None:
    pulse = Pulse(paced(*FAST), silences)
    answer = asyncio.create_task(asyncio.Event().wait())
    waiting = asyncio.create_task(pulse.wait(loop, answer))
    await settle()

    loop.turns(19)
    await settle()
    assert not waiting.done()
    loop.turn()
    assert silences.count == 1
    await waiting
    assert not answer.done()
    answer.cancel()


async def test_nobody_looks_while_nothing_is_under_way(loop: Loop, silences: Silences) -> None:
    pulse = Pulse(paced(*FAST), silences)
    question = pulse.sent(loop)
    pulse.heard(question, 1 * MS)
    loop.turn()
    assert loop.timers == []

    pulse.sent(loop)
    assert len(loop.timers) == 1


async def test_a_waiter_that_goes_away_leaves_nothing_behind(loop: Loop, silences: Silences) -> None:
    pulse = Pulse(paced(*FAST), silences)
    answer = asyncio.create_task(asyncio.Event().wait())
    waiting = asyncio.create_task(pulse.wait(loop, answer))
    await settle()
    waiting.cancel()
    await asyncio.wait({waiting})

    loop.turn()

    assert (waiting.cancelled(), loop.timers) == (True, [])
    answer.cancel()


async def test_where_looking_itself_fails_nobody_waits_for_ever(silences: Silences, monkeypatch: Any) -> None:
    def broken(*_: object) -> None:
        raise MemoryError

    loop = asyncio.get_running_loop()
    told: list[object] = []
    loop.set_exception_handler(lambda _, context: told.append(context["exception"]))
    monkeypatch.setattr(Pulse, "_count", broken)
    pulse = Pulse(paced(*FAST), silences)
    answer = asyncio.create_task(asyncio.Event().wait())

    await asyncio.wait_for(pulse.wait(loop, answer), 10)

    assert (answer.done(), len(told) > 1) == (False, True)
    answer.cancel()


async def test_whoever_is_woken_leaves_neither_a_timer_nor_a_callback(monkeypatch: Any) -> None:
    loop = asyncio.get_running_loop()
    timers: list[asyncio.TimerHandle] = []
    call_later = loop.call_later
    monkeypatch.setattr(loop, "call_later", lambda *given: timers.append(call_later(*given)) or timers[-1])
    answer = asyncio.create_task(asyncio.Event().wait())
    woken = loop.create_future()
    loop.call_soon(woken.set_result, None)

    assert await _first(answer, woken)

    assert [timer.cancelled() for timer in timers] == [True]
    assert not answer._callbacks  # type: ignore[attr-defined]  # pyright: ignore
    answer.cancel()


async def test_an_answer_and_a_wake_in_the_same_turn_are_no_error() -> None:
    loop = asyncio.get_running_loop()
    told: list[object] = []
    loop.set_exception_handler(lambda _, context: told.append(context))
    waiting, gate = _Waiting(0.0), asyncio.Event()
    waiting.woken = loop.create_future()
    answer = asyncio.create_task(gate.wait())
    first = asyncio.create_task(_first(answer, waiting.woken))
    await settle()

    gate.set()
    loop.call_soon(waiting.wake)

    assert await first
    await settle()
    assert told == []


async def test_what_comes_after_the_last_look_is_no_error(monkeypatch: Any) -> None:
    """The timer that lets nobody wait for ever is due in the turn in which somebody was woken."""
    loop = asyncio.get_running_loop()
    told: list[object] = []
    loop.set_exception_handler(lambda _, context: told.append(context))
    monkeypatch.setattr("otel_mcp.sessions.pulse._AT_MOST", 0.0)
    answer = asyncio.create_task(asyncio.Event().wait())
    woken = loop.create_future()
    loop.call_later(0, lambda: woken.done() or woken.set_result(None))

    assert await _first(answer, woken)

    await settle()
    assert told == []
    answer.cancel()


@dataclass
class Request:
    """One that has waited for other answers before."""

    waited: float = 0.0


async def test_a_request_that_has_waited_before_waits_for_the_rest_of_its_patience(
    loop: Loop, silences: Silences
) -> None:
    pulse = Pulse(paced(*(30 * MS,) * 8), silences)
    answer, request = asyncio.create_task(asyncio.Event().wait()), Request(31 * MS)
    pulse.sent(loop)
    waiting, other = (asyncio.create_task(pulse.wait(loop, answer, one)) for one in (request, Request()))
    await settle()

    loop.turns(7)  # The first one had begun before.
    await settle()
    assert not waiting.done()
    loop.turn()
    await settle()

    assert (waiting.done(), other.done(), silences.count) == (True, False, 0)
    assert request.waited == pytest.approx(48.5 * MS)
    assert not pulse.is_quiet
    answer.cancel()
    await other


async def test_what_is_answered_in_time_takes_of_a_requests_patience(loop: Loop, silences: Silences) -> None:
    pulse = Pulse(paced(*(30 * MS,) * 8), silences)
    request = Request()

    for number in (1, 2):
        gate = asyncio.Event()
        waiting = asyncio.create_task(pulse.wait(loop, asyncio.create_task(gate.wait()), request))
        await settle()
        loop.turns(8)
        gate.set()
        await waiting
        loop.turn()
        assert request.waited == pytest.approx(number * 20 * MS, abs=6 * MS)
