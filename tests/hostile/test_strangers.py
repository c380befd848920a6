"""Ann has a session, Bob knows its id and asks a replica that has not met it: nothing of hers changes.

Two replicas, in every order, on fakeredis and on Valkey: who may touch a session is decided where the session is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, cast

import fakeredis
import pytest

from otel_mcp import MCPMiddleware
from otel_mcp.store.redis import store as redis_store
from otel_mcp.store.redis.client import Client
from otel_mcp.types import Message, Receive, Send
from tests.hostile.test_takeover import ANN, BOB, OPAQUE
from tests.support.answers import Server, error, result
from tests.support.asgi import Reply, delete, get, post, read, respond
from tests.support.messages import MODERN_HEADERS, ask, call, initialize, legacy_headers, modern, notify
from tests.support.providers import Telemetry
from tests.support.stores import Server as Valkey
from tests.unit.conftest import MakeRuntime
from tests.unit.identity.test_replicas import Replicas

pytestmark = pytest.mark.anyio

STRANGERS = [[BOB], [OPAQUE], []]
DEADLINES = "otel_mcp:unit:deadlines"
STATUSES = (200, 202, 204, 400, 401, 403, 404, 405, 429, 500)


class Fake:
    """A store without a process, which replicas in one process can share."""

    url = "redis://fake"

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._server = fakeredis.FakeServer()
        monkeypatch.setattr(redis_store, "connect", lambda _url: self._connected())

    def _connected(self) -> Client:
        return cast(Client, fakeredis.FakeAsyncRedis(server=self._server))

    def client(self, **options: Any) -> Any:
        return fakeredis.FakeRedis(server=self._server, **options)


@pytest.fixture(params=["fakeredis", "valkey"])
def replicas(
    request: pytest.FixtureRequest,
    make_runtime: MakeRuntime,
    telemetry: Telemetry,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Replicas]:
    store: Any = Fake(monkeypatch) if request.param == "fakeredis" else request.getfixturevalue("valkey")
    made = Replicas(store, make_runtime, telemetry)
    yield made
    made.redis.close()


class Refusing:
    """A server of which one answer is known beforehand."""

    def __init__(self, status: int, own: str | None) -> None:
        self.status = status
        self.own = [] if own is None else [("mcp-session-id", own)]

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        body = await read(receive)
        asked = json.loads(body).get("id") if body else None
        failed = self.status >= 400 or scope["method"] != "POST"
        await respond(send, error(-32600, asked) if failed else result(asked), self.status, self.own)


async def everything_that_a_stranger_can_do(replicas: Replicas, at: int, mine: str, own: str | None) -> set[str | None]:
    """The sessions in which the stranger's requests were."""
    runtime, seen = replicas.runtimes[at], set[str | None]()
    chat = {"openai/session": "v1/another", "openai/subject": "v1/person"}
    for who in STRANGERS:
        named, asides = [*legacy_headers(mine), *who], [("x-session-id", mine), *who]
        claiming = [("baggage", f"session.id={mine},gen_ai.conversation.id={mine}"), *who]
        replies: list[Reply] = []
        for status in STATUSES:
            app = MCPMiddleware(Refusing(status, own), runtime)
            replies += [await post(app, message, named) for message in (call(), ask("tools/list"), call(meta=chat))]
            replies += [await request(app, headers) for request in (get, delete) for headers in (named, asides)]
            await post(app, notify("notifications/cancelled", requestId=1), named)
        app = MCPMiddleware(Server(session_id=own), runtime)
        replies += [
            await post(app, initialize(name="stranger"), named),
            await post(app, call(), asides),
            await post(app, call(), claiming),
            await post(app, call(meta={"baggage": f"session.id={mine}"}), named),
            await post(app, modern(), [*MODERN_HEADERS, *asides]),
            await post(app, modern(), [*MODERN_HEADERS, *claiming]),
        ]
        seen |= {reply.session_id for reply in replies if reply.status < 400}
    return seen


async def begin(replicas: Replicas, own: str | None) -> str:
    """Ann shakes hands with the first replica and calls a tool."""
    opened = await replicas.post(0, initialize(name="anns-client"), [ANN], session_id=own)
    mine = opened.headers["mcp-session-id"]
    await replicas.post(0, call(), [*legacy_headers(mine), ANN], session_id=own)
    return mine


