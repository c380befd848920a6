"""Clients that open a transport session for each call, and name no conversation: from the second on one session."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from otel_mcp import MCPMiddleware
from otel_mcp.sessions import endings
from tests.support import asgi
from tests.support.answers import Server
from tests.support.asgi import Headers
from tests.support.messages import MODERN_HEADERS, ask, call, initialize, legacy_headers, modern, notify
from tests.support.providers import Telemetry
from tests.support.stores import Server as Valkey
from tests.support.stores import delta, facts
from tests.unit.conftest import MakeRuntime
from tests.unit.identity.test_replicas import CHAT, Replicas
from tests.unit.identity.test_resolver import jwt

pytestmark = pytest.mark.anyio

ANN, BOB = jwt("ann"), jwt("bob")


class Clients(Replicas):
    """Clients like LangChain's, which two replicas serve."""

    opened = 0

    async def quiet(self) -> None:
        """Wait until what is asked in the background has been answered: a client takes longer for its next request."""
        for runtime in self.runtimes:
            later = runtime.resolver.reconciler.later
            for _ in range(3):
                await anyio.lowlevel.checkpoint()
            while later._tasks:  # pyright: ignore[reportPrivateUsage] # noqa: ASYNC110
                await anyio.sleep(0.001)

    async def visit(
        self,
        *path: int,
        who: Headers = (ANN,),
        calls: int = 1,
        listed: bool = False,
        owned: bool = True,
        meta: dict[str, Any] | None = None,
    ) -> str:
        """Shake hands, call and leave, each request served by the next replica of `path`; return the transport id."""
        places = [*path, *[path[-1]] * 8]
        session_id = await self.open(places[0], who=who, owned=owned)
        headers, own = [*legacy_headers(session_id), *who], session_id if owned else None
        await self.post(places[1], notify("notifications/initialized"), headers, session_id=own)
        if listed:
            await self.post(places[1], ask("tools/list", 5), headers, session_id=own)
        for number in range(calls):
            await self.call(session_id, places[1], number, who=who, owned=owned, meta=meta)
        await self.leave(session_id, places[2], who=who, owned=owned)
        return session_id

    async def open(self, replica: int = 0, *, who: Headers = (ANN,), owned: bool = True) -> str:
        """Shake hands; return the transport id."""
        Clients.opened += 1
        own = f"transport-{Clients.opened}" if owned else None
        opened = await self.post(replica, initialize(), list(who), session_id=own)
        await self.quiet()
        return opened.headers["mcp-session-id"]

    async def call(
        self,
        session_id: str,
        replica: int = 0,
        number: int = 0,
        *,
        who: Headers = (ANN,),
        owned: bool = True,
        **of: Any,
    ) -> str | None:
        """Call a tool; return the session that the answer names."""
        headers, own = [*legacy_headers(session_id), *who], session_id if owned else None
        answer = await self.post(replica, call(request_id=7 + number, **of), headers, session_id=own)
        return answer.session_id

    async def leave(
        self, session_id: str, replica: int = 0, *, who: Headers = (ANN,), owned: bool = True, known: bool = True
    ) -> None:
        """Close a transport session; one that is not `known` any more the server refuses."""
        server = Server(session_id=(session_id if known else "another") if owned else None)
        await asgi.delete(MCPMiddleware(server, self.runtimes[replica]), [*legacy_headers(session_id), *who])
        await self.quiet()

    def counts(self) -> dict[str, tuple[int, str, str | None]]:
        """Calls, source and how it ended, of each session."""
        return {
            session_id: (each["tool_call_count"], each["source"], each.get("ended", {}).get("reason"))
            for session_id, each in self.documents().items()
        }


@pytest.fixture
def clients(valkey: Valkey, make_runtime: MakeRuntime, telemetry: Telemetry, patient: None) -> Iterator[Clients]:
    made = Clients(valkey, make_runtime, telemetry)
    yield made
    made.redis.close()


PATHS = {"one replica": [(0,), (0,), (0,)], "two replicas": [(0,), (1,), (0,)]}
ACROSS = [(0, 0, 1), (1, 0, 0), (0, 1, 1)]
"""Replicas that serve the handshake, the call, and the goodbye."""


