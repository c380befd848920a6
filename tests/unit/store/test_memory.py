"""Memory is bounded, and forgets as Redis does."""

from __future__ import annotations

import pytest

from otel_mcp.model.state import SessionState
from otel_mcp.sessions.tables import meet
from otel_mcp.store.base import ProducerId
from otel_mcp.store.memory import MemoryStore
from tests.support.stores import EPOCH, Clock, delta, facts, flush, settings

pytestmark = pytest.mark.anyio


async def test_memory_drops_the_oldest_session_and_reports_its_end() -> None:
    clock = Clock()
    store, process = MemoryStore(settings(max_sessions=3), clock=clock), ProducerId()
    for name in ("a", "b", "c", "a", "d"):
        await store.apply([flush(process, delta(1, of=facts(name), at=EPOCH))])

    assert len(store) == 3
    assert [await store.load(name) is not None for name in "abcd"] == [True, False, True, True]
    assert [(end.session_id, end.reason) for end in await store.claim_expired(EPOCH, 10)] == [("b", "expired")]


async def test_memory_forgets_as_redis_does() -> None:
    clock = Clock()
    store, process = MemoryStore(settings(session_ttl=60.0), clock=clock), ProducerId()
    await store.apply([flush(process, delta(1, of=facts(limit=60.0), at=EPOCH))])
    clock.now += 59
    assert (await store.describe("abc")).exists
    await store.apply([flush(process, delta(1, of=facts(limit=60.0), at=EPOCH + 59))])
    clock.now += 59
    assert await store.load("abc") is not None
    clock.now += 2
    assert await store.load("abc") is None
    assert not (await store.describe("abc")).exists
    (ended,) = await store.claim_expired(clock.now, 10)
    assert (ended.session_id, ended.tool_call_count) == ("abc", 2)
    clock.now += 601
    await store.claim_expired(clock.now, 10)
    assert len(store) == 0


async def test_agreements_end() -> None:
    clock = Clock()
    store = MemoryStore(settings(), clock=clock)
    assert await store.get_or_set("key", "one", 10.0) == "one"
    clock.now += 11
    assert await store.get_or_set("key", "other", 10.0) == "other"


async def test_a_catalogue_that_comes_back_is_new_after_a_day() -> None:
    clock = Clock()
    store = MemoryStore(settings(), clock=clock)
    for digest in "ab":
        await meet(store, digest, digest)
    clock.now += 86_300
    assert await meet(store, "b", "b") == []
    clock.now += 200
    assert await meet(store, "b", "b") == []
    clock.now += 1
    assert await meet(store, "a", "a") == ["b"]
    clock.now += 100_000
    assert await meet(store, "a", "a") == []  # Nobody listed another one since.


async def test_memory_of_agreements_is_bounded() -> None:
    store = MemoryStore(settings(max_sessions=5))
    for number in range(100):
        await store.get_or_set(f"key{number}", "value", 10.0)
    await store.save(SessionState(session_id="abc"))
    assert len(store._agreed) <= 10  # pyright: ignore[reportPrivateUsage]