async def untouched(replicas: Replicas, mine: str, own: str | None, *, calls: int) -> None:
    """She goes on with either replica, and all of it is one session, with what is hers alone."""
    for replica in (1, 0, 1):
        reply = await replicas.post(replica, call(), [*legacy_headers(mine), ANN], session_id=own)
        assert reply.session_id == mine
    await replicas.settle()
    document = replicas.documents()[mine]
    assert (document["tool_call_count"], document["request_count"]) == (calls + 3, calls + 4)
    assert (document["client_name"], document["error_count"]) == ("anns-client", 0)
    assert "ended" not in document
    assert "previous_id" not in document
    assert replicas.redis.get(f"{{mcp_session:{mine}}}:next:unit") is None
    assert replicas.events("session.start")[mine] == 1
    assert replicas.events("session.end")[mine] == 0
    assert not any(count for _, count in replicas.telemetry.points("otel_mcp.store.dropped"))


@pytest.mark.parametrize("own", [None, "own"], ids=["stateless", "stateful"])
@pytest.mark.parametrize("at", [0, 1], ids=["her replica", "the other replica"])
async def test_a_stranger_who_knows_the_id_changes_nothing_in_a_written_session(
    replicas: Replicas, at: int, own: str | None
) -> None:
    mine = await begin(replicas, own)
    await replicas.eventually(lambda: replicas.has(mine))
    await replicas.settle()
    before, due = replicas.documents()[mine], replicas.redis.zscore(DEADLINES, mine)

    seen = await everything_that_a_stranger_can_do(replicas, at, mine, own)
    await replicas.settle()

    if own is None or at == 0:  # Else it is for the store to say, which may be late.
        assert mine not in seen
    assert replicas.documents()[mine] == before
    assert replicas.redis.zscore(DEADLINES, mine) == due
    await untouched(replicas, mine, own, calls=1)


async def is_told(replicas: Replicas, mine: str) -> bool:
    return replicas.redis.hget(f"{{mcp_session:{mine}}}:stats", "k") is not None


@pytest.mark.parametrize("own", [None, "own"], ids=["stateless", "stateful"])
@pytest.mark.parametrize("at", [0, 1], ids=["her replica", "the other replica"])
async def test_a_stranger_who_comes_before_a_session_is_written_changes_nothing(
    replicas: Replicas, at: int, own: str | None
) -> None:
    mine = await begin(replicas, own)
    # An id of ours says whose it is; another is in the store by the time that a client knows it.
    if own is not None:
        await replicas.eventually(lambda: is_told(replicas, mine))

    seen = await everything_that_a_stranger_can_do(replicas, at, mine, own)
    await replicas.settle()

    if own is None or at == 0:
        assert mine not in seen
    await untouched(replicas, mine, own, calls=1)


@pytest.mark.parametrize("own", [None, "own"], ids=["stateless", "stateful"])
@pytest.mark.parametrize("at", [0, 1], ids=["her replica", "the other replica"])
async def test_a_stranger_naming_an_ended_session_gets_neither_it_nor_its_successor(
    replicas: Replicas, at: int, own: str | None
) -> None:
    mine = await begin(replicas, own)
    await replicas.eventually(lambda: replicas.has(mine))
    await delete(MCPMiddleware(Refusing(200, own), replicas.runtimes[0]), [*legacy_headers(mine), ANN])
    await replicas.settle()
    before = replicas.documents()[mine]

    seen = await everything_that_a_stranger_can_do(replicas, at, mine, own)
    await replicas.settle()
    assert replicas.documents()[mine] == before
    assert before["ended"]["reason"] == "client_delete"
    if own is None:
        assert mine not in seen
        followed = {
            (await replicas.post(replica, call(), [*legacy_headers(mine), ANN])).session_id for replica in (1 - at, at)
        }
        await replicas.settle()
        assert len(followed) == 1
        assert seen.isdisjoint(followed)
        assert replicas.documents()[followed.pop() or ""]["previous_id"] == mine
    assert replicas.events("session.end")[mine] == 1


async def written_before_an_outage(replicas: Replicas, request: pytest.FixtureRequest) -> str:
    """Begin a session at the first replica while both can use the store; returns its id."""
    if "fakeredis" in request.node.name:
        pytest.skip("fakeredis cannot hang; the same test runs on Valkey")
    await replicas.post(1, modern(), [*MODERN_HEADERS, OPAQUE])  # By now it has the hash key of all replicas.
    mine = await begin(replicas, "own")
    await replicas.eventually(lambda: replicas.has(mine))
    await replicas.settle()
    return mine


