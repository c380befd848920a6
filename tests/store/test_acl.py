"""The accounts that SECURITY.md describes: what is granted suffices for all that we do, and none can be left out."""

from __future__ import annotations

import asyncio
import contextlib
import io
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import anyio
import pytest
from redis import exceptions

from otel_mcp import guard
from otel_mcp.cli.app import run
from otel_mcp.cli.store import Reader
from otel_mcp.model.delta import EndedSession, OpenCall, SessionFacts
from otel_mcp.model.session import Refusal
from otel_mcp.model.state import SessionState
from otel_mcp.sessions.tables import CATALOGUES, leave, meet, put_in_flight
from otel_mcp.store.base import ProducerId, StoreDown
from otel_mcp.store.redis.store import RedisStore
from tests.store.test_cluster import Cluster, Sentinel
from tests.support.stores import Server, delta, facts, flush, settings

pytestmark = pytest.mark.anyio

GUIDE = (Path(__file__).resolve().parents[2] / "SECURITY.md").read_text(encoding="utf-8")


def granted(user: str) -> list[str]:
    """What the guide grants to an account, rule by rule."""
    found = re.search(rf"redis-cli ACL SETUSER ({user}(?:.*\\\n)*.*)", GUIDE)
    assert found is not None
    return [word.strip("'") for word in found[1].replace("\\\n", " ").split()[1:]]


PROCESS = ProducerId()
SERVICE, READER = granted("otel_mcp"), granted("otel_mcp_reader")
COMMANDS = [rule for rule in SERVICE if rule.startswith("+")]
PATTERNS = [rule for rule in SERVICE if rule.startswith("~")]


class Account:
    """A user of a server with given rules."""

    def __init__(self, server: Server, rules: Sequence[str]) -> None:
        self.server = server
        with server.client() as client:
            client.flushall()
            client.execute_command("SCRIPT", "FLUSH")
            client.execute_command("ACL", "SETUSER", "limited", "reset", *rules)
            client.execute_command("ACL", "LOG", "RESET")

    @property
    def url(self) -> str:
        return self.server.url.replace("//", "//limited:PASSWORD@")

    def refused(self) -> set[str]:
        """What the server has refused to this account: commands, and keys."""
        with self.server.client() as client:
            refused = {entry["object"] for entry in client.acl_log()}
        # The client library asks whether it may say its name, and goes on if not.
        return refused - {"client|setinfo", "client"}


async def use(store: RedisStore) -> None:
    """Everything that we ever ask of a store, each path of each script."""
    now, process, other = time.time(), PROCESS, ProducerId()
    await store.get_or_set("hash-key", "k", 0)
    await store.get_or_set("client:x", "abc", 60)
    await store.get("client:x")
    await store.get_or_set_successor("old", "abc")
    made = facts("abc", now, client_name="one")
    first = delta(3, of=made, at=now)
    first.touch_key = ("client:y", 60.0)
    first.facts.previous_id = "old"
    await store.apply([flush(process, first)])
    await store.apply([flush(process, delta(60, of=made, at=now))])
    renamed = facts("abc", now - 1, client_name="two")
    await store.apply([flush(other, delta(30, of=renamed, at=now))])
    for _ in range(60):
        await store.apply([flush(ProducerId(), delta(1, of=made, at=now))])
    await store.describe("abc")
    await store.describe("nobody")
    await leave(store, process)
    made.visitor = "somebody"
    await store.apply([flush(process, delta(1, of=made, at=now))])
    await store.cut([Refusal("abc", now + 1, None, served=None)])
    await store.back("somebody", now + 2, "next")
    state = await store.load("abc")
    assert state is not None
    await store.save(state)
    await store.save(SessionState(session_id="mine", attributes={"a": 1}))
    await store.apply([flush(process, delta(1, of=made, at=now, ended="client_delete"))])
    # One whose time is over: found by the sweep, and by a flush that comes before it.
    past = now - 100
    for session_id in ("swept", "back"):
        await store.apply([flush(process, delta(1, of=SessionFacts(session_id, past, 10.0), at=past))])
    await store.apply([flush(process, delta(1, of=SessionFacts("back", now, 10.0), at=now))])
    ended = await store.claim_expired(now, 10)
    for end, visitor in zip(ended, ("called", None), strict=False):
        end.facts.visitor, end.outcome = visitor, "worked"
    await store.visits([*ended, EndedSession(SessionFacts("", now, 1.0, visitor="looked"), "expired", now, 0, 0, 0)])
    await store.ack_ends(ended)
    await store.ack_ends(await store.claim_held(["abc"], now))
    await store.active()
    await put_in_flight(store, process, [OpenCall("export", now, "abc", "shop-0")])
    await put_in_flight(store, process, [], again=True)
    await store.callers("2026-11-30", ["somebody"])
    for number in range(CATALOGUES + 1):
        await meet(store, str(number), "{}")
    await store.delete("mine")
    await store.aclose()


async def adopt(server: Server, store: RedisStore) -> None:
    """A document whose stats are gone."""
    now, process = time.time(), ProducerId()
    await store.apply([flush(process, delta(1, of=facts("lost", now), at=now))])
    with server.client() as client:
        client.delete("{mcp_session:lost}:stats")
    await store.apply([flush(process, delta(1, of=facts("lost", now), at=now))])
    with server.client() as client:
        client.delete("{mcp_session:lost}:stats")
    await store.delete("lost")
    await store.aclose()


async def everything(account: Account) -> None:
    await use(RedisStore(settings(account.url), PROCESS))
    await adopt(account.server, RedisStore(settings(account.url)))


