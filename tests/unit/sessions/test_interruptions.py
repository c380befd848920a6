"""Questions about refused ids wait while the store is away, and none is asked for ever."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import pytest

from otel_mcp.model.delta import SessionFacts
from otel_mcp.model.session import Interruption, Refusal, Return, within
from otel_mcp.sessions import interruptions
from otel_mcp.sessions.buffer import Buffer
from otel_mcp.sessions.health import StoreHealth
from otel_mcp.sessions.interruptions import Interruptions
from otel_mcp.store.base import StoreDown
from otel_mcp.store.memory import MemoryStore
from tests.support.stores import Listener, facts, settings

pytestmark = pytest.mark.anyio


class Store(MemoryStore):
    """A store that may be away, and that answers as it was told to."""

    def __init__(self) -> None:
        super().__init__(settings())
        self.fails: BaseException | None = None
        self.asked: list[str] = []
        self.returns: list[Return] = []

    async def cut(self, refusals: Sequence[Refusal], gone: Sequence[str] = ()) -> list[Interruption]:
        self.asked += [refusal.session_id for refusal in refusals]
        if self.fails is not None:
            raise self.fails
        return [Interruption(facts(each.session_id), each.at, "restart", has_tool_calls=False) for each in refusals]

    async def back(self, visitor: str, at: float, session_id: str) -> Return | None:
        self.asked.append(visitor)
        if self.fails is not None:
            raise self.fails
        return self.returns.pop() if self.returns else None


class Asking:
    """What is asked of a store, and what was reported."""

    def __init__(self) -> None:
        self.store, self.heard, self.buffer = Store(), Listener(), Buffer(settings())
        self.health = StoreHealth(self.heard)
        self.questions = Interruptions(settings(), self.store, self.buffer, self.heard, self.health)

    def refuse(self, session_id: str = "abc", user: str | None = None) -> bool:
        return self.questions.refused(Refusal(session_id, time.time(), user, served=False))

    def reported(self) -> list[str]:
        return [cut.facts.session_id for cut in self.heard.cuts]


@pytest.fixture
def asking() -> Asking:
    return Asking()


def begun(**known: Any) -> SessionFacts:
    return SessionFacts("new", time.time(), 60.0, opened=True, visitor="ann", **known)


async def test_a_client_that_repeats_itself_is_asked_about_once(asking: Asking) -> None:
    assert [asking.refuse() for _ in range(3)] == [True, False, False]
    await asking.questions.ask()

    assert asking.refuse() is False
    assert asking.refuse(user="ann") is True
    await asking.questions.ask()

    assert asking.store.asked == ["abc", "abc"]


async def test_what_was_seen_while_the_store_is_away_is_asked_later(asking: Asking) -> None:
    asking.refuse()
    asking.questions.began(begun())
    asking.store.fails = StoreDown("gone")
    await asking.questions.ask()
    assert (asking.health.is_away, asking.reported()) == (True, [])
    await asking.questions.ask()

    asking.store.fails = None
    asking.health.succeeded()
    await asking.questions.ask()

    assert asking.store.asked == ["abc", "abc", "ann"]
    assert asking.reported() == ["abc"]
    assert asking.questions.due == float("inf")


async def test_a_question_that_is_cancelled_is_asked_once_more(asking: Asking) -> None:
    asking.refuse()
    asking.store.fails = asyncio.CancelledError()
    with pytest.raises(asyncio.CancelledError):
        await asking.questions.ask()
    asking.store.fails = None

    await asking.questions.ask(everything=True)

    assert (asking.store.asked, asking.reported()) == (["abc", "abc"], ["abc"])


@pytest.mark.usefixtures("failures")
async def test_a_question_that_breaks_the_store_is_asked_once(asking: Asking) -> None:
    asking.refuse()
    asking.store.fails = ValueError("odd")

    await asking.questions.ask()
    asking.health.succeeded()
    await asking.questions.ask()

    assert asking.store.asked == ["abc"]
    assert not asking.questions.refusals


async def test_a_flood_of_ids_is_asked_about_in_parts(asking: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interruptions, "KEPT", 100)
    monkeypatch.setattr(interruptions, "MOST", 60)
    assert sum(asking.refuse(f"made-up-{number}") for number in range(1000)) == 100

    await asking.questions.ask()
    first = len(asking.store.asked)
    await asking.questions.ask()

    assert (first, len(asking.store.asked)) == (60, 100)
    assert asking.heard.dropped_calls == {"interruptions": 900}


async def test_a_client_that_is_back_continues_its_session(asking: Asking) -> None:
    old = facts("old", principal="user")
    asking.store.returns.append(Return(old, 70.0, ended=False))
    new = begun()
    asking.questions.began(new)

    await asking.questions.ask()

    assert asking.heard.backs == [("new", 70.0)]
    assert new.previous_id == "old"
    written = {delta.facts.session_id: delta.ended and delta.ended[1] for delta in asking.buffer.pending.values()}
    assert written == {"new": None, "old": "replaced"}


@pytest.mark.parametrize("known", [{"opened": False}, {"visitor": None}])
async def test_only_a_handshake_of_a_known_visitor_is_a_way_back(asking: Asking, known: dict[str, Any]) -> None:
    new = begun()
    for name, value in known.items():
        setattr(new, name, value)
    asking.questions.began(new)

    await asking.questions.ask()

    assert asking.store.asked == []


@pytest.mark.parametrize(
    ("seconds", "name"), [(0.1, "1m"), (60, "1m"), (60.1, "5m"), (300, "5m"), (301, "30m"), (1800, "30m")]
)
def test_how_soon_a_client_was_back_has_a_name(seconds: float, name: str) -> None:
    assert within(seconds) == name
