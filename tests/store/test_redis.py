"""What is special about Redis: names, lifetimes, foreign values, errors, several processes."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any, cast

import anyio
import pytest
from opentelemetry.instrumentation.utils import is_instrumentation_enabled
from redis import exceptions

from otel_mcp.cli.document import open_calls
from otel_mcp.model.delta import Flush, OpenCall, SessionFacts
from otel_mcp.model.state import SessionState
from otel_mcp.sessions.service import Sessions
from otel_mcp.sessions.tables import meet, put_in_flight
from otel_mcp.settings import Settings
from otel_mcp.store.base import ProducerId, StoreDown
from otel_mcp.store.redis import codec
from otel_mcp.store.redis.client import RedisLink, connect
from otel_mcp.store.redis.store import RedisStore
from tests.support.stores import Listener, Server, delta, facts, flush, settings

pytestmark = pytest.mark.anyio

DOCUMENT = "mcp_session:abc"
STATS = "{mcp_session:abc}:stats"
DEADLINES = "otel_mcp:svc:deadlines"
WEEK = 7 * 86_400
"""Seconds that an end waits to be reported."""


@pytest.fixture
async def other(server: Server) -> AsyncIterator[RedisStore]:
    """Another process on the same server."""
    store = RedisStore(settings(server.patient_url))
    yield store
    await store.aclose()


def fresh(process: ProducerId, calls: int = 1, **values: Any) -> Flush:
    return flush(process, delta(calls, at=time.time(), **values))


IN_FLIGHT = "otel_mcp:svc:in_flight"


async def test_calls_in_flight_stay_until_their_process_withdraws_them_or_dies(
    store: RedisStore, process: ProducerId, other: RedisStore, raw: Any
) -> None:
    another = ProducerId()
    open_here = [OpenCall("export", 1.5, "abc", "shop-0"), OpenCall("sum", 2.0, None, "shop-0")]
    await put_in_flight(store, process, open_here)
    await put_in_flight(other, another, [OpenCall("query", 3.0, "def", "shop-1")])
    raw.hset(IN_FLIGHT, "gone", f"{(time.time() - 10.5) * 1e6:.0f} []")
    raw.hset(IN_FLIGHT, "nonsense", "who knows")
    assert 0 < raw.pttl(IN_FLIGHT) <= 10_000

    await put_in_flight(other, another, [OpenCall("query", 3.0, "def", "shop-1")], again=True)
    assert raw.hlen(IN_FLIGHT) == 4
    await put_in_flight(other, another, [OpenCall("query", 3.0, "def", "shop-1")])
    held = [open_calls(value)[1] for value in raw.hvals(IN_FLIGHT)]
    await put_in_flight(store, process, [], again=True)
    left = [open_calls(value)[1] for value in raw.hvals(IN_FLIGHT)]
    await put_in_flight(other, another, [])

    assert sorted(held) == [
        [("export", 1.5, "abc", "shop-0"), ("sum", 2.0, None, "shop-0")],
        [("query", 3.0, "def", "shop-1")],
    ]
    assert (left, raw.exists(IN_FLIGHT)) == ([[("query", 3.0, "def", "shop-1")]], 0)


async def test_callers_of_a_day_are_kept_for_two_and_cannot_be_read(store: RedisStore, raw: Any) -> None:
    key = "otel_mcp:svc:callers:2026-11-30"
    await store.callers("2026-11-30", [f"caller-{number}" for number in range(1000)])
    assert await store.callers("2026-11-30", []) == pytest.approx(1000, rel=0.03)

    assert 86_400_000 < raw.pttl(key) <= 172_800_000
    assert b"caller" not in raw.get(key)
    assert len(raw.get(key)) < 13_000

    raw.set(key, "somebody's")
    assert await store.callers("2026-11-30", ["ann"]) == 0


async def test_a_key_of_another_kind_keeps_calls_in_flight_to_themselves(
    store: RedisStore, process: ProducerId, raw: Any
) -> None:
    raw.set(IN_FLIGHT, "theirs")

    await put_in_flight(store, process, [OpenCall("export", 1.5, "abc", "shop-0")])

    assert raw.get(IN_FLIGHT) == b"theirs"


# Whose a session is that has shaken hands, and is written later.

ANN, BOB = "a" * 32, "b" * 32
CLIENT: dict[str, Any] = {"client_name": "my-agent", "client_version": "3.1"}


def shown(user: str | None) -> SessionFacts:
    """What a handshake of this user has shown."""
    return facts(principal=user, opened=True, **CLIENT)


@pytest.mark.parametrize("whose", [ANN, None], ids=["a user's", "nobody's"])
async def test_a_handshake_says_whose_a_session_is_before_anything_is_written(
    store: RedisStore, raw: Any, process: ProducerId, whose: str | None
) -> None:
    now = time.time()
    await store.bind(shown(whose))
    known = await store.describe("abc")

    first = flush(process, delta(1, of=facts(at=now, principal=BOB), at=now))
    hers = flush(process, delta(0, of=facts(at=now, principal=whose, opened=True), at=now, requests=1))
    answers = [(await store.apply([each]))[0] for each in (first, hers)]

    assert (known.exists, known.ended, known.principal, known.opened) == (False, False, whose, True)
    assert known.client == CLIENT
    assert [answer.owner for answer in answers] == [whose, None]
    described = await store.describe("abc")
    assert (described.exists, described.principal, described.opened) == (True, whose, True)
    assert answers[1 if whose else 0].created
    assert raw.ttl(STATS) > WEEK + 3500


async def test_a_client_is_known_where_another_replica_has_written_first(
    store: RedisStore, process: ProducerId
) -> None:
    now = time.time()
    await store.apply([flush(process, delta(1, of=facts(at=now), at=now))])
    await store.bind(shown(None))

    found = (await store.describe("abc")).facts

    assert found is not None
    assert {name: getattr(found, name) for name in CLIENT} == CLIENT


async def test_facts_of_a_handshake_are_forgotten_where_nothing_follows(store: RedisStore, raw: Any) -> None:
    await store.bind(shown(ANN))

    assert 0 < raw.ttl(STATS) <= 120
    assert raw.keys() == [STATS.encode()]
    assert await store.delete("abc") is False
    assert await store.active() == 0


@pytest.mark.parametrize("before", ["written by another user", "said by another user", "ended"])
async def test_a_handshake_that_comes_later_takes_over_only_what_no_handshake_began(
    store: RedisStore, process: ProducerId, before: str
) -> None:
    now = time.time()
    if before == "said by another user":
        await store.bind(shown(BOB))
    else:
        ended = "client_delete" if before == "ended" else None
        await store.apply([flush(process, delta(1, of=facts(at=now, principal=BOB), at=now, ended=ended))])

    await store.bind(shown(ANN))

    assert (await store.describe("abc")).principal == (ANN if before == "written by another user" else BOB)


async def test_a_handshake_does_not_take_the_session_of_another_service(
    store: RedisStore, server: Server, process: ProducerId
) -> None:
    now = time.time()
    theirs = RedisStore(Settings.model_validate({"redis_url": server.url, "service_name": "other"}))
    await theirs.apply([flush(process, delta(1, of=facts(at=now, principal=BOB), at=now))])

    await store.bind(shown(ANN))

    assert (await theirs.describe("abc")).principal == BOB
    await theirs.aclose()


# Names and lifetimes.


async def test_keys_have_the_promised_names_and_lifetimes(store: RedisStore, raw: Any, process: ProducerId) -> None:
    await store.apply([fresh(process)])
    await store.get_or_set_successor("old", "abc")

    assert sorted(raw.keys()) == [
        b"mcp_session:abc",
        DEADLINES.encode(),
        b"{mcp_session:abc}:stats",
        b"{mcp_session:old}:next:svc",
    ]
    assert 3500 < raw.ttl(DOCUMENT) <= 3600
    assert WEEK + 3500 < raw.ttl(STATS) <= WEEK + 3600
    assert 3500 < raw.ttl("{mcp_session:old}:next:svc") <= 3600
    assert json.loads(raw.get(DOCUMENT))["service"] == "svc"


async def test_each_flush_prolongs_the_session(store: RedisStore, raw: Any, process: ProducerId) -> None:
    await store.apply([fresh(process)])
    raw.expire(DOCUMENT, 100)
    raw.expire(STATS, 100)

    await store.apply([fresh(process)])

    assert raw.ttl(DOCUMENT) > 3500
    assert raw.ttl(STATS) > 4100


async def test_only_the_hash_key_outlives_a_service_that_is_gone(
    store: RedisStore, raw: Any, process: ProducerId
) -> None:
    now = time.time()
    await store.apply([flush(process, delta(1, of=facts(at=now, previous_id="old"), at=now))])
    await store.get_or_set("hash-key", "secret", 0)
    await store.get_or_set("client:1", "abc", 10)
    await store.claim_expired(now, 10)

    assert {key.decode() for key in list(raw.keys()) if raw.ttl(key) < 0} == {"otel_mcp:svc:hash-key"}
    assert 7 * 86_400 < raw.ttl(DEADLINES) <= 7 * 86_400 + 3600


async def test_an_ended_document_stays_ten_minutes(store: RedisStore, raw: Any, process: ProducerId) -> None:
    await store.apply([fresh(process)])
    await store.apply([fresh(process, ended="client_delete")])
    await store.apply([fresh(process)])

    assert 590 < raw.ttl(DOCUMENT) <= 600
    assert WEEK - 10 < raw.ttl(STATS) <= WEEK
    await store.ack_ends(await store.claim_held(["abc"], time.time()))
    assert 590 < raw.ttl(DOCUMENT) <= 600
    assert 650 < raw.ttl(STATS) <= 660


async def test_the_stats_outlive_a_limit_longer_than_the_document(
    store: RedisStore, raw: Any, process: ProducerId
) -> None:
    now = time.time()
    await store.apply([flush(process, delta(1, of=facts(at=now, limit=86_400.0), at=now))])

    assert raw.ttl(DOCUMENT) <= 3600
    assert WEEK + 86_300 < raw.ttl(STATS) <= WEEK + 86_400


async def test_the_stats_stay_small(store: RedisStore, raw: Any) -> None:
    now = time.time()
    known = facts(at=now, user_agent="u" * 500, client_name="c" * 500, client_version="1", source="header")
    for number in range(20):
        await store.apply([flush(ProducerId(), delta(3, of=known, at=now + number))])

    assert raw.object("encoding", STATS) in {b"listpack", b"ziplist"}


async def test_the_memory_of_processes_is_bounded(store: RedisStore, raw: Any) -> None:
    first, now = ProducerId(), time.time()
    sent = [flush(first, delta(1, at=now))]
    await store.apply(sent)
    # So many processes within a quarter of an hour that the oldest are forgotten.
    for _ in range(400):
        sent.append(flush(ProducerId(), delta(1, at=now)))
        await store.apply(sent[-1:])

    assert sum(field.startswith(b"p:") for field in raw.hkeys(STATS)) <= 257
    for again in sent[-200:]:
        assert (await store.apply([again]))[0].duplicate
    state = await store.load("abc")
    assert state is not None
    assert state.tool_call_count == 401


# Values that are not ours.


@pytest.mark.parametrize(
    "value", [b"", b"broken {", b'{"session_id":"abc"', b'{"session_id":"other"}', b"[1]", b"\xff\x00"]
)
async def test_a_foreign_value_is_left_alone_and_stops_no_other_session(
    store: RedisStore, raw: Any, process: ProducerId, value: bytes
) -> None:
    raw.set(DOCUMENT, value)
    now = time.time()
    sent = [flush(process, delta(1, of=facts(name, now), at=now)) for name in ("before", "abc", "after")]

    answers = await store.apply(sent)

    assert [answer.refused for answer in answers] == [None, "foreign", None]
    assert raw.get(DOCUMENT) == value
    assert await store.load("abc") is None
    assert await store.delete("abc") is False
    assert (await store.save(SessionState(session_id="abc"))).refused == "foreign"
    assert (await store.describe("abc")).exists is False
    assert raw.get(DOCUMENT) == value
    assert not raw.exists(STATS)
    assert raw.ttl(DOCUMENT) == -1
    assert [ended.session_id for ended in await store.claim_expired(now + 10_000, 10)] == ["after", "before"]


@pytest.mark.parametrize("key", [DOCUMENT, STATS])
async def test_a_value_of_another_type_is_left_alone(
    store: RedisStore, raw: Any, process: ProducerId, key: str
) -> None:
    raw.rpush(key, "mine")
    now = time.time()

    answers = await store.apply([flush(process, delta(1, of=facts(name, now), at=now)) for name in ("abc", "after")])

    assert [answer.refused for answer in answers] == ["foreign", None]
    assert (await store.save(SessionState(session_id="abc"))).refused == "foreign"
    assert await store.load("abc") is None
    assert await store.delete("abc") is False
    assert raw.lrange(key, 0, -1) == [b"mine"]
    raw.zadd(DEADLINES, {"abc": 1})
    assert [ended.session_id for ended in await store.claim_expired(now + 10_000, 10)] == ["after"]
    assert raw.lrange(key, 0, -1) == [b"mine"]


async def test_a_foreign_value_that_came_later_is_left_alone(store: RedisStore, raw: Any, process: ProducerId) -> None:
    await store.apply([fresh(process)])
    raw.set(DOCUMENT, "mine")

    (answer,) = await store.apply([fresh(process)])

    assert answer.refused == "foreign"
    (ended,) = await store.claim_expired(time.time() + 10_000, 10)
    assert ended.tool_call_count == 1
    assert raw.get(DOCUMENT) == b"mine"


async def test_a_document_that_the_user_replaced_is_taken_over(
    store: RedisStore, raw: Any, process: ProducerId
) -> None:
    await store.apply([fresh(process, 3)])
    mine = json.loads(raw.get(DOCUMENT)) | {"attributes": {"a": 1}, "mine": [1]}
    raw.set(DOCUMENT, json.dumps(mine, indent=2))

    (answer,) = await store.apply([fresh(process, 2)])

    state = await store.load("abc")
    assert state is not None
    assert (answer.refused, answer.total_calls) == (None, 5)
    assert (state.tool_call_count, len(state.tool_calls)) == (5, 5)
    assert (state.attributes, state.model_extra) == ({"a": 1}, {"mine": [1]})
    assert raw.ttl(DOCUMENT) > 3500


async def test_an_expiry_is_reported_where_the_user_replaced_the_document(
    store: RedisStore, raw: Any, process: ProducerId
) -> None:
    now = time.time()
    await store.apply([flush(process, delta(3, of=facts(at=now - 99, limit=10.0), at=now - 99))])
    raw.set(DOCUMENT, json.dumps(json.loads(raw.get(DOCUMENT)), indent=2))

    (answer,) = await store.apply([flush(process, delta(1, of=facts(at=now, limit=10.0), at=now))])

    assert answer.expired is not None
    assert (answer.expired.tool_call_count, answer.refused) == (3, None)


async def test_a_document_whose_stats_were_evicted_counts_on(store: RedisStore, raw: Any, process: ProducerId) -> None:
    await store.apply([fresh(process, 3)])
    raw.delete(STATS)

    (answer,) = await store.apply([fresh(process, 2)])

    assert (answer.total_calls, answer.created) == (5, False)


async def test_an_ended_document_without_stats_is_not_revived(store: RedisStore, raw: Any, process: ProducerId) -> None:
    now = time.time()
    await store.apply([flush(process, delta(3, of=facts(at=now - 9), at=now - 5, ended="client_delete"))])
    raw.delete(STATS)

    (late,) = await store.apply([flush(process, delta(1, of=facts(at=now - 9), at=now - 5))])

    state = await store.load("abc")
    assert (late.after_end, late.created, late.total_calls) == (True, False, 4)
    assert state is not None
    assert state.ended is not None
    assert raw.ttl(DOCUMENT) <= 600


async def test_stats_of_another_layout_are_replaced(store: RedisStore, raw: Any, process: ProducerId) -> None:
    await store.apply([fresh(process, 3)])
    raw.hset(STATS, mapping={"t": "1796000000000000 2026-11-30T00:53:20.000000Z", "o": "1 2 3 4 5"})

    (answer,) = await store.apply([fresh(process, 2)])

    assert (answer.refused, answer.total_calls) == (None, 5)
    assert raw.hget(STATS, "o") is None


async def test_a_document_that_was_removed_by_hand_is_written_again(
    store: RedisStore, raw: Any, process: ProducerId
) -> None:
    await store.apply([fresh(process, 3)])
    raw.delete(DOCUMENT)

    await store.apply([fresh(process, 2)])

    state = await store.load("abc")
    assert state is not None
    assert (state.tool_call_count, len(state.tool_calls)) == (5, 2)


async def test_a_deadline_without_a_session_is_dropped(store: RedisStore, raw: Any) -> None:
    raw.zadd(DEADLINES, {"gone": 1, b"\xff\xfe": 2})

    assert await store.claim_expired(time.time(), 10) == []
    assert raw.zcard(DEADLINES) == 0


@pytest.mark.parametrize("field", ["y", "m", "user_agent", "n"])
async def test_what_others_write_among_sessions_stops_no_end(
    store: RedisStore, raw: Any, process: ProducerId, field: str
) -> None:
    at = time.time() - 1000
    await store.apply([flush(process, delta(1, of=facts(name, at, 10.0), at=at)) for name in ("abc", "def")])
    raw.delete(DOCUMENT)
    raw.hset(STATS, field, b"\xff\xfe")
    raw.zadd(DEADLINES, {b"\xff\xfe": time.time() + 20})

    ends = await store.claim_expired(time.time(), 10)

    found = {end.session_id for end in ends}
    assert found == ({"def"} if field == "n" else {"abc", "def"})


# Errors.


async def test_scripts_that_the_server_forgot_are_sent_again(store: RedisStore, raw: Any, process: ProducerId) -> None:
    await store.apply([fresh(process)])
    raw.script_flush()
    now = time.time()

    answers = await store.apply([flush(process, delta(1, of=facts(f"s{n}", now), at=now)) for n in range(5)])

    assert [answer.created for answer in answers] == [True] * 5
    raw.script_flush()
    assert (await store.describe("abc")).exists


async def test_a_full_server_is_an_outage_and_nothing_is_written_in_part(
    server: Server, store: RedisStore, raw: Any, process: ProducerId
) -> None:
    now = time.time()
    await store.apply([flush(process, delta(1, of=facts(at=now - 100, limit=50.0), at=now - 60))])
    raw.config_set("maxmemory", 1)
    raw.config_set("maxmemory-policy", "noeviction")
    sent = [flush(process, delta(2, of=facts(name, now), at=now)) for name in ("s1", "s2")]
    try:
        with pytest.raises(StoreDown) as caught:
            await store.apply(sent)
        assert (caught.value.reason, caught.value.denied) == ("OutOfMemoryError", False)
        assert not raw.exists("mcp_session:s1", "{mcp_session:s1}:stats")
    finally:
        raw.config_set("maxmemory", 0)

    answers = await store.apply(sent)

    assert [(answer.created, answer.total_calls) for answer in answers] == [(True, 2)] * 2


async def test_a_replica_is_an_outage(store: RedisStore, raw: Any, process: ProducerId) -> None:
    await store.apply([fresh(process)])
    sent = fresh(process)
    raw.execute_command("REPLICAOF", "127.0.0.1", 1)
    try:
        with pytest.raises(StoreDown) as caught:
            await store.apply([sent])
        assert caught.value.denied is False
    finally:
        raw.execute_command("REPLICAOF", "NO", "ONE")

    assert (await store.apply([sent]))[0].total_calls == 2


async def test_a_missing_or_wrong_password_is_no_outage(server: Server, raw: Any, process: ProducerId) -> None:
    raw.config_set("requirepass", "secret")
    try:
        for url in (server.url, server.url.replace("//", "//:wrong@")):
            store = RedisStore(settings(url))
            with pytest.raises(StoreDown) as caught:
                await store.apply([fresh(process)])
            await store.aclose()
            assert caught.value.denied
            assert "wrong" not in str(caught.value)
        store = RedisStore(settings(server.patient_url.replace("//", "//:secret@")))
        assert (await store.apply([fresh(process)]))[0].created
        await store.aclose()
    finally:
        with server.client(password="secret") as client:
            client.config_set("requirepass", "")


@pytest.mark.parametrize(
    "rules", [("~*", "+@all", "-evalsha", "-eval"), ("~other:*", "+@all"), ("~*", "+@read"), ("~*", "+@all", "-hset")]
)
async def test_missing_permissions_are_no_outage(
    server: Server, raw: Any, process: ProducerId, rules: tuple[str, ...]
) -> None:
    raw.execute_command("ACL", "SETUSER", "limited", "reset", "on", ">pw", *rules)
    store = RedisStore(settings(server.patient_url.replace("//", "//limited:pw@")))
    try:
        with pytest.raises(StoreDown) as caught:
            await store.apply([fresh(process)])
        assert caught.value.denied
    finally:
        await store.aclose()
        raw.execute_command("ACL", "DELUSER", "limited")


async def test_a_dead_server_is_an_outage_at_once() -> None:
    store = RedisStore(settings("redis://127.0.0.1:1"))
    with pytest.raises(StoreDown) as caught:
        await store.load("abc")
    assert caught.value.denied is False
    await store.aclose()


async def test_one_record_that_cannot_be_written_stops_no_other(store: RedisStore, process: ProducerId) -> None:
    now = time.time()
    broken = delta(1, of=facts("broken", now), at=now)
    broken.calls[0].tool_name = cast(Any, 7)

    answers = await store.apply([flush(process, broken), fresh(process)])

    assert [answer.refused for answer in answers] == ["error", None]


async def test_none_of_our_commands_is_instrumented(server: Server, raw: Any, process: ProducerId) -> None:
    enabled: list[bool] = []

    class Watched:
        def __init__(self) -> None:
            self._client = connect(server.url)

        async def execute_command(self, *args: Any) -> Any:
            enabled.append(is_instrumentation_enabled())
            return await self._client.execute_command(*args)

        def pipeline(self, transaction: Any = None) -> Any:
            enabled.append(is_instrumentation_enabled())
            return self._client.pipeline(transaction)

        async def aclose(self) -> None:
            enabled.append(is_instrumentation_enabled())
            await self._client.aclose()

    store = RedisStore(settings(server.patient_url), client=Watched)
    await store.apply([fresh(process)])
    await store.describe("abc")
    await store.claim_expired(time.time(), 10)
    await store.save(SessionState(session_id="abc"))
    await store.aclose()

    assert len(enabled) > 5
    assert not any(enabled)


# Several processes.


async def test_a_restart_resumes_each_session_once(store: RedisStore, server: Server) -> None:
    now = time.time()

    async def serve(started: float, at: float) -> bool:
        worker = ProducerId()
        worker.started_at = started
        served = RedisStore(settings(server.patient_url), worker)
        (answer,) = await served.apply([flush(worker, delta(1, of=facts(at=now - 3000), at=at))])
        await served.aclose()
        return answer.resumed

    # Two workers of one start, then four of another, then one more for the load, then a rolling restart.
    first = [await serve(now - 3100, now - 3000), await serve(now - 3099, now - 2990)]
    restarted = [await serve(now - 2000 + number, now - 1990 + number) for number in range(4)]
    added = [await serve(now - 1500, now - 1400), await serve(now - 1500, now - 1390)]
    rolling = [await serve(now - 1000 + 20 * number, now - 900 + number) for number in range(3)]

    assert first == [False, False]
    assert restarted == [True, False, False, False]
    assert added == [True, False]
    assert rolling == [True, False, False]


async def test_a_time_limit_does_not_end_what_writes_in_the_background(server: Server, raw: Any) -> None:
    listener = Listener()
    sessions = Sessions(settings(server.url, flush_interval=0.05), listener)
    sessions.ensure_running()
    server.hang()
    try:
        sessions.submit(delta(2, of=facts(at=time.time()), at=time.time()))
        await anyio.sleep(1.2)  # Two time limits.
    finally:
        server.resume()

    with anyio.fail_after(60):
        while raw.exists(DOCUMENT) == 0:  # noqa: ASYNC110 (what is waited for lies in a store)
            await anyio.sleep(0.01)
    await sessions.aclose()

    assert sum(listener.dropped_calls.values()) == 0


async def test_one_process_sweeps_at_a_time(
    store: RedisStore, other: RedisStore, raw: Any, process: ProducerId
) -> None:
    now = time.time()
    await store.apply([flush(process, delta(1, of=facts(f"s{n}", now - 99, 10.0), at=now - 99)) for n in range(4)])

    assert len(await store.claim_expired(now, 2)) == 2
    assert await other.claim_expired(now, 10) == []
    raw.delete("otel_mcp:svc:sweeper")
    assert len(await other.claim_expired(now, 10)) == 2


async def test_an_end_that_nobody_reported_falls_to_another_process(
    store: RedisStore, other: RedisStore, raw: Any, process: ProducerId
) -> None:
    now = time.time()
    await store.apply([flush(process, delta(1, of=facts(at=now - 99, limit=10.0), at=now - 99))])
    (claimed,) = await store.claim_expired(now, 10)
    raw.delete("otel_mcp:svc:sweeper")
    later = now + 61

    assert await other.claim_expired(now + 1, 10) == []
    (taken,) = await other.claim_expired(later, 10)

    assert taken == claimed
    await other.ack_ends([taken])
    raw.delete("otel_mcp:svc:sweeper")
    assert await store.claim_expired(later + 120, 10) == []
    assert raw.zcard(DEADLINES) == 0


async def test_what_was_reported_is_not_given_out_again_where_settling_failed(
    store: RedisStore, raw: Any, process: ProducerId
) -> None:
    now = time.time()
    await store.apply([flush(process, delta(1, of=facts(at=now - 99, limit=10.0), at=now - 99))])
    (end,) = await store.claim_expired(now, 10)
    end.outcome = "worked"

    assert await store.claim_expired(now + 120, 10) == []
    assert raw.zcard(DEADLINES) == 0
    state = await store.load("abc")
    assert state is not None
    assert state.outcome == "worked"


async def test_what_was_claimed_and_not_reported_is_given_out_again(store: RedisStore, process: ProducerId) -> None:
    now = time.time()
    await store.apply([flush(process, delta(1, of=facts(at=now - 99, limit=10.0), at=now - 99))])
    assert len(await store.claim_expired(now, 10)) == 1

    assert len(await store.claim_expired(now + 120, 10)) == 1


async def test_an_end_that_is_held_by_a_dead_process_falls_to_another(
    store: RedisStore, other: RedisStore, raw: Any, process: ProducerId
) -> None:
    now = time.time()
    await store.apply([flush(process, delta(2, of=facts(at=now), at=now, ended="client_delete"))])
    assert await other.claim_held(["abc"], now) == []
    assert await other.claim_expired(now, 10) == []
    assert await other.active() == 0

    (taken,) = await other.claim_expired(now + 61, 10)

    assert (taken.reason, taken.tool_call_count, len(taken.calls)) == ("client_delete", 2, 2)
    assert await store.claim_held(["abc"], now) == []
    await other.ack_ends([taken])
    assert raw.zcard(DEADLINES) == 0


async def test_an_end_that_is_held_survives_a_delete(store: RedisStore, raw: Any, process: ProducerId) -> None:
    now = time.time()
    await store.apply([flush(process, delta(2, of=facts(at=now), at=now, ended="client_delete"))])

    assert await store.delete("abc")

    assert not raw.exists(DOCUMENT)
    (end,) = await store.claim_held(["abc"], now)
    assert (end.reason, end.tool_call_count, end.calls) == ("client_delete", 2, [])
    await store.ack_ends([end])
    assert raw.zcard(DEADLINES) == 0


async def test_a_late_report_leaves_the_claim_of_the_next_session_alone(
    store: RedisStore, other: RedisStore, process: ProducerId
) -> None:
    now = time.time()
    await store.apply([flush(process, delta(1, of=facts(at=now - 60), at=now - 50, ended="client_delete"))])
    (first,) = await store.claim_held(["abc"], now)
    first.outcome = "worked"
    await other.apply([flush(ProducerId(), delta(2, of=facts(at=now), at=now, ended="client_delete"))])

    await store.ack_ends([first])

    state = await store.load("abc")
    assert state is not None
    assert (state.outcome, state.tool_call_count) == (None, 2)
    assert [end.tool_call_count for end in await store.claim_expired(now + 200, 10)] == [2]


@pytest.mark.parametrize("wrong", [3600.0, -3600.0], ids=["ahead", "behind"])
async def test_replicas_with_wrong_clocks_agree(
    store: RedisStore, other: RedisStore, monkeypatch: pytest.MonkeyPatch, wrong: float
) -> None:
    true_time = time.time
    now = true_time()
    await store.apply([flush(ProducerId(), delta(1, of=facts(at=now, limit=60.0), at=now))])
    monkeypatch.setattr(time, "time", lambda: true_time() + wrong)

    there = now + wrong
    assert await other.claim_expired(there, 10) == []
    (answer,) = await other.apply([flush(ProducerId(), delta(1, of=facts(at=there, limit=60.0), at=there))])
    assert (answer.expired, answer.created, answer.total_calls) == (None, False, 2)
    assert await other.claim_expired(time.time(), 10) == []
    assert await other.active() == 1
    monkeypatch.undo()

    state = await store.load("abc")
    assert state is not None
    assert state.last_activity is not None
    assert abs(state.last_activity.timestamp() - now) < 60
    assert await store.active() == 1


async def test_save_goes_by_the_clock_of_the_server(
    store: RedisStore, raw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_time = time.time
    monkeypatch.setattr(time, "time", lambda: true_time() + 3600.0)

    await store.save(SessionState(session_id="abc"))

    monkeypatch.undo()
    state = await store.load("abc")
    assert state is not None
    assert state.created_at is not None
    assert abs(state.created_at.timestamp() - time.time()) < 5
    assert raw.zscore(DEADLINES, "abc") == pytest.approx(time.time() + 3600, abs=5.0)


class _Far:
    """Puts the server 50 ms away, each way, and counts what runs there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.scripts: list[object] = []
        run_all = RedisLink.run_all

        async def slow(link: RedisLink, runs: Any) -> Any:
            self.scripts += [run.script for run in runs]
            await asyncio.sleep(0.05)
            results = await run_all(link, runs)
            await asyncio.sleep(0.05)
            return results

        monkeypatch.setattr(RedisLink, "run_all", slow)