@pytest.mark.parametrize("owned", [True, False], ids=["stateful", "stateless"])
@pytest.mark.parametrize("paths", PATHS.values(), ids=PATHS)
async def test_three_calls_in_three_transport_sessions_are_one_session(
    clients: Clients, paths: list[tuple[int, ...]], owned: bool
) -> None:
    first, *_ = [await clients.visit(*path, owned=owned) for path in paths]
    await clients.settle()

    assert clients.counts() == {first: (3, "inferred", None)}
    (document,) = clients.documents().values()
    assert (document["request_count"], document["client_name"]) == (6, "unit-client")
    assert dict(clients.events("session.start")) == {first: 1}
    assert dict(clients.events("session.end")) == {}
    assert clients.redis.zrange("otel_mcp:unit:deadlines", 0, -1) == [first]


async def test_calls_that_other_replicas_serve_than_the_handshakes_are_one_session(clients: Clients) -> None:
    first = await clients.visit(*ACROSS[0], owned=False)
    await clients.eventually(lambda: clients.has(first))
    for path in ACROSS[1:]:
        await clients.visit(*path, owned=False)
    await clients.settle()

    assert clients.counts() == {first: (3, "inferred", None)}
    assert dict(clients.events("session.end")) == {}


async def test_a_session_goes_on_after_its_end_was_written(clients: Clients) -> None:
    first = await clients.visit(0)

    async def is_over() -> bool:
        return clients.counts() == {first: (1, "header", "client_delete")}

    await clients.eventually(is_over)
    assert dict(clients.events("session.end")) == {}
    await clients.visit(1)
    await clients.settle()

    assert clients.counts() == {first: (2, "inferred", None)}
    assert dict(clients.events("session.end")) == {}


