"""Who waits for a store that stops answering, and for how long."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any, cast

import pytest
from opentelemetry.instrumentation.utils import is_instrumentation_enabled, suppress_instrumentation

from otel_mcp.sessions.health import PATIENCE, StoreHealth
from otel_mcp.sessions.lookups import Lookups
from otel_mcp.store.base import StoreDown
from otel_mcp.store.redis.client import RedisLink, Run
from tests.support.stores import Listener

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


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
def health(listener: Listener) -> StoreHealth:
    return StoreHealth(listener)


@pytest.fixture
def lookups(listener: Listener, health: StoreHealth) -> Lookups:
    return Lookups(health)


@pytest.fixture
async def questions(lookups: Lookups) -> Questions:
    return Questions(lookups)


async def test_requests_under_way_wait_for_one_patience_and_no_other_begins_to(
    questions: Questions, health: StoreHealth, listener: Listener
) -> None:
    questions.gate.clear()
    began = time.monotonic()

    answers = await asyncio.gather(*(questions.ask(f"s{number}") for number in range(6)))

    assert answers == [None] * 6
    assert time.monotonic() - began >= PATIENCE
    assert listener.operations == {("recall", "timeout"): 6}
    assert (health.is_slow, health.is_away) == (True, False)
    assert await questions.ask("another") is None
    assert "another" not in questions.sent


async def test_an_answer_within_patience_does_not_make_the_store_slow(
    questions: Questions, health: StoreHealth
) -> None:
    questions.gate.clear()
    asking = asyncio.create_task(questions.ask("one"))
    await asyncio.sleep(0.02)
    questions.gate.set()

    assert await asking == "one"
    assert not health.is_slow


@pytest.mark.parametrize(("waited", "slow"), [(0.0, True), (0.04, False), (0.06, False)])
async def test_a_request_waits_for_the_rest_of_its_patience(
    waited: float, slow: bool, lookups: Lookups, health: StoreHealth
) -> None:
    asker: Any = SimpleNamespace(waited=waited)

    assert await lookups.ask("recall", "a", asyncio.Event().wait, None, asker) is None

    assert max(waited, PATIENCE) <= asker.waited <= max(waited, PATIENCE + 0.011)
    assert health.is_slow is slow
    await lookups.aclose()


def test_a_late_loop_gives_an_answer_several_turns() -> None:
    """Each turn takes longer than all patience; the answer takes two of them."""

    class Leaping(asyncio.SelectorEventLoop):
        ahead = 0.0

        def time(self) -> float:
            return super().time() + self.ahead

    async def work(loop: Leaping) -> None:
        health = StoreHealth(Listener())

        async def question() -> str:
            for _ in range(2):
                await asyncio.sleep(0)
                loop.ahead += 2 * PATIENCE
            return "answer"

        assert await Lookups(health).ask("recall", "a", question, None) == "answer"
        assert not health.is_slow

    loop = Leaping()
    try:
        loop.run_until_complete(work(loop))
    finally:
        loop.close()


async def test_a_question_that_fails_ends_the_waiting(questions: Questions, health: StoreHealth) -> None:
    questions.down = StoreDown("ConnectionError")

    assert await questions.ask("one") is None

    assert (health.is_away, health.is_slow) == (True, False)


async def test_questions_that_wait_for_a_turn_are_answered(questions: Questions) -> None:
    answers = await asyncio.gather(*(questions.ask(f"s{number}") for number in range(50)))

    assert answers == [f"s{number}" for number in range(50)]


async def test_questions_under_way_are_given_up_when_the_connections_go(
    lookups: Lookups, questions: Questions, health: StoreHealth
) -> None:
    questions.gate.clear()
    before = asyncio.all_tasks()
    asking = [asyncio.create_task(questions.ask(key)) for key in ("a", "b")]
    await asyncio.sleep(0.001)

    await lookups.aclose()
    await lookups.aclose()

    assert await asyncio.gather(*asking) == [None, None]
    assert (health.is_away, questions.answered, asyncio.all_tasks()) == (False, 0, before)
    # The next request begins again.
    questions.gate.set()
    assert await questions.ask("c") == "c"


# What a question is asked in.

REQUEST: ContextVar[str] = ContextVar("request", default="nobody's")


async def test_a_question_knows_nothing_of_the_request(lookups: Lookups) -> None:
    REQUEST.set("somebody's")

    async def question() -> str:
        first = REQUEST.get()
        REQUEST.set("asked")
        return first

    assert [await lookups.ask("recall", key, question, None) for key in ("a", "b")] == ["nobody's"] * 2
    assert REQUEST.get() == "somebody's"


async def test_two_loops_may_ask_at_the_same_time(lookups: Lookups) -> None:
    """One is in the middle of beginning a question while the other one asks."""
    begun, other_done = threading.Event(), threading.Event()

    def slow(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        begun.set()
        other_done.wait(60)
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


async def test_commands_to_the_store_are_never_traced() -> None:
    class Client:
        async def execute_command(self, *_: object) -> bool:
            return is_instrumentation_enabled()

    link = RedisLink(lambda: cast("Any", Client()))

    assert await link.run(Run("GET", ("a",))) is False
    assert is_instrumentation_enabled()
    with suppress_instrumentation():
        assert await link.run(Run("GET", ("a",))) is False
        assert not is_instrumentation_enabled()
