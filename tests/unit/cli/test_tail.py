"""Calls as they land: each once, of all replicas, however often Redis is asked; ``tail`` and ``top``."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import pytest

from otel_mcp.cli import following, store
from otel_mcp.cli.following import Follower, Recent
from otel_mcp.cli.store import Reader
from otel_mcp.cli.terminal import Terminal
from otel_mcp.model.delta import Flush, OpenCall, SessionDelta
from otel_mcp.sessions.tables import put_in_flight
from otel_mcp.settings import Settings
from otel_mcp.store.base import ProducerId, StoreDown
from otel_mcp.store.redis.store import RedisStore
from tests.unit.cli.conftest import NOW, Cli
from tests.unit.cli.stories import call, session, shop, write

T = TypeVar("T")


class Replicas:
    """Two replicas that write, and somebody who follows them, on one loop."""

    def __init__(self, url: str) -> None:
        self.settings = Settings.model_validate({"redis_url": url, "service_name": "shop"})
        self._loop = asyncio.new_event_loop()
        self._replicas = [(process, RedisStore(self.settings, process)) for process in (ProducerId(), ProducerId())]
        self._readers: list[Reader] = []

    def follow(self, since: float = 0.0, *, ended: bool = False, **other: Any) -> Follower:
        settings = self.settings.model_copy(update=other)
        self._readers.append(Reader(settings))
        return Follower(self._readers[-1], settings, since, ended=ended)

    def look(self, follower: Follower) -> list[tuple[str, str]]:
        """What has landed since: sessions and tools."""
        landed = self.run(follower.look)
        return [(each.document.session_id, each.call.tool) for each in landed]

    def write(self, *deltas: SessionDelta, replica: int = 0) -> None:
        process, store = self._replicas[replica]
        flushes = [Flush(delta, process.token, process.next_sequence()) for delta in deltas]
        answers = self.run(lambda: store.apply(flushes))
        assert all(answer.refused is None and answer.retry is None for answer in answers)

    def hang(self, *calls: OpenCall, replica: int = 0) -> None:
        process, store = self._replicas[replica]
        self.run(lambda: put_in_flight(store, process, calls))

    def run(self, work: Callable[[], Awaitable[T]]) -> T:
        async def wait() -> T:
            return await work()

        return self._loop.run_until_complete(wait())

    def close(self) -> None:
        for part in (*(replica for _, replica in self._replicas), *self._readers):
            self.run(part.aclose)
        self._loop.close()


@pytest.fixture
def replicas(redis_url: str) -> Iterator[Replicas]:
    made = Replicas(redis_url)
    yield made
    made.close()


def one(session_id: str, *tools: str, at: float | None = None, **known: Any) -> SessionDelta:
    """A session with calls of these tools, a millisecond apart."""
    at = time.time() if at is None else at
    return session(session_id, [call(tool, at + n / 1000, 0.0) for n, tool in enumerate(tools)], began=at, **known)


def test_each_call_is_found_once_whichever_replica_wrote_it(replicas: Replicas) -> None:
    follower = replicas.follow()
    replicas.write(one("a", "old", at=time.time() - 30))

    assert replicas.look(follower) == []
    replicas.write(one("a", "one", "two"))
    replicas.write(one("a", "three"), one("b", "four"), replica=1)
    assert sorted(replicas.look(follower)) == [("a", "one"), ("a", "three"), ("a", "two"), ("b", "four")]
    assert replicas.look(follower) == []
    replicas.write(one("b", "five"))
    assert replicas.look(follower) == [("b", "five")]
    assert follower.missed == 0


def test_calls_before_are_found_where_they_are_asked_for(replicas: Replicas) -> None:
    now = time.time()
    replicas.write(one("a", "hour", at=now - 3000), one("b", "minute", at=now - 50), one("b", "now", at=now))

    assert replicas.look(replicas.follow()) == []
    assert [tool for _, tool in replicas.look(replicas.follow(since=120))] == ["minute", "now"]
    assert [tool for _, tool in replicas.look(replicas.follow(since=3400))] == ["hour", "minute", "now"]


def test_sessions_with_other_limits_than_ours_are_followed_as_well(replicas: Replicas) -> None:
    for limit in (60.0, 7200.0, 86_400.0):
        replicas.write(one(f"first-{limit}", "before", at=time.time() - 20, limit=limit))
    follower = replicas.follow()
    assert replicas.look(follower) == []

    for limit in (60.0, 1800.0, 3600.0, 7200.0, 86_400.0):
        replicas.write(one(f"s-{limit}", "call", limit=limit))

    assert len(replicas.look(follower)) == 5


def close(session_id: str, *tools: str) -> SessionDelta:
    """The last calls of a session, and that its client has closed it."""
    delta = one(session_id, *tools)
    delta.ended = (time.time(), "client_delete")
    return delta


@pytest.mark.parametrize("is_reported", [False, True])
def test_last_calls_of_closed_sessions_are_found_once(is_reported: bool, replicas: Replicas, redis: Any) -> None:
    follower = replicas.follow()
    replicas.write(one("a", "one"))
    replicas.look(follower)

    replicas.write(close("a", "last"), close("brief", "only"))
    if is_reported:
        # As the sweep leaves it: only what was followed can be known.
        redis.zrem("otel_mcp:shop:deadlines", "a", "brief")

    assert set(replicas.look(follower)) == {("a", "last")} | (set() if is_reported else {("brief", "only")})
    assert replicas.look(follower) == []


def test_since_finds_calls_of_sessions_that_had_ended(replicas: Replicas, redis: Any) -> None:
    replicas.write(close("a", "last"), close("claimed", "last"), one("b", "live"))
    redis.zrem("otel_mcp:shop:deadlines", "a")
    follower, scanning = replicas.follow(since=60), replicas.follow(since=60, ended=True)

    assert sorted(replicas.look(follower)) == [("b", "live"), ("claimed", "last")]
    assert sorted(replicas.look(scanning)) == [("a", "last"), ("b", "live"), ("claimed", "last")]
    assert replicas.look(scanning) == []


def test_more_calls_than_a_document_holds_are_counted_as_missed(replicas: Replicas) -> None:
    follower = replicas.follow()
    replicas.write(one("a", "first"))
    replicas.look(follower)

    for _ in range(3):
        replicas.write(one("a", *["many"] * 20))

    assert len(replicas.look(follower)) + follower.missed == 60
    assert follower.missed > 0


def test_a_redis_that_lost_everything_is_followed_on(replicas: Replicas, redis: Any) -> None:
    follower = replicas.follow()
    replicas.write(one("a", "one", "two", "three"))
    assert len(replicas.look(follower)) == 3

    redis.flushdb()
    replicas.write(one("a", "four"))

    assert replicas.look(follower) == [("a", "four")]


def test_sessions_that_were_forgotten_are_not_shown_again(replicas: Replicas, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "_MAX_KNOWN", 1)
    now = time.time()
    follower = replicas.follow(since=500)
    replicas.write(one("a", "old", at=now - 400), one("b", "other", at=now - 300))
    assert replicas.look(follower) == [("a", "old"), ("b", "other")]

    replicas.write(one("a", "new", at=now))

    assert replicas.look(follower) == [("a", "new")]


def test_what_is_too_much_for_one_look_is_left_to_the_next(replicas: Replicas, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "_MAX_DOCUMENTS", 4)
    monkeypatch.setattr(store, "_DOCUMENTS_PER_MGET", 3)
    follower = replicas.follow(since=60)
    replicas.write(*(one(f"s{number}", "call") for number in range(10)))

    looks = [len(replicas.look(follower)) for _ in range(4)]

    assert looks == [4, 4, 2, 0]


def commands(redis: Any) -> set[str]:
    used = {name.removeprefix("cmdstat_") for name in redis.info("commandstats")}
    return used - {"info", "select", "config|resetstat", "client|setinfo"}


def test_redis_5_knows_the_commands_of_a_first_look(replicas: Replicas, redis: Any) -> None:
    replicas.write(one("a", "one"))
    redis.config_resetstat()

    replicas.look(replicas.follow(since=60))

    assert commands(redis) == {"zcard", "zrange", "zrevrangebyscore", "get"}


def test_two_commands_a_look_are_enough_where_nothing_happens(replicas: Replicas, redis: Any) -> None:
    follower = replicas.follow()
    replicas.write(one("a", "one"))
    replicas.look(follower)
    redis.config_resetstat()

    replicas.look(follower)

    assert commands(redis) == {"zrevrangebyscore"}


def test_tail_writes_what_is_asked_for(cli: Cli, redis_url: str) -> None:
    write(redis_url, shop(NOW))

    piped = cli("tail", "--since", "1h", "-n", "15")
    assert piped.code == 0
    assert len(piped.rows) == 15
    refund = ["om1.uUrTOZUz", "cursor 3.4", "refund", "wrong", "0.012000", "180", "-32602"]
    assert piped.rows[1][1:] == [*refund, "-", "-", "-"]
    failures = cli("tail", "--since", "1h", "--errors", "-n", "3").rows
    assert [row[3:5] for row in failures] == [["refund", "wrong"], ["refund", "wrong"], ["ship", "failed"]]
    assert cli("tail", "--since", "1h", "--tool", "re*", "--client", "CURS", "-n", "3").rows[2][4] == "ok"
    (line,) = cli("tail", "--since", "1h", "-o", "jsonl", "-n", "1").out.splitlines()
    shown = json.loads(line)
    assert (shown["schema"], shown["session_id"], shown["tool"]) == ("otel-mcp/call/1", "om1.uUrTOZUz", "find_orders")
    seen = cli("tail", "--since", "1h", "-n", "15", columns=120).out
    colors = {row.split("  ")[1].partition("m")[0] for row in seen.splitlines()}
    assert len(colors) == 2


def test_calls_that_wait_or_went_on_as_a_task_say_so(cli: Cli, redis_url: str) -> None:
    calls = [
        call("search", NOW - 9),
        call("refund", NOW - 8, waiting="d" * 16),
        call("export", NOW - 7, task="e" * 16),
        call("order", NOW - 200, 0.041, rounds=3, input_wait=129.9),
    ]
    write(redis_url, [session("s", calls, began=NOW - 300)])

    shown = cli("tail", "--since", "1h", "-n", "4", columns=120, NO_COLOR="1").out.splitlines()
    programs = [json.loads(line) for line in cli("tail", "--since", "1h", "-n", "4", "-o", "jsonl").out.splitlines()]

    assert {line.split("  ")[3]: line.split("  ")[7:] for line in shown} == {
        "search": [],
        "refund": ["waits for input"],
        "export": ["went on as a task"],
        "order": ["3 rounds, 2 min 10 s waiting for input, 41 ms ours"],
    }
    fields = ("rounds", "input_wait", "waiting", "task")
    assert {each["tool"]: [each[name] for name in fields] for each in programs} == {
        "search": [1, 0.0, False, None],
        "refund": [1, 0.0, True, None],
        "export": [1, 0.0, False, "e" * 16],
        "order": [3, 129.9, False, None],
    }
    assert [each["notes"] for each in programs if each["tool"] == "refund"] == [["waits for input"]]


def test_findings_are_marked_where_calls_land(replicas: Replicas, cli: Cli, redis: Any) -> None:
    now = time.time()
    follower, recent = replicas.follow(since=300), Recent()
    replicas.write(one("circling", "search", at=now - 1), one("steady", "search", at=now - 1))
    known = json.loads(redis.get("mcp_session:circling"))
    redis.set("mcp_session:circling", json.dumps({**known, "findings": ["looped"]}))

    shown = cli("tail", "--since", "1h", "-n", "2", columns=120, at=now, NO_COLOR="1").out.splitlines()
    recent.add(replicas.run(follower.look), now)

    assert {line.split("  ")[1]: line.split("  ")[-1] for line in shown} == {"circling": "looped", "steady": "267 B"}
    assert {line.split()[0]: line.split("  ")[-1].strip() for line in recent.lines(Terminal(), "", now, 24)[3:5]} == {
        "circling": "live, looped",
        "steady": "live",
    }


def test_top_needs_a_terminal(cli: Cli) -> None:
    result = cli("top")

    assert (result.code, result.out) == (2, "")
    assert "terminal" in result.err


def test_top_shows_the_busiest_sessions_and_tools_within_the_screen(replicas: Replicas, cli: Cli) -> None:
    now = time.time()
    follower, recent = replicas.follow(since=300), Recent()
    replicas.write(*(one(f"s{number}", *["call"] * (number + 1), at=now - 1) for number in range(30)))
    replicas.write(one("old", "call", at=now - 290))
    wrong = replace(call("refund", now - 1), failure="tool", error_type="tool_error")
    replicas.write(session("s9", [wrong], began=now - 2))
    recent.add(replicas.run(follower.look), now)
    terminal = Terminal()
    terminal.width = 80

    lines = recent.lines(terminal, "shop @ here", now, 24)

    assert lines[0].startswith("shop @ here   ")
    assert lines[2].startswith("SESSION")
    assert lines[3].split()[0] == "s29"
    assert len(lines) <= 24
    assert any(line.startswith("refund") for line in lines)
    recent.add([], now + 20)
    assert not any(line.startswith("old") for line in recent.lines(terminal, "", now + 20, 100))
    recent.add([], now + 400)
    assert "0.0 calls/s" in recent.lines(terminal, "t", now + 400, 24)[0]


def test_top_shows_the_oldest_calls_in_flight_of_all_replicas_above_all(
    replicas: Replicas, cli: Cli, redis: Any
) -> None:
    now = time.time()
    reader, recent, terminal = Reader(replicas.settings), Recent(), Terminal()
    replicas.write(*(one(f"s{number}", "call", at=now - 1) for number in range(30)))
    recent.add(replicas.run(replicas.follow(since=300).look), now)
    replicas.hang(OpenCall("export", now - 725.5, "s1", "shop-0"), OpenCall("sum", now - 9.5, None, "shop-0"))
    replicas.hang(*(OpenCall(f"query{n}", now - 70, "s2", "shop-1") for n in range(5)), replica=1)
    redis.hset("otel_mcp:shop:in_flight", "odd", b'1 [{"tool_name": 7}, 3, {"started_at": 5.0}]')
    redis.hset("otel_mcp:shop:in_flight", "odder", b"\xff")
    died = b'%d [{"tool_name": "export", "started_at": 5.0}]' % ((now - 12) * 1e6)
    redis.hset("otel_mcp:shop:in_flight", "died", died)

    recent.open = replicas.run(reader.in_flight)
    replicas.run(reader.aclose)
    terminal.width = 80
    lines = recent.lines(terminal, "shop @ here", now, 24)

    assert [call.tool for call in recent.open] == ["export", *(f"query{n}" for n in range(5)), "sum"]
    assert [line.split() for line in lines[2:4]] == [
        ["IN", "FLIGHT", "FOR", "SESSION", "PROCESS"],
        ["export", "12m", "s1", "shop-0"],
    ]
    assert (len([line for line in lines if line.startswith("query")]), len(lines) <= 24) == (4, True)


def test_calls_in_flight_are_left_out_where_the_account_may_not_ask(
    replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Reader(replicas.settings)
    for denied in (True, False):

        async def refuse(*_: object, denied: bool = denied) -> list[Any]:
            raise StoreDown("NoPermissionError", denied=denied)

        monkeypatch.setattr(store.Connection, "run_all", refuse)
        if denied:
            assert replicas.run(reader.in_flight) == []
        else:
            with pytest.raises(StoreDown):
                replicas.run(reader.in_flight)
