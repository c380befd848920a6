"""A cluster whose slots move and whose nodes die, and a failover that a sentinel makes."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator

import anyio
import pytest
from redis.crc import key_slot

from otel_mcp.cli.app import run
from otel_mcp.model.delta import Flush, WriteResult
from otel_mcp.model.state import SessionState
from otel_mcp.sessions import health
from otel_mcp.sessions.service import Sessions
from otel_mcp.sessions.tables import meet
from otel_mcp.store.base import ProducerId, StoreDown
from otel_mcp.store.redis.codec import Keys
from otel_mcp.store.redis.store import RedisStore
from tests.store.groups import Cluster, Sentinel
from tests.support.stores import Listener, delta, facts, flush, settings

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    yield cluster
    cluster.close()


@pytest.fixture
async def store(cluster: Cluster) -> AsyncIterator[RedisStore]:
    for node in cluster.nodes:
        node.client().flushall()
    store = RedisStore(settings(cluster.url))
    yield store
    await store.aclose()


async def write(store: RedisStore, sent: list[Flush]) -> list[WriteResult]:
    """Send until everything has been taken, as the flusher does."""
    answers: list[WriteResult] = []
    with anyio.fail_after(60):
        while sent:
            try:
                got = await store.apply(sent)
            except StoreDown:
                await anyio.sleep(0.1)
                continue
            answers += [answer for answer in got if not answer.retry]
            waiting = {answer.session_id for answer in got if answer.retry}
            sent = [flush for flush in sent if flush.delta.facts.session_id in waiting]
            if waiting:
                await anyio.sleep(0.1)
    return answers


async def counts(store: RedisStore, names: list[str]) -> list[int]:
    states = [await store.load(name) for name in names]
    return [0 if state is None else state.tool_call_count for state in states]


async def test_a_cluster_is_as_good_as_one_server(cluster: Cluster, store: RedisStore) -> None:
    process, now = ProducerId(), time.time()
    names = [f"s{number}" for number in range(60)] + ["a{b}c"]
    sent = [flush(process, delta(2, of=facts(name, now, 50.0, previous_id=f"old{name}"), at=now)) for name in names]

    answers = await store.apply(sent)

    assert all(answer.created for answer in answers)
    assert all(answer.duplicate for answer in await store.apply(sent))
    assert await counts(store, names) == [2] * 61
    assert (await store.describe("olds7")).successor == "s7"
    assert await store.get_or_set("client:1", "a", 10) == "a"
    assert [await meet(store, digest, digest) for digest in "aba"] == [[], ["a"], []]
    assert list(await store.entries("catalogues", ["b", "c"])) == ["b"]
    assert not (await store.save(SessionState(session_id="s1", attributes={"a": 1}))).created
    assert await store.delete("a{b}c") is True
    assert await store.active() == 60
    ended = await store.claim_expired(now + 10_000, 100)
    assert len(ended) == 60
    await store.ack_ends(ended)
    assert await store.active() == 0


async def test_counts_are_exact_while_a_slot_moves(cluster: Cluster, store: RedisStore) -> None:
    process, now = ProducerId(), time.time()
    names = [f"s{number}" for number in range(40)]

    async def round_of_calls() -> None:
        await write(store, [flush(process, delta(1, of=facts(name, now), at=now)) for name in names])

    await round_of_calls()
    moving = [name for name in names if cluster.owner(f"mcp_session:{name}") == 0]
    source, target = cluster.nodes[0].client(), cluster.nodes[1].client()
    source_id, target_id = (node.execute_command("CLUSTER", "MYID").decode() for node in (source, target))
    for name in moving[:5]:
        slot = key_slot(f"mcp_session:{name}".encode())
        target.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
        source.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
        # One of the two keys has moved: neither node can run the script.
        sent = [flush(process, delta(1, of=facts(name, now), at=now))]
        source.execute_command("MIGRATE", "127.0.0.1", cluster.nodes[1].port, f"mcp_session:{name}", 0, 1000)
        with pytest.raises(StoreDown):
            await store.apply(sent)
        source.execute_command("MIGRATE", "127.0.0.1", cluster.nodes[1].port, f"{{mcp_session:{name}}}:stats", 0, 1000)
        await write(store, sent)
        for node in cluster.nodes:
            node.client().execute_command("CLUSTER", "SETSLOT", slot, "NODE", target_id)
        await round_of_calls()

    expected = {name: 1 + len(moving[:5]) + (name in moving[:5]) for name in names}
    assert dict(zip(names, await counts(store, names), strict=True)) == expected


@pytest.mark.parametrize("other", [0, 1], ids=["one node", "another node"])
async def test_a_dead_node_stops_only_its_own_sessions(cluster: Cluster, store: RedisStore, other: int) -> None:
    process, now = ProducerId(), time.time()
    names = [f"s{number}" for number in range(40)]

    def calls() -> list[Flush]:
        sent = [flush(process, delta(1, of=facts(name, now), at=now)) for name in names]
        for each in sent:  # What was agreed about a session may lie on another node than the session.
            each.delta.touch_key = (f"client:{each.delta.facts.session_id}", 100.0)
        return sent

    await write(store, calls())
    deadlines = cluster.owner("otel_mcp:svc:deadlines")
    dead = [number for number in range(3) if number != deadlines][other]
    owners = {name: cluster.owner(f"mcp_session:{name}") for name in names}
    cluster.nodes[dead].kill()

    sent = calls()
    for _ in range(3):
        with anyio.fail_after(30):
            answers = await store.apply(sent)
        assert {answer.session_id for answer in answers if answer.retry} == {
            name for name in names if owners[name] == dead
        }
    living = next(name for name in names if owners[name] != dead)
    assert (await store.describe(living)).live is not None
    cluster.nodes[dead].start()
    await write(store, sent)
    assert await counts(store, names) == [2] * 40


@pytest.mark.parametrize("dead", [0, 1, 2])
async def test_a_process_that_starts_while_a_node_is_away_uses_the_others(cluster: Cluster, dead: int) -> None:
    keys = [f"client:{number}" for number in range(20)]
    living = next(key for key in keys if cluster.owner(Keys("", "svc").agreement(key)) != dead)
    cluster.nodes[dead].kill()
    store = RedisStore(settings(cluster.url))

    with anyio.fail_after(30):
        if dead == 0:  # The one that redis-py asks which commands there are: all wait for it.
            with pytest.raises(StoreDown):
                await store.get(living)
        else:
            assert await store.get_or_set(living, "a", 10) == "a"

    cluster.nodes[dead].start()
    cluster.wait()
    await store.get_or_set(living, "a", 10)
    assert await store.get(living) == "a"
    await store.aclose()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that has failed counts as back after half a second without failures."""
    monkeypatch.setattr(health, "_CALM", 0.5)


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(60):
        while not condition():  # noqa: ASYNC110 - what is awaited tells nobody
            await anyio.sleep(0.01)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("trouble", ["a dead node", "a slot that moves"])