async def test_a_stranger_admitted_during_an_outage_is_moved_out_after_it(
    replicas: Replicas, valkey: Valkey, request: pytest.FixtureRequest
) -> None:
    """The store says nothing, so the id is the best there is; what came meanwhile is the caller's own in the end."""
    mine = await written_before_an_outage(replicas, request)
    before = replicas.documents()[mine]
    bobs = [*legacy_headers(mine), BOB]

    valkey.hang()
    blindly = await replicas.post(1, call(), bobs, session_id="own")
    valkey.resume()

    async def moved() -> bool:
        await replicas.settle()
        return sum(session_id.startswith("p_") for session_id in replicas.documents()) == 1

    await replicas.eventually(moved)
    known = await replicas.post(1, call(), bobs, session_id="own")
    await replicas.settle()

    assert blindly.session_id == mine != known.session_id
    assert replicas.documents()[mine] == before
    assert replicas.documents()[known.session_id or ""]["tool_call_count"] == 2
    await untouched(replicas, mine, "own", calls=1)


async def test_a_strangers_delayed_delete_ends_nothing_that_comes_meanwhile(
    replicas: Replicas, valkey: Valkey, request: pytest.FixtureRequest
) -> None:
    mine = await written_before_an_outage(replicas, request)

    valkey.hang()
    for who in STRANGERS:
        await delete(MCPMiddleware(Refusing(200, "own"), replicas.runtimes[1]), [*legacy_headers(mine), *who])
    replicas.runtimes[1].exchanges.close()  # Their ends are due.
    await replicas.post(1, call(), [*legacy_headers(mine), ANN], session_id="own")
    replicas.runtimes[1].recorder.drain()
    valkey.resume()

    await untouched(replicas, mine, "own", calls=2)


@pytest.mark.parametrize("own", [None, "own"], ids=["stateless", "stateful"])
async def test_a_user_ends_a_session_at_a_replica_new_to_it(replicas: Replicas, own: str | None) -> None:
    mine = await begin(replicas, own)
    await replicas.eventually(lambda: replicas.has(mine))

    for who in (*STRANGERS, [ANN]):
        assert "ended" not in replicas.documents()[mine]
        await delete(MCPMiddleware(Refusing(200, own), replicas.runtimes[1]), [*legacy_headers(mine), *who])
        await replicas.settle()

    assert replicas.documents()[mine]["ended"]["reason"] == "client_delete"
    assert replicas.events("session.end") == {mine: 1}


@pytest.mark.parametrize("first", [0, 1], ids=["her replica", "the other replica"])
async def test_a_credential_on_an_anonymous_session_does_not_evict_its_owner(replicas: Replicas, first: int) -> None:
    opened = await replicas.post(0, initialize(name="nameless"))
    mine = opened.headers["mcp-session-id"]

    found = [
        (await replicas.post(replica, call(), [*legacy_headers(mine), *who])).session_id
        for replica in (first, 1 - first)
        for who in ([BOB], [], [ANN], [OPAQUE])
    ]
    await replicas.settle()
    found += [(await replicas.post(replica, call(), legacy_headers(mine))).session_id for replica in (0, 1)]
    await replicas.settle()

    assert set(found) == {mine}
    assert replicas.documents()[mine]["tool_call_count"] == 10
    assert replicas.documents()[mine]["client_name"] == "nameless"


@pytest.mark.parametrize("who", [ANN, None], ids=["bound", "nobody's"])
async def test_a_worker_that_does_not_keep_a_session_cannot_end_it(
    replicas: Replicas, who: tuple[str, str] | None
) -> None:
    """Workers of a stateful server without affinity: a worker without the session answers 404."""
    named = [*legacy_headers("own"), *([who] if who else [])]
    await replicas.post(0, initialize(name="anns-client"), named[2:], session_id="own")
    elsewhere = MCPMiddleware(Refusing(404, None), replicas.runtimes[1])
    other = MCPMiddleware(Server(session_id="others"), replicas.runtimes[1])
    await post(other, initialize())

    for number in range(24):
        if number % 3:
            await replicas.post(0, call(), named, session_id="own")
        else:
            await post(elsewhere, call(), named)
            await get(elsewhere, named)
    await delete(elsewhere, named)
    await replicas.settle()

    document = replicas.documents()["own"]
    assert (document["tool_call_count"], document["client_name"]) == (16, "anns-client")
    assert "ended" not in document
    assert replicas.events("session.end") == {}
    kept = MCPMiddleware(Refusing(404, "own"), replicas.runtimes[0])
    await post(kept, call(), named)
    await replicas.settle()
    assert replicas.documents()["own"]["ended"]["reason"] == "server_closed"