@pytest.mark.parametrize("skew", [1.97, 2.0, 2.03])
@pytest.mark.parametrize("sign", [1, -1], ids=["ahead", "behind"])
async def test_a_skew_near_the_limit_is_learned_once_and_kept(
    store: RedisStore, process: ProducerId, monkeypatch: pytest.MonkeyPatch, skew: float, sign: int
) -> None:
    far, true_time = _Far(monkeypatch), time.time
    monkeypatch.setattr(time, "time", lambda: true_time() + sign * skew)

    for _ in range(2):
        (answer,) = await store.apply([fresh(process)])
        assert answer.retry is None
        await store.claim_expired(time.time(), 10)

    assert far.scripts.count(codec.FLUSH) <= 3
    state = await store.load("abc")
    assert state is not None
    assert state.tool_call_count == 2


@pytest.mark.parametrize("skew", [1.97, 2.0, 2.03])
@pytest.mark.parametrize("sign", [1, -1], ids=["ahead", "behind"])
async def test_a_document_is_saved_whatever_the_skew(
    store: RedisStore, monkeypatch: pytest.MonkeyPatch, skew: float, sign: int
) -> None:
    far, true_time = _Far(monkeypatch), time.time
    monkeypatch.setattr(time, "time", lambda: true_time() + sign * skew)

    for number in range(2):
        await store.save(SessionState(session_id="abc", attributes={"n": number}))
        await store.claim_expired(time.time(), 10)

    assert far.scripts.count(codec.SAVE) <= 3
    state = await store.load("abc")
    assert state is not None
    assert state.attributes == {"n": 1}