async def test_a_failed_part_warns_once_and_degrades_no_other(
    cluster: Cluster, caplog: pytest.LogCaptureFixture, trouble: str
) -> None:
    for node in cluster.nodes:
        node.client().flushall()
    caplog.set_level(logging.INFO, "otel_mcp")
    now = time.time()
    deadlines = cluster.owner("otel_mcp:svc:deadlines")
    hurt = next(number for number in range(3) if number not in (deadlines, cluster.owner("otel_mcp:svc:hash-key")))
    names = [f"s{number}" for number in range(30)]
    there = [name for name in names if cluster.owner(f"mcp_session:{name}") == hurt]
    waiting = there if trouble == "a dead node" else there[:1]
    living = [name for name in names if name not in waiting]
    sessions = Sessions(settings(cluster.url, flush_interval=0.05), Listener())
    sessions.ensure_running()

    def calls() -> None:
        for name in names:
            sessions.submit(delta(1, of=facts(name, now), at=time.time()))

    calls()
    await until(lambda: not sessions.pending)
    slot, nodes = key_slot(f"mcp_session:{waiting[0]}".encode()), [node.client() for node in cluster.nodes]
    ids = [node.execute_command("CLUSTER", "MYID").decode() for node in nodes]
    if trouble == "a dead node":
        cluster.nodes[hurt].kill()
    else:
        nodes[deadlines].execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[hurt])
        nodes[hurt].execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[deadlines])
        nodes[hurt].execute_command(
            "MIGRATE", "127.0.0.1", cluster.nodes[deadlines].port, f"mcp_session:{waiting[0]}", 0, 1000
        )
    for turn in range(4):
        calls()
        await until(lambda turn=turn: sessions.pending == len(waiting) * (turn + 1))  # type: ignore[misc]
        await sessions.describe(waiting[0])
        await anyio.sleep(0.2)
        assert not sessions.degraded
        assert await sessions.describe(living[0]) is not None

    assert [record.getMessage()[:40] for record in caplog.records] == ["otel_mcp: a part of Redis cannot be used"]
    if trouble == "a dead node":
        await anyio.to_thread.run_sync(cluster.nodes[hurt].start)
    else:
        nodes[deadlines].execute_command("CLUSTER", "SETSLOT", slot, "STABLE")
        nodes[hurt].execute_command("CLUSTER", "SETSLOT", slot, "STABLE")
        key = f"mcp_session:{waiting[0]}"
        nodes[deadlines].execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[hurt])
        nodes[deadlines].execute_command("ASKING")
        nodes[deadlines].execute_command("DEL", key)
        nodes[deadlines].execute_command("CLUSTER", "SETSLOT", slot, "STABLE")
    await until(lambda: not sessions.pending)
    await until(lambda: len(caplog.records) == 2)
    assert "can be used again" in caplog.records[1].getMessage()
    state = await sessions.load(living[0])
    assert state is not None
    assert state.tool_call_count == 5
    await sessions.aclose()