async def test_the_account_of_the_guide_can_do_everything(server: Server) -> None:
    account = Account(server, SERVICE)
    guard.failures.clear()

    await everything(account)

    assert account.refused() == set()
    assert guard.failures == {}


@pytest.mark.parametrize("rule", COMMANDS)
async def test_no_command_of_the_account_can_be_left_out(rule: str, server: Server) -> None:
    account = Account(server, [*SERVICE, rule.replace("+", "-")])

    with suppress(StoreDown, exceptions.RedisError, AssertionError):
        await use(RedisStore(settings(account.url), PROCESS))
    with suppress(StoreDown, exceptions.RedisError, AssertionError):
        await adopt(server, RedisStore(settings(account.url)))

    assert rule[1:] in account.refused()


@pytest.mark.parametrize("pattern", PATTERNS)
async def test_no_keys_of_the_account_can_be_left_out(pattern: str, server: Server) -> None:
    account = Account(server, [rule for rule in SERVICE if rule != pattern])

    with suppress(StoreDown, exceptions.RedisError, AssertionError):
        await everything(account)

    assert any(key.startswith(pattern[1:-1]) for key in account.refused())


@pytest.mark.parametrize(
    "command",
    [("FLUSHALL",), ("KEYS", "*"), ("CONFIG", "GET", "*"), ("GET", "somebody-else"), ("PUBLISH", "channel", "x")],
)
def test_the_account_can_do_nothing_else(command: tuple[str, ...], server: Server) -> None:
    Account(server, SERVICE)

    with (
        server.client(username="limited", password="PASSWORD") as client,
        pytest.raises(exceptions.NoPermissionError),
    ):
        client.execute_command(*command)


def read(url: str) -> list[tuple[int, str]]:
    """Everything that the command line reads, as exit codes and standard output."""
    done: list[tuple[int, str]] = []
    for command in (
        ["sessions"],
        ["sessions", "--all"],
        ["show", "ab"],
        ["tools"],
        ["tail", "--since", "1h", "-n", "1"],
    ):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            code = run([*command, "--service", "svc", "--redis-url", url])
        done.append((code, out.getvalue()))
    asyncio.run(_see_what_runs(url))
    return done


async def _see_what_runs(url: str) -> None:
    """What ``top`` asks besides, and ``show`` of calls that have begun tasks."""
    reader = Reader(settings(url))
    assert isinstance(await reader.in_flight(), list)
    assert isinstance(await reader.values("tasks"), list)
    await reader.aclose()


def test_an_account_that_may_only_read_suffices_for_the_command_line(server: Server) -> None:
    anyio.run(use, RedisStore(settings(server.patient_url), PROCESS))
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "limited", "reset", *READER)
        client.execute_command("ACL", "LOG", "RESET")

    found = read(server.url.replace("//", "//limited:PASSWORD@"))

    assert [(code, "abc" in out) for code, out in found[:3]] == [(0, False), (0, True), (0, True)]
    assert [code for code, _ in found[3:]] == [0, 0]
    with server.client() as client:
        refused = {entry["object"] for entry in client.acl_log()}
    assert refused == set()
    with (
        server.client(username="limited", password="PASSWORD") as client,
        pytest.raises(exceptions.NoPermissionError),
    ):
        client.set("mcp_session:abc", "x")
    with (
        server.client(username="limited", password="PASSWORD") as client,
        pytest.raises(exceptions.NoPermissionError),
    ):
        client.get("otel_mcp:svc:hash-key")


@pytest.mark.parametrize("rule", [rule for rule in READER if rule[0] in "+~"])
def test_nothing_of_what_the_reader_may_do_can_be_left_out(rule: str, server: Server) -> None:
    anyio.run(use, RedisStore(settings(server.patient_url), PROCESS))
    rules = [other for other in READER if other != rule]
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "limited", "reset", *rules)
        client.execute_command("ACL", "LOG", "RESET")

    read(server.url.replace("//", "//limited:PASSWORD@"))

    with server.client() as client:
        assert client.acl_log() != []


def also(where: str) -> list[str]:
    """What the guide adds for a deployment."""
    found = re.search(rf"{where}[^`]*`([^`]*)`", GUIDE)
    assert found is not None
    return found[1].split()


async def test_in_a_cluster_the_account_needs_two_commands_more() -> None:
    cluster = Cluster()
    try:
        for rules, suffices in (([*SERVICE, *also("In a cluster")], True), (SERVICE, False)):
            accounts = [Account(node, rules) for node in cluster.nodes]
            with suppress(StoreDown):
                await use(RedisStore(settings(cluster.url.replace("//", "//limited:PASSWORD@")), PROCESS))
            refused = {entry for account in accounts for entry in account.refused()}
            assert (refused == set()) == suffices, refused
    finally:
        cluster.close()


async def test_of_a_sentinel_the_account_asks_one_thing() -> None:
    sentinel = Sentinel()
    try:
        Account(sentinel.master, SERVICE)
        with sentinel.watcher.client() as client:
            client.execute_command(
                "ACL", "SETUSER", "asking", "on", ">SECRET", "resetchannels", "-@all", *also("A sentinel")
            )
        url = sentinel.url.replace("//", "//limited:PASSWORD@")
        await use(RedisStore(settings(f"{url}?sentinel_username=asking&sentinel_password=SECRET"), PROCESS))

        with sentinel.watcher.client() as client:
            assert {entry["object"] for entry in client.acl_log()} <= {"client|setinfo", "client"}
        with sentinel.master.client() as client:
            assert {entry["object"] for entry in client.acl_log()} <= {"client|setinfo", "client"}
    finally:
        sentinel.close()