async def test_an_expiry_whose_answer_was_lost_is_reported_once(
    store: RedisStore, raw: Any, process: ProducerId, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    await store.apply([flush(process, delta(3, of=facts(at=now - 99, limit=10.0), at=now - 99))])
    after = flush(process, delta(1, of=facts(at=now - 99, limit=10.0), at=now))
    run_all, lost = RedisLink.run_all, [True]

    async def unanswered(self: RedisLink, runs: Any) -> Any:
        results = await run_all(self, runs)
        if lost.pop() if lost else False:
            raise StoreDown("TimeoutError")
        return results

    monkeypatch.setattr(RedisLink, "run_all", unanswered)
    with pytest.raises(StoreDown):
        await store.apply([after])
    (answer,) = await store.apply([after])

    assert answer.expired is not None
    assert (answer.expired.reason, answer.expired.tool_call_count) == ("expired", 3)
    assert (answer.created, answer.total_calls) == (True, 1)
    assert (await store.apply([after]))[0].expired is None
    assert raw.hget(STATS, "w") is None


async def test_a_reported_expiry_is_not_reported_again_when_the_retry_fails(
    store: RedisStore, process: ProducerId, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    await store.apply([flush(process, delta(3, of=facts(at=now - 99, limit=10.0), at=now - 99))])
    after = flush(process, delta(1, of=facts(at=now - 99, limit=10.0), at=now))
    run_all, runs_made = RedisLink.run_all, [0]

    async def unsent(self: RedisLink, runs: Any) -> Any:
        runs_made[0] += 1
        if runs_made[0] == 2:
            raise StoreDown("ConnectionError")
        return await run_all(self, runs)

    monkeypatch.setattr(RedisLink, "run_all", unsent)
    (first,) = await store.apply([after])
    (second,) = await store.apply([after])

    assert first.expired is not None
    assert first.retry == "ConnectionError"
    assert (second.expired, second.retry, second.created) == (None, None, True)


async def test_an_expiry_is_reported_after_its_flush_was_cancelled(
    store: RedisStore, process: ProducerId, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    await store.apply([flush(process, delta(3, of=facts(at=now - 99, limit=10.0), at=now - 99))])
    after = flush(process, delta(1, of=facts(at=now - 99, limit=10.0), at=now))
    run_all, runs_made = RedisLink.run_all, [0]

    async def cancelled(self: RedisLink, runs: Any) -> Any:
        runs_made[0] += 1
        results = await run_all(self, runs)
        if runs_made[0] == 2:
            raise asyncio.CancelledError
        return results

    monkeypatch.setattr(RedisLink, "run_all", cancelled)
    with pytest.raises(asyncio.CancelledError):
        await store.apply([after])
    (answer,) = await store.apply([after])

    assert answer.expired is not None
    assert (answer.expired.tool_call_count, answer.duplicate, answer.total_calls) == (3, True, 1)
    assert (await store.apply([after]))[0].expired is None


async def test_an_expiry_found_by_a_mere_end_is_reported_once(
    store: RedisStore, other: RedisStore, raw: Any, process: ProducerId
) -> None:
    now = time.time()
    await store.apply([flush(process, delta(3, of=facts(at=now - 99, limit=10.0), at=now - 99))])
    end = delta(0, of=facts(at=now - 99, limit=10.0), at=now, ended="client_delete")

    (answer,) = await store.apply([flush(process, end)])

    assert (answer.expired, answer.ended, answer.after_end) == (None, True, True)
    (expired,) = await store.claim_held(["abc"], time.time())
    assert (expired.reason, expired.tool_call_count) == ("expired", 3)
    await store.ack_ends([expired])
    assert raw.hget(STATS, "w") is None
    assert await other.claim_expired(now + 100, 10) == []
    assert raw.zcard(DEADLINES) == 0


async def test_an_expiry_claimed_by_a_dead_process_is_reported(
    store: RedisStore, other: RedisStore, raw: Any, process: ProducerId
) -> None:
    now = time.time()
    await store.apply([flush(process, delta(3, of=facts(at=now - 99, limit=10.0), at=now - 99))])
    assert len(await other.claim_expired(now - 80, 10)) == 1
    owner = raw.hget(STATS, "w").decode().split(" ")[0]
    after = flush(process, delta(1, of=facts(at=now, limit=10.0), at=now))

    raw.hset(STATS, "w", f"{owner} {round((now - 1) * 1e6)}")
    (answer,) = await store.apply([after])

    assert answer.expired is not None
    assert (answer.created, answer.total_calls) == (True, 1)


async def test_an_expiry_claimed_by_a_live_process_is_not_reported_twice(
    store: RedisStore, other: RedisStore, process: ProducerId
) -> None:
    now = time.time()
    await store.apply([flush(process, delta(3, of=facts(at=now - 99, limit=10.0), at=now - 99))])
    assert len(await other.claim_expired(now - 80, 10)) == 1

    (answer,) = await store.apply([flush(process, delta(1, of=facts(at=now, limit=10.0), at=now))])

    assert (answer.expired, answer.created, answer.total_calls) == (None, True, 1)


async def test_a_new_session_has_a_deadline_while_an_old_end_is_reported(
    store: RedisStore, raw: Any, process: ProducerId
) -> None:
    now = time.time()
    await store.apply([flush(process, delta(3, of=facts(at=now - 99, limit=10.0), at=now - 99))])
    ended = await store.claim_expired(now, 10)
    await store.apply([flush(process, delta(1, of=facts(at=now, limit=10.0), at=now))])

    await store.ack_ends(ended)

    assert raw.zscore(DEADLINES, "abc") == pytest.approx(now + 10, abs=1.0)
    assert [end.tool_call_count for end in await store.claim_expired(now + 11, 10)] == [1]


async def test_a_session_begun_while_another_process_ends_its_id_has_a_deadline(
    store: RedisStore, other: RedisStore, process: ProducerId, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, run = time.time(), RedisLink.run
    await store.apply([flush(process, delta(1, of=facts(at=now - 99, limit=10.0), at=now - 99))])
    begins = flush(process, delta(1, of=facts(at=now, limit=10.0), at=now))
    await store.ack_ends(await store.claim_expired(now, 10))
    end = delta(0, of=facts(at=now - 99, limit=200.0), at=now - 90, ended="client_delete")

    async def meanwhile(self: RedisLink, what: Any) -> Any:
        if what.script == "ZADD":
            monkeypatch.setattr(RedisLink, "run", run)
            assert [answer.created for answer in await store.apply([begins])] == [True]
        return await run(self, what)

    monkeypatch.setattr(RedisLink, "run", meanwhile)
    (answer,) = await other.apply([flush(ProducerId(), end)])
    await store.claim_expired(now, 10)

    assert answer.after_end
    assert await store.active() == 1
    assert [end.tool_call_count for end in await store.claim_expired(now + 11, 10)] == [1]


async def test_many_sessions_that_ended_otherwise_do_not_delay_an_expiry(
    store: RedisStore, raw: Any, process: ProducerId
) -> None:
    now = time.time()
    for reason in (None, "client_delete"):
        each = [delta(1, of=facts(f"s{n}", now), at=now, ended=reason) for n in range(30)]
        await store.apply([flush(process, one) for one in each])
    await store.apply([flush(process, delta(1, of=facts(at=now - 99, limit=10.0), at=now - 99))])

    assert raw.zcard(DEADLINES) == 31
    assert await store.active() == 0
    assert [end.session_id for end in await store.claim_expired(now, 10)] == ["abc"]
    assert raw.zcard(DEADLINES) == 31
    await store.ack_ends(await store.claim_held([f"s{n}" for n in range(30)], now))
    assert raw.zcard(DEADLINES) == 1


async def test_sweeper_and_flush_of_one_process_do_not_report_an_end_twice(server: Server, raw: Any) -> None:
    process, now = ProducerId(), time.time()
    store = RedisStore(settings(server.patient_url), process)
    await store.apply([flush(process, delta(3, of=facts(at=now - 99, limit=10.0), at=now - 99))])
    claimed = await store.claim_expired(now, 10)

    (answer,) = await store.apply([flush(process, delta(1, of=facts(at=now, limit=10.0), at=now))])
    await store.aclose()

    assert [end.tool_call_count for end in claimed] == [3]
    assert (answer.expired, answer.created) == (None, True)


async def test_a_session_that_is_settled_is_gone(store: RedisStore, raw: Any, process: ProducerId) -> None:
    now = time.time()
    await store.apply([flush(process, delta(1, of=facts(at=now - 99, limit=10.0), at=now - 99))])

    await store.ack_ends(await store.claim_expired(now, 10))

    assert raw.hget(STATS, "w") is None
    assert raw.zcard(DEADLINES) == 0


async def test_what_is_no_session_gets_no_deadline(store: RedisStore, raw: Any, process: ProducerId) -> None:
    now = time.time()
    raw.set("mcp_session:foreign", "not ours")
    end, refused = delta(0, at=now, ended="client_delete"), delta(1, of=facts("foreign", now), at=now)

    await store.apply([flush(process, end), flush(process, refused)])
    assert await store.delete("unknown") is False

    assert raw.zrange(DEADLINES, 0, -1) == [b"foreign"]
    assert await store.active() == 0
    await store.claim_expired(now, 10)
    assert raw.zcard(DEADLINES) == 0


async def test_the_end_of_a_session_is_reported_by_its_own_service(
    server: Server, store: RedisStore, raw: Any, process: ProducerId
) -> None:
    now = time.time()
    others = RedisStore(settings(server.patient_url, service_name="two"))
    await store.apply([flush(process, delta(3, of=facts(at=now, limit=10.0), at=now))])
    (answer,) = await others.apply(
        [flush(ProducerId(), delta(1, of=facts(at=now, limit=10.0, client_name="x"), at=now))]
    )

    assert answer.refused == "foreign"
    assert await others.claim_expired(now + 20, 10) == []
    assert await others.active() == 0
    assert [end.tool_call_count for end in await store.claim_expired(now + 20, 10)] == [3]
    await others.aclose()


async def test_saving_the_session_of_another_service_does_not_take_its_end(
    server: Server, store: RedisStore, raw: Any, process: ProducerId
) -> None:
    now = time.time()
    others = RedisStore(settings(server.patient_url, service_name="two", session_ttl=5.0))
    await store.apply([flush(process, delta(3, of=facts(at=now, limit=10.0), at=now))])
    answer = await others.save(SessionState(session_id="abc"))
    raw.zadd("otel_mcp:two:deadlines", {"abc": now + 5})  # As after a crash before it was taken out.

    assert answer.refused == "foreign"
    assert await others.claim_expired(now + 20, 10) == []
    assert raw.zcard("otel_mcp:two:deadlines") == 0
    assert [end.tool_call_count for end in await store.claim_expired(now + 20, 10)] == [3]
    await others.aclose()


@pytest.mark.parametrize("what", ["flush", "save", "delete"])
async def test_another_service_cannot_take_an_overdue_session_without_document(
    server: Server, store: RedisStore, raw: Any, process: ProducerId, what: str
) -> None:
    now = time.time()
    others = RedisStore(settings(server.patient_url, service_name="two"))
    await store.apply([flush(process, delta(3, of=facts(at=now - 20, limit=10.0), at=now - 20))])
    raw.delete(DOCUMENT)

    if what == "flush":
        (answer,) = await others.apply([flush(ProducerId(), delta(1, of=facts(at=now), at=now))])
        assert (answer.refused, answer.expired) == ("foreign", None)
    elif what == "save":
        assert (await others.save(SessionState(session_id="abc"))).refused == "foreign"
    else:
        await others.delete("abc")

    assert [end.tool_call_count for end in await store.claim_expired(now, 10)] == [3]
    await others.aclose()


async def test_a_document_of_the_users_is_swept_by_its_service(server: Server, store: RedisStore, raw: Any) -> None:
    now = time.time()
    others = RedisStore(settings(server.patient_url, service_name="two"))
    await store.save(SessionState(session_id="abc"))
    raw.zadd("otel_mcp:two:deadlines", {"abc": now})

    assert await others.claim_expired(now + 4000, 10) == []
    assert [end.session_id for end in await store.claim_expired(now + 4000, 10)] == ["abc"]
    await others.aclose()


async def test_a_flush_that_cannot_be_written_leaves_its_session_a_deadline(
    store: RedisStore, raw: Any, process: ProducerId
) -> None:
    now = time.time()
    await store.apply([flush(process, delta(1, of=facts(at=now, limit=10.0), at=now))])
    bad = delta(1, of=facts(at=now, limit=10.0), at=now)
    bad.calls[0].duration = cast(float, "not a number")

    (answer,) = await store.apply([flush(process, bad)])
    await store.claim_expired(now, 10)

    assert answer.refused == "error"
    assert raw.zscore(DEADLINES, "abc") == pytest.approx(now + 10, abs=1.0)


async def test_nothing_is_known_of_a_key_of_another_type_or_text(
    store: RedisStore, raw: Any, process: ProducerId
) -> None:
    now = time.time()
    await store.apply([flush(process, delta(1, of=facts(name, now), at=now)) for name in ("text", "stats", "document")])
    raw.setrange("mcp_session:text", 0, "?")
    for key in ("{mcp_session:stats}:stats", "mcp_session:document"):
        raw.delete(key)
        raw.lpush(key, "not ours")

    assert [(await store.describe(name)).exists for name in ("text", "stats", "document")] == [False] * 3


async def test_only_a_new_document_leaves_one_without_stats_alone(store: RedisStore, raw: Any) -> None:
    await store.save(SessionState(session_id="abc", attributes={"cart": [1]}))
    raw.delete(STATS)

    answer = await store.save(SessionState(session_id="abc"), only_new=True)

    state = await store.load("abc")
    assert state is not None
    assert (answer.created, answer.refused, state.attributes) == (False, None, {"cart": [1]})


async def test_a_document_saved_during_the_sweep_of_its_id_has_a_deadline(
    store: RedisStore, raw: Any, process: ProducerId, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, run_all = time.time(), RedisLink.run_all
    await store.apply([flush(process, delta(1, of=facts(at=now), at=now))])
    await store.delete("abc")

    async def meanwhile(self: RedisLink, runs: Any) -> Any:
        results = await run_all(self, runs)
        if any(run.script is codec.CLAIM for run in runs):
            monkeypatch.setattr(RedisLink, "run_all", run_all)
            await store.save(SessionState(session_id="abc"))
        return results

    monkeypatch.setattr(RedisLink, "run_all", meanwhile)
    await store.claim_expired(now, 10)

    assert raw.zscore(DEADLINES, "abc") == pytest.approx(now + 3600, abs=5.0)


async def test_sessions_that_cannot_be_looked_at_do_not_hold_the_sweep(
    store: RedisStore, process: ProducerId, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, run_all, claims = time.time(), RedisLink.run_all, [0]
    late = [delta(1, of=facts(f"s{n}", now - 99, 10.0), at=now - 99) for n in range(5)]
    await store.apply([flush(process, each) for each in late])

    async def silent(self: RedisLink, runs: Any) -> Any:
        if any(run.script is codec.CLAIM for run in runs):
            claims[0] += 1
            return [exceptions.TimeoutError()] * len(runs)
        return await run_all(self, runs)

    monkeypatch.setattr(RedisLink, "run_all", silent)

    assert await store.claim_expired(now, 5) == []
    assert claims == [1]


async def test_saving_a_document_does_not_put_off_the_end_of_its_session(
    store: RedisStore, raw: Any, process: ProducerId
) -> None:
    now = time.time()
    await store.apply([flush(process, delta(1, of=facts(at=now, limit=10.0), at=now))])
    state = await store.load("abc")
    assert state is not None

    await store.save(state)

    assert raw.zscore(DEADLINES, "abc") == pytest.approx(now + 10, abs=1.0)


async def test_a_flush_that_was_given_up_is_forgotten(
    store: RedisStore, process: ProducerId, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, run_all, sent = time.time(), RedisLink.run_all, [0]
    await store.apply([flush(process, delta(3, of=facts(at=now - 99, limit=10.0), at=now - 99))])
    after = flush(process, delta(1, of=facts(at=now, limit=10.0), at=now))

    async def once(self: RedisLink, runs: Any) -> Any:
        sent[0] += 1
        if sent[0] > 1:
            raise StoreDown("TimeoutError")
        return await run_all(self, runs)

    monkeypatch.setattr(RedisLink, "run_all", once)
    (answer,) = await store.apply([after])
    announced = store._flushes._announced  # pyright: ignore[reportPrivateUsage]

    assert answer.expired is not None
    assert (answer.retry, list(announced)) == ("TimeoutError", [after])
    del after
    assert not announced


async def test_an_end_whose_answer_was_lost_is_reported_with_the_next_session(
    store: RedisStore, other: RedisStore, process: ProducerId
) -> None:
    now = time.time() - 60
    end = flush(process, delta(2, of=facts(at=now), at=now, ended="client_delete"))
    await store.apply([end])
    (begun,) = await other.apply([flush(ProducerId(), delta(1, of=facts(at=now + 30), at=now + 30))])

    # Its answer was lost.
    (again, beside) = await store.apply([end, flush(process, delta(1, of=facts("beside", at=now), at=now))])

    assert beside.created
    assert again.duplicate
    assert begun.expired is not None
    assert (begun.expired.reason, begun.expired.tool_call_count) == ("client_delete", 2)
    assert await store.claim_held(["abc"], time.time()) == []
    state = await store.load("abc")
    assert state is not None
    assert state.tool_call_count == 1
    assert not hasattr(state, "ended") or state.ended is None


async def test_an_answer_that_cannot_be_understood_holds_no_other(
    store: RedisStore, process: ProducerId, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(flushed: Flush, joined: Any, reply: Any) -> Any:
        if flushed.delta.facts.session_id == "abc":
            raise AttributeError
        return understood(flushed, joined, reply)

    understood = codec.written
    monkeypatch.setattr(codec, "written", broken)
    now = time.time()
    beside = flush(process, delta(1, of=facts("beside", at=now), at=now))

    (odd, answer) = await store.apply([fresh(process), beside])

    assert (odd.refused, odd.retry) == ("error", None)
    assert answer.created


async def test_stats_that_no_script_understands_hold_no_other_session(
    store: RedisStore, process: ProducerId, raw: Any
) -> None:
    now = time.time()
    raw.hset(STATS, f"p:{process.token}", "junk")
    raw.hset("{mcp_session:over}:stats", mapping={"x": "1 expired", "w": "junk"})
    raw.zadd("otel_mcp:svc:deadlines", {"over": now - 10})
    beside = flush(process, delta(1, of=facts("beside", at=now), at=now))

    (odd, answer) = await store.apply([fresh(process), beside])

    assert (odd.refused, odd.retry) == ("error", None)
    assert answer.created
    assert await store.claim_expired(time.time(), 10) == []
    assert raw.zscore("otel_mcp:svc:deadlines", "over") is None


async def test_an_end_that_was_left_is_reported_once_by_who_sweeps_next(
    server: Server, store: RedisStore, raw: Any
) -> None:
    now, process = time.time(), ProducerId()
    await store.apply([flush(process, delta(3, of=facts(at=now, client_name="c"), at=now))])
    operator = RedisStore(settings(server.patient_url))

    assert await operator.end("abc") is True
    assert await operator.end("abc") is False
    await operator.aclose()

    assert not raw.exists(DOCUMENT)
    assert raw.ttl(STATS) > 600
    (end,) = await store.claim_expired(time.time(), 10)
    assert (end.reason, end.tool_call_count, end.facts.client_name) == ("server_closed", 3, "c")
    await store.ack_ends([end])
    assert await store.claim_expired(time.time(), 10) == []
    assert await store.active() == 0
    assert raw.zcard(DEADLINES) == 0


async def test_a_session_that_goes_on_after_such_an_end_is_another_one(store: RedisStore) -> None:
    now, process = time.time(), ProducerId()
    known = facts(at=now)
    await store.apply([flush(process, delta(3, of=known, at=now))])
    await store.end("abc")

    (late,) = await store.apply([flush(process, delta(1, of=known, at=now - 1))])
    (again,) = await store.apply([flush(process, delta(2, of=known, at=time.time() + 2))])

    assert late.after_end
    assert again.created
    assert again.expired is not None
    assert (again.expired.reason, again.expired.tool_call_count) == ("server_closed", 3)
    assert await store.claim_expired(time.time(), 10) == []
    state = await store.load("abc")
    assert state is not None
    assert state.tool_call_count == 2


async def test_only_its_own_service_may_end_a_session(server: Server, store: RedisStore) -> None:
    now = time.time()
    await store.apply([flush(ProducerId(), delta(1, of=facts(at=now), at=now))])
    other = RedisStore(settings(server.patient_url, service_name="other"))

    assert await other.end("abc") is False
    await other.aclose()

    assert await store.load("abc") is not None
    assert await store.end("nobody") is False


async def test_a_catalogue_that_comes_back_is_new_after_a_day(store: RedisStore, raw: Any) -> None:
    key = "otel_mcp:svc:catalogues"
    for digest in "ab":
        await meet(store, digest, digest)
    assert 0 < raw.ttl(key) <= WEEK

    raw.hset(key, mapping={"a": f"{int((time.time() - 86_500) * 1e6)} a", "c": "not of ours"})

    assert await meet(store, "b", "b") == []
    assert await meet(store, "a", "a") == ["b"]
    raw.delete(key)
    raw.set(key, "not of ours")
    assert await meet(store, "a", "a") == []