@pytest.fixture
def sentinel() -> Iterator[Sentinel]:
    sentinel = Sentinel()
    yield sentinel
    sentinel.close()


async def test_a_failover_goes_on_with_what_was_replicated(sentinel: Sentinel) -> None:
    process, now = ProducerId(), time.time()
    store = RedisStore(settings(sentinel.url))
    await store.apply([flush(process, delta(3, of=facts(at=now), at=now))])
    with sentinel.master.client(single_connection_client=True) as client:
        # It waits for what its own connection wrote, and so for all before that.
        client.set("marker", 1)
        assert client.execute_command("WAIT", 1, 2000) == 1
    sent = [flush(process, delta(2, of=facts(at=now), at=now))]
    sentinel.master.kill()

    with pytest.raises(StoreDown):
        await store.apply(sent)
    await write(store, sent)

    assert await counts(store, ["abc"]) == [5]
    assert (await store.apply(sent))[0].duplicate
    await store.aclose()


def test_the_command_line_reads_a_cluster_and_ends_its_sessions(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for node in cluster.nodes:
        node.client().flushall()
    now = time.time()

    async def seed() -> None:
        store, process = RedisStore(settings(cluster.url)), ProducerId()
        known = [facts(f"s{number:02}", now, principal="91c2d0f3aa", opened=True) for number in range(30)]
        assert len(await write(store, [flush(process, delta(2, of=each, at=now)) for each in known])) == 30
        await store.aclose()

    anyio.run(seed)
    monkeypatch.setenv("OTEL_PYTHON_MCP_REDIS_URL", cluster.url)

    def cli(*arguments: str) -> tuple[int, str]:
        return run(arguments), capsys.readouterr().out

    code, out = cli("sessions", "-s", "svc")
    assert code == 0
    assert {line.split("\t")[2] for line in out.splitlines()} == {"91c2d0f3"}
    assert len(out.splitlines()) == 30
    assert len(cli("sessions", "-s", "svc", "--all", "-o", "name")[1].split()) == 30
    assert len(cli("sessions", "-s", "s*", "-o", "name")[1].split()) == 30
    assert cli("show", "s1")[0] == 1
    assert cli("show", "s07")[1].startswith("session\ts07\n")
    assert cli("tail", "-s", "svc", "--since", "1h", "-n", "60")[0] == 0
    assert cli("rm", "s07", "--yes") == (0, "s07\n")
    assert cli("show", "s07")[0] == 1
