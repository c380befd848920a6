"""Who waits for a store that stops answering, and for how many questions: told by gates, not by clocks."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any, cast

import pytest
from opentelemetry.instrumentation.utils import is_instrumentation_enabled, suppress_instrumentation

from otel_mcp.sessions.lookups import Lookups
from otel_mcp.store.base import StoreDown
from otel_mcp.store.redis.client import RedisLink, Run
from tests.store.support import Listener

pytestmark = pytest.mark.anyio


class Questions:
    """Are answered while the gate is open."""

    def __init__(self, lookups: Lookups) -> None:
        self._lookups = lookups
        self.gate = asyncio.Event()
        self.gate.set()
        self.sent: list[str] = []
        self.answered = 0
        self.down: StoreDown | None = None

    async def ask(self, key: str) -> str | None:
        """The key as the answer, or nothing where there was none in time."""

        async def question() -> str:
            self.sent.append(key)
            await self.gate.wait()
            if self.down is not None:
                raise self.down
            self.answered += 1
            return key

        return await self._lookups.ask("recall", key, question, None)

    async def all_answered(self) -> None:
        while self.answered < len(self.sent):  # noqa: ASYNC110 - each question is a task of its own
            await asyncio.sleep(0)


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
def failures() -> list[StoreDown]:
    return []


@pytest.fixture
def lookups(listener: Listener, failures: list[StoreDown]) -> Lookups:
    """Of a store that has been fast."""
    lookups = Lookups(listener, failures.append)
    for _ in range(32):
        lookups.pace.note(0.001)
    return lookups


@pytest.fixture
async def questions(lookups: Lookups) -> Questions:
    return Questions(lookups)


async def test_a_fast_store_that_stops_is_given_up_together_and_before_it_counts_as_away(
    lookups: Lookups, questions: Questions, listener: Listener
) -> None:
    questions.gate.clear()

    answers = await asyncio.gather(*(questions.ask(f"s{number}") for number in range(6)))

    assert answers == [None] * 6
    assert listener.operations == {("recall", "timeout"): 6}
    assert (lookups.is_silent, lookups.breaker.is_open) == (True, False)
    # Nobody else asks.
    assert await questions.ask("another") is None
    assert "another" not in questions.sent


async def test_after_a_pause_that_was_shorter_than_patience_questions_are_answered_at_once(
    lookups: Lookups, questions: Questions
) -> None:
    questions.gate.clear()
    assert await questions.ask("one") is None
    assert not lookups.breaker.is_open

    questions.gate.set()
    await questions.all_answered()
    await asyncio.sleep(0)

    assert not lookups.is_silent
    assert await questions.ask("other") == "other"


async def test_a_question_that_fails_ends_the_waiting(
    lookups: Lookups, questions: Questions, failures: list[StoreDown]
) -> None:
    questions.down = StoreDown("ConnectionError")

    assert await questions.ask("one") is None

    assert failures == [questions.down]
    assert not lookups.is_silent


async def test_while_answers_come_nobody_gives_up_who_waits_for_a_turn(questions: Questions) -> None:
    answers = await asyncio.gather(*(questions.ask(f"s{number}") for number in range(50)))

    assert answers == [f"s{number}" for number in range(50)]


async def test_what_is_under_way_when_the_connections_go_is_given_up_without_a_word(
    lookups: Lookups, questions: Questions, failures: list[StoreDown]
) -> None:
    questions.gate.clear()
    before = asyncio.all_tasks()
    asking = [asyncio.create_task(questions.ask(key)) for key in ("a", "b")]
    await asyncio.sleep(0.001)

    await lookups.aclose()
    await lookups.aclose()

    assert await asyncio.gather(*asking) == [None, None]
    assert (failures, questions.answered, asyncio.all_tasks()) == ([], 0, before)
    # The next request begins again.
    questions.gate.set()
    assert await questions.ask("c") == "c"


# What a question is asked in.

REQUEST: ContextVar[str] = ContextVar("request", default="nobody's")


async def test_a_question_is_traced_by_nobody_and_knows_nothing_of_the_request(lookups: Lookups) -> None:
    REQUEST.set("somebody's")

    async def question() -> tuple[bool, str]:
        first = REQUEST.get()
        REQUEST.set("asked")
        return is_instrumentation_enabled(), first

    answers = [await lookups.ask("recall", key, question, None) for key in ("a", "b")]

    assert answers == [(False, "nobody's")] * 2
    assert (is_instrumentation_enabled(), REQUEST.get()) == (True, "somebody's")


async def test_what_may_tell_events_is_done_as_ever(lookups: Lookups) -> None:
    async def question() -> bool:
        return is_instrumentation_enabled()

    assert await lookups.ask("publish", "a", question, None, brief=False) is True


async def test_two_loops_may_ask_at_the_same_time(lookups: Lookups) -> None:
    """One is in the middle of beginning a question while the other one asks."""
    begun, other_done = threading.Event(), threading.Event()

    def slow(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        begun.set()
        other_done.wait(10)
        return asyncio.Task(coroutine, loop=loop, **options)

    async def question() -> str:
        return "answer"

    async def ask_slowly() -> str | None:
        asyncio.get_running_loop().set_task_factory(slow)
        try:
            return await lookups.ask("recall", "a", question, None)
        finally:
            asyncio.get_running_loop().set_task_factory(None)

    with ThreadPoolExecutor(1) as threads:
        slowly = threads.submit(asyncio.run, ask_slowly())
        await asyncio.to_thread(begun.wait, 10)
        try:
            assert await lookups.ask("recall", "b", question, None) == "answer"
        finally:
            other_done.set()
        assert await asyncio.wrap_future(slowly) == "answer"


async def test_what_the_store_is_asked_is_traced_by_nobody_whoever_asks() -> None:
    class Client:
        async def execute_command(self, *_: object) -> bool:
            return is_instrumentation_enabled()

    link = RedisLink(lambda: cast("Any", Client()))

    assert await link.run(Run("GET", ("a",))) is False
    assert is_instrumentation_enabled()
    with suppress_instrumentation():
        assert await link.run(Run("GET", ("a",))) is False
        assert not is_instrumentation_enabled()