async def test_two_credentials_are_two_sessions(clients: Clients) -> None:
    for number in range(6):
        await clients.visit(number % 2, who=[BOB if number // 2 % 2 else ANN])
    await clients.settle()

    assert sorted(clients.counts().values()) == [(2, "inferred", None), (4, "inferred", None)]


@pytest.mark.parametrize("owned", [True, False], ids=["stateful", "stateless"])
async def test_a_session_of_several_calls_that_waits_to_be_written_stays(clients: Clients, owned: bool) -> None:
    for calls in (3, 1):
        await clients.visit(0, calls=calls, owned=owned)
    await clients.settle()

    assert sorted(clients.counts().values()) == [(1, "header", "client_delete"), (3, "header", "client_delete")]


@pytest.mark.parametrize("hop", [(), (("via", "1.1 ingress"),)], ids=["an address of its own", "a proxy's address"])
async def test_without_a_credential_only_an_address_of_its_own_joins(clients: Clients, hop: Headers) -> None:
    for _ in range(3):
        await clients.visit(0, who=hop)
    await clients.settle()

    alone = {(1, "header", "client_delete")}
    assert set(clients.counts().values()) == (alone if hop else {(3, "inferred_weak", None)})


async def test_where_nothing_may_be_inferred_each_transport_session_is_one(
    make_runtime: MakeRuntime, valkey: Valkey, telemetry: Telemetry
) -> None:
    clients = Clients(valkey, make_runtime, telemetry, session_sources="conversation,header")
    for _ in range(3):
        await clients.visit(0)
    await clients.settle()

    assert list(clients.counts().values()) == [(1, "header", "client_delete")] * 3


async def test_who_comes_back_after_the_idle_gap_has_another_session(
    make_runtime: MakeRuntime, valkey: Valkey, telemetry: Telemetry
) -> None:
    clients = Clients(valkey, make_runtime, telemetry, session_idle_gap=60.0)
    for _ in range(2):
        await clients.visit(0)
    for key in clients.redis.keys("*:calls:*"):
        assert 0 < clients.redis.pttl(key) <= 60_000
        clients.redis.delete(key)  # As if the gap were over.
    for _ in range(2):
        await clients.visit(1)
    await clients.settle()

    assert [count for count, _, _ in clients.counts().values()] == [2, 2]


async def test_a_session_whose_end_was_reported_is_continued_by_another(
    clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await clients.visit(0)
    await clients.settle()  # Which reports what it holds.
    second, _ = await clients.visit(1), await clients.visit(0)
    await clients.settle()

    assert clients.counts() == {first: (1, "header", "client_delete"), second: (2, "inferred", None)}
    assert clients.documents()[second]["previous_id"] == first
    assert dict(clients.events("session.end")) == {first: 1}


async def test_calls_after_a_delete_are_another_session(clients: Clients) -> None:
    first, _ = await clients.visit(0), await clients.visit(0)
    await clients.runtimes[1].sessions.delete(first)
    for _ in range(4):
        await clients.visit(0)
        await clients.runtimes[0].sessions.flush()
    await clients.settle()

    # Under the id of a session that an operator has deleted, what comes later is another one.
    assert clients.counts() == {first: (4, "inferred", None)}
    assert dict(clients.events("session.start")) == {first: 2}
    assert dict(clients.events("session.end")) == {first: 1}


async def test_what_the_store_has_ended_is_not_gone_on_with(clients: Clients) -> None:
    first, _ = await clients.visit(0), await clients.visit(0)
    # As if another process had found it over, and reported it.
    end = delta(of=facts(first, time.time(), principal=None), at=time.time(), ended="server_closed")
    stats = f"{{mcp_session:{first}}}:stats"
    end.facts.principal = clients.redis.hget(stats, "u")
    clients.runtimes[1].sessions.submit(end)
    await clients.runtimes[1].sessions.flush()
    for _ in range(4):
        await clients.visit(0)
        await clients.runtimes[0].sessions.flush()
    await clients.settle()

    over = clients.counts().pop(first)
    others = [count for session_id, (count, _, _) in clients.counts().items() if session_id != first]
    assert over[2] == "server_closed"
    assert over[0] + sum(others) == 6
    assert len(others) == 1
    assert sum(others) >= 2


async def test_a_session_of_several_calls_stays_one_of_its_own(clients: Clients) -> None:
    long = await clients.visit(0, calls=3)
    short = await clients.visit(0)
    await clients.settle()

    assert clients.counts() == {long: (3, "header", "client_delete"), short: (1, "header", "client_delete")}


PLACES = [(0, 0, True), (0, 0, False), (0, 1, False)]
"""Replicas that serve the handshakes, and all else; whether the server keeps sessions."""


@pytest.mark.parametrize(("first", "then", "owned"), PLACES, ids=["stateful", "stateless", "stateless, two replicas"])
async def test_sessions_of_several_calls_after_a_short_one_are_each_their_own(
    clients: Clients, first: int, then: int, owned: bool
) -> None:
    short = await clients.visit(first, then, owned=owned)
    await clients.eventually(lambda: clients.has(short))
    long = [await clients.visit(first, then, calls=5, owned=owned) for _ in range(3)]
    await clients.settle()

    # What a client does before its second call looks like a session of one call, once.
    assert clients.counts() == {
        short: (2, "inferred", None),
        **dict.fromkeys(long, (5, "header", "client_delete")),
        long[0]: (4, "header", "client_delete"),
    }
    document = clients.documents()[long[0]]
    assert first != then or (document["client_name"], document.get("previous_id")) == ("unit-client", None)
    assert dict(clients.events("session.end")) == dict.fromkeys(long, 1)
    assert dict(clients.events("session.start")) == dict.fromkeys([short, *long], 1)


@pytest.mark.parametrize("owned", [True, False], ids=["stateful", "stateless"])
async def test_sessions_open_at_the_same_time_stay_apart(clients: Clients, owned: bool) -> None:
    short = await clients.visit(0, owned=owned)
    one, other = await clients.open(owned=owned), await clients.open(owned=owned)
    named = [[await clients.call(each, 0, number, owned=owned) for each in (one, other)] for number in range(5)]
    for each in (one, other):
        await clients.leave(each, owned=owned)
    await clients.settle()

    ended = "header", "client_delete"
    assert named == [[short, other], *[[one, other]] * 4]
    assert clients.counts() == {short: (2, "inferred", None), one: (4, *ended), other: (5, *ended)}


@pytest.mark.parametrize("owned", [True, False], ids=["stateful", "stateless"])
async def test_calls_at_the_same_time_leave_the_session_that_goes_on(clients: Clients, owned: bool) -> None:
    short = await clients.visit(0, owned=owned)
    one, other = await clients.open(owned=owned), await clients.open(owned=owned)
    for each in (one, other):
        await clients.call(each, owned=owned)
    for each in (one, other):
        await clients.leave(each, owned=owned)
    await clients.visit(0, owned=owned)
    await clients.settle()

    assert clients.counts() == {short: (3, "inferred", None), other: (1, "header", "client_delete")}


async def test_a_client_that_makes_one_call_again_is_joined_again(clients: Clients) -> None:
    before, long = await clients.visit(0), await clients.visit(0, calls=3)
    after = [await clients.visit(number % 2) for number in range(3)]
    await clients.settle()

    one = "inferred", None
    assert clients.counts() == {before: (2, *one), long: (2, "header", "client_delete"), after[0]: (3, *one)}


async def test_refusals_of_closed_ids_end_and_cut_nothing(clients: Clients) -> None:
    first, second = await clients.visit(0), await clients.visit(0)
    for replica in range(2):
        for closed in (first, second):
            await clients.leave(closed, replica, known=False)
            app = MCPMiddleware(Server(session_id="another"), clients.runtimes[replica])
            assert (await asgi.get(app, [*legacy_headers(closed), ANN])).status == 404
        await clients.runtimes[replica].sessions.flush()
    await clients.visit(0)
    await clients.settle()

    assert clients.counts() == {first: (3, "inferred", None)}
    assert not clients.events("session.interrupted")
    assert not clients.events("session.end")


async def test_asking_for_the_tools_is_replaced_by_the_call_that_follows(clients: Clients) -> None:
    listing = await clients.visit(0, calls=0, listed=True)
    calls = [await clients.visit(number % 2) for number in range(3)]
    again = await clients.visit(0, calls=0, listed=True)
    await clients.settle()

    assert clients.counts() == {listing: (0, "header", "replaced"), calls[0]: (3, "inferred", None)}
    assert again not in clients.documents()
    assert dict(clients.events("session.end")) == {listing: 1}


async def test_a_conversation_is_joined_by_its_id_alone(clients: Clients) -> None:
    for _ in range(2):
        await clients.visit(0, meta=CHAT)
    await clients.visit(0)
    await clients.settle()

    assert sorted(clients.counts().values()) == [(1, "header", "client_delete"), (2, "conversation", None)]


async def test_monitors_that_only_ask_for_the_tools_are_a_session_each(clients: Clients) -> None:
    for _ in range(3):
        await clients.visit(0, calls=0, listed=True)
    await clients.settle()

    assert list(clients.counts().values()) == [(0, "header", "client_delete")] * 3
    assert sum(clients.events("session.end").values()) == 3


async def test_the_brief_end_is_reported_when_nobody_comes_back(
    clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endings, "TRAVEL", 0.0)
    for runtime in clients.runtimes:
        runtime.sessions._flusher.endings._brief = 0.2  # pyright: ignore[reportPrivateUsage]
    first = await clients.visit(0)

    async def is_reported() -> bool:
        return clients.documents()[first].get("outcome") == "worked"

    await clients.eventually(is_reported)
    assert dict(clients.events("session.end")) == {first: 1}


async def test_the_answers_name_the_session_that_goes_on(clients: Clients) -> None:
    first = await clients.visit(0)
    opened = await clients.post(0, initialize(), [ANN], session_id="later")
    await clients.quiet()

    answer = await clients.post(0, call(), [*legacy_headers("later"), ANN], session_id="later")
    other = await clients.post(0, modern(), [*MODERN_HEADERS, ANN])

    assert (opened.session_id, answer.session_id) == ("later", first)
    assert other.session_id not in (first, "later")
