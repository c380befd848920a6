"""What a transport session does before its first tool call, until it is known whose it is."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from otel_mcp.model.delta import SessionDelta
from otel_mcp.sessions.handshakes import Handshakes
from tests.store.support import delta, facts

pytestmark = pytest.mark.anyio

LONG = 60.0
"""Seconds that no test takes."""


class Taken:
    """What reaches the store, as session and requests."""

    def __init__(self, delay: float = LONG) -> None:
        self.deltas: list[SessionDelta] = []
        self.handshakes = Handshakes(self.deltas.append, delay)

    @property
    def told(self) -> list[tuple[str, int]]:
        return [(each.facts.session_id, each.requests) for each in self.deltas]

    def happens(self, session_id: str = "new", calls: int = 0, **values: Any) -> None:
        self.handshakes.submit(delta(calls, of=facts(session_id), **values))


async def test_a_handshake_waits_and_others_do_not() -> None:
    taken = Taken()
    taken.handshakes.begin("new")

    taken.happens(requests=1)
    taken.happens("other", requests=2)

    assert taken.told == [("other", 2)]


@pytest.mark.parametrize("values", [{"calls": 1}, {"ended": "client_delete"}], ids=["a tool call", "the end"])
async def test_what_makes_it_a_session_of_its_own_comes_after_what_was_before(values: dict[str, Any]) -> None:
    taken = Taken()
    taken.handshakes.begin("new")
    taken.happens(requests=1)
    taken.happens(requests=0)

    taken.happens(**values)
    taken.happens(requests=7)

    assert [session_id for session_id, _ in taken.told] == ["new"] * 4
    assert [requests for _, requests in taken.told[:2]] == [1, 0]
    assert taken.told[3] == ("new", 7)


async def test_a_handshake_that_nothing_follows_is_a_session_when_its_time_is_over() -> None:
    taken = Taken(delay=0.01)
    taken.handshakes.begin("new")
    taken.happens(requests=1)
    assert taken.told == []

    with anyio.fail_after(5):
        while not taken.told:  # noqa: ASYNC110 (the time is what is waited for)
            await anyio.sleep(0.005)

    assert taken.told == [("new", 1)]


async def test_what_belongs_to_a_conversation_is_counted_with_it() -> None:
    taken = Taken()
    taken.handshakes.begin("new")
    taken.happens(requests=1)

    assert taken.handshakes.hand_over("new", facts("c_chat"))
    assert not taken.handshakes.hand_over("new", facts("c_chat"))

    assert taken.told == [("c_chat", 1)]


async def test_nothing_is_kept_back_when_the_process_ends() -> None:
    taken = Taken()
    for session_id in ("a", "b"):
        taken.handshakes.begin(session_id)
        taken.happens(session_id, requests=1)

    taken.handshakes.release_all()

    assert sorted(taken.told) == [("a", 1), ("b", 1)]


async def test_a_flood_of_handshakes_is_kept_back_up_to_a_bound() -> None:
    taken = Taken()
    for number in range(3000):
        taken.handshakes.begin(f"new-{number}")
        taken.happens(f"new-{number}", requests=1)

    assert len(taken.told) == 2000


def test_without_a_running_loop_nothing_is_kept_back() -> None:
    taken = Taken()
    taken.handshakes.begin("new")

    taken.happens(requests=1)

    assert taken.told == [("new", 1)]
