"""The small parts: the breaker, the text of documents, memory's bounds, clients from URLs."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from typing import Any, cast

import pytest

from otel_mcp.model.state import SessionState
from otel_mcp.sessions.health import StoreHealth
from otel_mcp.store import document as text
from otel_mcp.store.base import ProducerId, StoreDown
from otel_mcp.store.memory import MemoryStore
from otel_mcp.store.redis.client import TIMEOUT, connect
from tests.support.stores import EPOCH, Listener, call, delta, facts, flush, settings


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = EPOCH

    def __call__(self) -> float:
        return self.now


# The breaker.


def test_the_breaker_asks_later_each_time_up_to_its_longest_pause() -> None:
    clock = Clock()
    health = StoreHealth(Listener(), clock=clock)
    assert (health.is_away, health.wait) == (False, 0.0)

    for longest in (0.25, 0.5, 1.0, 2.0, 2.0, 2.0):
        health.failed(StoreDown("ConnectionError"))
        assert longest / 2 <= health.wait <= longest
        clock.now += health.wait
        assert (health.is_away, health.wait) == (True, 0.0)

    health.succeeded()
    health.succeeded()
    assert (health.is_away, health.recoveries) == (False, 1)
    health.failed(StoreDown("ConnectionError"))
    assert health.wait <= 0.25


def test_the_breaker_hardly_asks_where_it_is_not_let_in() -> None:
    health = StoreHealth(Listener(), clock=Clock())
    health.failed(StoreDown("NOAUTH", denied=True))
    assert health.wait >= 15


def test_a_store_that_comes_and_goes_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "otel_mcp")
    clock = Clock()
    health = StoreHealth(Listener(), clock=clock)

    def outages(count: int) -> list[int]:
        caplog.clear()
        for _ in range(count):
            health.failed(StoreDown("TimeoutError"))
            health.succeeded()
            clock.now += 1
        return [record.levelno for record in caplog.records]

    assert outages(20) == [logging.WARNING, logging.INFO] * 5
    clock.now += 60
    assert outages(1) == [logging.WARNING, logging.INFO]


def test_a_failing_part_of_a_cluster_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "otel_mcp")
    clock = Clock()
    health = StoreHealth(Listener(), divided=True, clock=clock)

    def told() -> list[int]:
        return [record.levelno for record in caplog.records]

    # A question fails, another one is answered: that says nothing of the part which failed.
    health.failed(StoreDown("ConnectionError"))
    assert health.is_away
    health.answered()
    assert (health.is_away, health.is_partial, told()) == (False, True, [logging.WARNING])
    # It fails again and again, and only that: nobody else has to do without the store.
    for _ in range(4):
        clock.now += 4
        health.failed(StoreDown("ConnectionError"))
        health.all_written()
        assert (health.is_away, health.is_partial, told()) == (False, True, [logging.WARNING])
    # Then nothing can be used any more.
    health.failed(StoreDown("ConnectionError"), proof=True)
    assert (health.is_away, told()) == (True, [logging.WARNING])
    health.answered()
    clock.now += 6
    health.all_written()
    assert (health.is_away, health.is_partial, told()) == (False, False, [logging.WARNING, logging.INFO])


def test_a_cancelled_operation_is_not_counted_as_done() -> None:
    listener = Listener()
    with pytest.raises(asyncio.CancelledError), StoreHealth(listener).operation("flush"):
        raise asyncio.CancelledError

    assert listener.operations == {("flush", "error"): 1}


# Text.


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.0, "1970-01-01T00:00:00.000000Z"),
        (EPOCH, "2026-09-21T14:13:20.000000Z"),
        (EPOCH + 0.000001, "2026-09-21T14:13:20.000001Z"),
        (EPOCH + 0.9999999, "2026-09-21T14:13:21.000000Z"),
        (-5.0, "1970-01-01T00:00:00.000000Z"),
        (math.nan, "1970-01-01T00:00:00.000000Z"),
        (1e300, "9999-12-31T23:59:59.000000Z"),
    ],
)
def test_instants_are_iso_text_of_one_length(seconds: float, expected: str) -> None:
    assert text.iso(text.micros(seconds)) == expected


def test_a_call_without_content_has_only_known_fields() -> None:
    assert json.loads(text.call(call(0))) == {
        "tool_name": "add",
        "request_id": 0,
        "started_at": "2026-09-21T14:13:20.000000Z",
        "duration": 0.25,
    }


@pytest.mark.parametrize(
    ("request_id", "expected"),
    [("id", "id"), ("", ""), (-7, -7), (10**400, "_OTHER"), (True, 1), ("x" * 9999, "x" * 1024)],
)
def test_request_ids_of_any_size_are_kept_or_named(request_id: Any, expected: Any) -> None:
    record = call()
    record.request_id = request_id
    assert json.loads(text.call(record))["request_id"] == expected


@pytest.mark.parametrize("duration", [math.nan, math.inf, -math.inf])
def test_a_duration_that_is_no_number_is_none(duration: float) -> None:
    record = call()
    record.duration = duration
    assert json.loads(text.call(record))["duration"] == 0.0


def nested(depth: int) -> list[Any]:
    return [] if depth == 0 else [nested(depth - 1)]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"a": [1, "x", None, 1.5]}, {"a": [1, "x", None, 1.5]}),
        ([math.nan, math.inf], [None, None]),
        ("\ud800\udfff", "??"),
        ({"\ud800": math.nan}, {"?": None}),
        (2**70, 2**70),
        (nested(500), None),
        ("x" * 70_000, '"' + "x" * 65_535),
    ],
)
def test_content_can_be_read_back(value: Any, expected: Any) -> None:
    written = text.content(value)
    assert "\n" not in written
    assert json.loads(text.utf8(written)) == expected


def test_content_that_is_no_json_is_named_or_left_out() -> None:
    loop: list[Any] = []
    loop.append(loop)
    assert json.loads(text.content(object())).startswith("<object object")
    assert json.loads(text.content(loop)) == ["..."]


# Memory.


@pytest.mark.anyio
async def test_memory_drops_the_oldest_session_and_reports_its_end() -> None:
    clock = Clock()
    store, process = MemoryStore(settings(max_sessions=3), clock=clock), ProducerId()
    for name in ("a", "b", "c", "a", "d"):
        await store.apply([flush(process, delta(1, of=facts(name), at=EPOCH))])

    assert len(store) == 3
    assert [await store.load(name) is not None for name in "abcd"] == [True, False, True, True]
    assert [(end.session_id, end.reason) for end in await store.claim_expired(EPOCH, 10)] == [("b", "expired")]


@pytest.mark.anyio
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


@pytest.mark.anyio
async def test_agreements_end() -> None:
    clock = Clock()
    store = MemoryStore(settings(), clock=clock)
    assert await store.get_or_set("key", "one", 10.0) == "one"
    clock.now += 11
    assert await store.get_or_set("key", "other", 10.0) == "other"


@pytest.mark.anyio
async def test_memory_of_agreements_is_bounded() -> None:
    store = MemoryStore(settings(max_sessions=5))
    for number in range(100):
        await store.get_or_set(f"key{number}", "value", 10.0)
    await store.save(SessionState(session_id="abc"))
    assert len(store._agreed) <= 10  # pyright: ignore[reportPrivateUsage]


# Clients.


def options(url: str) -> dict[str, Any]:
    client: Any = connect(url)
    return client.connection_pool.connection_kwargs


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://cache", {"host": "cache"}),
        (
            "redis://user:p%40ss@cache:6380/2",
            {"host": "cache", "port": 6380, "db": 2, "username": "user", "password": "p@ss"},
        ),
        ("unix:///run/redis.sock?db=3", {"path": "/run/redis.sock", "db": 3}),
        ("redis://cache?socket_timeout=2", {"socket_timeout": 2.0}),
    ],
)
def test_a_url_becomes_a_client(url: str, expected: dict[str, Any]) -> None:
    assert options(url).items() >= expected.items()


def test_a_client_gives_up_early_and_tries_once() -> None:
    given = options("rediss://cache")
    assert (given["socket_connect_timeout"], given["socket_timeout"]) == (TIMEOUT, TIMEOUT)
    assert given["retry"].get_retries() == 0
    client: Any = connect("rediss://cache?ssl_cert_reqs=none")
    assert client.connection_pool.connection_class.__name__ == "SSLConnection"
    assert client.connection_pool.connection_kwargs["ssl_cert_reqs"] == "none"


def test_a_sentinel_url_names_all_sentinels_and_the_service() -> None:
    client: Any = connect("redis+sentinel://me:pw@one,two:27000/main/3?sentinel_password=other")
    pool = client.connection_pool
    assert (pool.service_name, pool.connection_kwargs["db"]) == ("main", 3)
    assert (pool.connection_kwargs["username"], pool.connection_kwargs["password"]) == ("me", "pw")
    asked = [sentinel.connection_pool.connection_kwargs for sentinel in pool.sentinel_manager.sentinels]
    assert [(given["host"], given["port"], given["password"]) for given in asked] == [
        ("one", 26379, "other"),
        ("two", 27000, "other"),
    ]
    assert all(given["socket_timeout"] == TIMEOUT for given in asked)


@pytest.mark.anyio
async def test_a_cluster_url_names_its_first_nodes() -> None:
    client: Any = connect("rediss+cluster://me:pw@one,two:7000")
    assert [(node.host, node.port) for node in client.get_nodes() or client.nodes_manager.startup_nodes.values()] == [
        ("one", 6379),
        ("two", 7000),
    ]
    given = cast("dict[str, Any]", client.connection_kwargs)
    assert (given["username"], given["password"], given["connection_class"].__name__) == ("me", "pw", "SSLConnection")


@pytest.mark.parametrize(
    "url", ["", "cache:6379", "http://cache", "redis+cluster://", "redis+sentinel:///main", "redis+other://x"]
)
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        connect(url)
