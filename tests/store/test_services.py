"""Several services on one Redis without a prefix: none touches the session of another, whatever id it is given."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from otel_mcp import MCPMiddleware
from otel_mcp.model.state import SessionState
from otel_mcp.runtime import Runtime
from otel_mcp.settings import load
from otel_mcp.store.base import ProducerId
from otel_mcp.store.redis.store import RedisStore
from tests.support.answers import Server as App
from tests.support.asgi import post
from tests.support.messages import call, legacy_headers
from tests.support.stores import Server, delta, facts, flush, settings

pytestmark = pytest.mark.anyio


@pytest.fixture
async def ours(server: Server, raw: Any) -> AsyncIterator[RedisStore]:
    store = RedisStore(settings(server.patient_url))
    yield store
    await store.aclose()


@pytest.fixture
async def theirs(server: Server, raw: Any) -> AsyncIterator[RedisStore]:
    """The store of another service."""
    store = RedisStore(settings(server.patient_url, service_name="other"))
    yield store
    await store.aclose()


def session(raw: Any) -> tuple[Any, Any]:
    """All that Redis has of a session of ours."""
    return raw.get("mcp_session:abc"), raw.hgetall("{mcp_session:abc}:stats")


async def test_a_session_of_another_service_is_over_for_this_one(ours: RedisStore, theirs: RedisStore) -> None:
    now = time.time()
    await ours.apply([flush(ProducerId(), delta(1, of=facts(at=now), at=now))])

    known = await theirs.describe("abc")

    assert (known.exists, known.ended, known.successor, known.facts) == (False, True, None, None)
    assert await theirs.get_or_set_successor("abc", "next-of-theirs") == "next-of-theirs"
    assert (await ours.describe("abc")).exists
    assert (await ours.describe("abc")).successor is None


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize("late", [0.0, 4000.0])
async def test_a_flush_of_another_service_leaves_a_session_as_it_is(
    ended: bool, late: float, ours: RedisStore, theirs: RedisStore, raw: Any
) -> None:
    """It may have been given the id while the store was away, and could not ask."""
    now = time.time() - late
    await ours.apply([flush(ProducerId(), delta(1, of=facts(at=now), at=now))])
    if ended:
        await ours.apply([flush(ProducerId(), delta(of=facts(at=now), at=now, ended="client_delete"))])
    before = session(raw)
    later = now + late

    (answer,) = await theirs.apply([flush(ProducerId(), delta(2, of=facts(at=later), at=later, ended="client_delete"))])

    assert answer.refused == "foreign"
    assert session(raw) == before
    assert await theirs.claim_expired(time.time(), 10) == []
    assert raw.zscore("otel_mcp:other:deadlines", "abc") is None
    assert await theirs.claim_expired(time.time() + 10_000, 10) == []


async def test_a_document_of_another_service_is_not_saved_over_or_removed(
    ours: RedisStore, theirs: RedisStore, raw: Any
) -> None:
    now = time.time()
    await ours.apply([flush(ProducerId(), delta(1, of=facts(at=now), at=now))])
    before = session(raw)

    saved = await theirs.save(SessionState(session_id="abc", attributes={"a": 1}))
    assert saved.refused == "foreign"
    assert not await theirs.delete("abc")
    assert session(raw) == before

    raw.delete("{mcp_session:abc}:stats")
    (answer,) = await theirs.apply([flush(ProducerId(), delta(1, of=facts(at=now), at=now))])
    assert answer.refused == "foreign"
    assert not await theirs.delete("abc")
    assert raw.get("mcp_session:abc") == before[0]


async def test_under_its_own_service_a_session_goes_on_with_other_facts(ours: RedisStore, raw: Any) -> None:
    now = time.time()
    for name in ("one", "two"):
        of = replace(facts(at=now), client_name=name)
        (answer,) = await ours.apply([flush(ProducerId(), delta(1, of=of, at=now))])
        assert answer.refused is None

    document = json.loads(raw.get("mcp_session:abc"))
    assert (document["client_name"], document["service"], document["tool_call_count"]) == ("two", "svc", 2)


async def test_a_client_using_its_id_on_another_server_has_another_session(server: Server, raw: Any) -> None:
    runtimes = [Runtime(load(service_name=name, redis_url=server.patient_url)) for name in ("shop", "bank", "bank")]
    ids: list[str | None] = []
    for runtime in runtimes:
        reply = await post(MCPMiddleware(App(), runtime), call(), legacy_headers("my-own-id"))
        ids.append(reply.session_id)
        await runtime.shut_down()
        runtime.disable()

    shop, bank, replica = ids
    assert shop == "my-own-id"
    assert bank == replica != shop
    services = {key: json.loads(raw.get(key))["service"] for key in raw.keys("mcp_session:*")}
    assert services == {b"mcp_session:my-own-id": "shop", f"mcp_session:{bank}".encode(): "bank"}


async def test_who_may_write_to_redis_does_not_write_our_answers(server: Server, raw: Any) -> None:
    """The id of a successor goes out in a header."""
    raw.set("mcp_session:old", "{}")
    raw.hset("{mcp_session:old}:stats", mapping={"t": "1 x", "i": "1", "x": "x expired 1"})
    raw.set("{mcp_session:old}:next:shop", "a\r\nset-cookie: b")
    runtime = Runtime(load(service_name="shop", redis_url=server.patient_url))

    reply = await post(MCPMiddleware(App(), runtime), call(), legacy_headers("old"))
    await runtime.shut_down()
    runtime.disable()

    assert reply.status == 200
    assert reply.session_id is not None
    assert reply.session_id.replace(".", "").replace("_", "").replace("-", "").isalnum()
