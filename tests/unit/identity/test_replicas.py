"""Several replicas on one real store: the same client is the same session on all of them, another user is not."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import anyio
import pytest

from otel_mcp import MCPMiddleware
from otel_mcp.exchange.dispatch import Dispatch
from otel_mcp.identity.reconcile import Later
from otel_mcp.model.call import SCOPE_KEY
from otel_mcp.model.delta import SessionFacts
from otel_mcp.runtime import Runtime
from otel_mcp.types import Message, Receive, Send
from tests.support.answers import OK, Server, result
from tests.support.asgi import PATIENCE, Headers, Reply, delete, post, read, respond
from tests.support.messages import MODERN_HEADERS, ask, call, initialize, legacy_headers, modern, notify
from tests.support.providers import Telemetry
from tests.support.stores import Server as Valkey
from tests.unit.conftest import MakeRuntime
from tests.unit.identity.test_resolver import jwt, sessions_of

pytestmark = pytest.mark.anyio

ANN, BOB = jwt("ann"), jwt("bob")
FLUSH = 0.2
"""Seconds that a store may be behind, and ends wait for what others write."""
CHAT = {"openai/session": "v1/chat", "openai/subject": "v1/person"}


class Replicas:
    """Processes of one deployment, as far as they differ: runtimes on one store."""

    def __init__(
        self,
        valkey: Valkey,
        make_runtime: MakeRuntime,
        telemetry: Telemetry,
        **options: object,
    ) -> None:
        self.redis = valkey.client(decode_responses=True, encoding_errors="replace")
        self.redis.flushall()
        self.telemetry = telemetry
        self.runtimes: list[Runtime] = [
            make_runtime(redis_url=valkey.url, flush_interval=FLUSH, **options) for _ in range(2)
        ]
        for runtime in self.runtimes:
            runtime.sessions.worker._interval = 60.0  # pyright: ignore[reportPrivateUsage]  # Written when a test asks.

    async def post(
        self, replica: int, message: Any, headers: Headers = (), *, session_id: str | None = None, **options: Any
    ) -> Reply:
        """Have a replica serve a message; `session_id` is that of a server which keeps sessions itself."""
        app = MCPMiddleware(Server(session_id=session_id), self.runtimes[replica])
        return await post(app, message, headers, **options)

    async def eventually(self, holds: Callable[[], Awaitable[bool]], *writing: int) -> None:
        """Have these replicas write, else all, until something that happens in the background has happened."""
        with anyio.fail_after(PATIENCE):
            while not await holds():
                for replica in writing or range(len(self.runtimes)):
                    self.runtimes[replica].sessions.worker.notify(now=True)
                await anyio.sleep(0.01)

    async def settle(self) -> None:
        for runtime in self.runtimes:
            await runtime.shut_down()

    def documents(self) -> dict[str, Message]:
        """Every session document, by id."""
        keys = [key for key in self.redis.keys("mcp_session:*") if self.redis.type(key) == "string"]
        return {key.partition(":")[2]: json.loads(self.redis.get(key)) for key in keys}

    async def has(self, session_id: str | None) -> bool:
        return session_id in self.documents()

    def living(self) -> list[str]:
        return [session_id for session_id, document in self.documents().items() if "ended" not in document]

    async def forget(self) -> None:
        """Empty the store after all replicas have agreed on the hash key, which is left."""
        for replica in range(len(self.runtimes)):
            await self.post(replica, modern(), [*MODERN_HEADERS, jwt(f"early-{replica}")])
        await self.settle()  # Or what is flushed now puts back what was agreed.
        self.redis.delete(*(key for key in self.redis.keys("*") if not key.endswith("hash-key")))

    def events(self, name: str) -> Counter[str]:
        return Counter(event["attributes"]["session.id"] for event in self.telemetry.events() if event["name"] == name)

    def everything(self) -> str:
        """All text in the store."""
        found: list[str] = []
        for key in self.redis.keys("*"):
            kind = self.redis.type(key)
            read: dict[str, Callable[[str], Any]] = {
                "string": self.redis.get,
                "hash": self.redis.hgetall,
                "zset": lambda key: self.redis.zrange(key, 0, -1),
            }
            found.append(f"{key} {read[kind](key)}")
        return "\n".join(found)


@pytest.fixture
def replicas(valkey: Valkey, make_runtime: MakeRuntime, telemetry: Telemetry, patient: None) -> Iterator[Replicas]:
    made = Replicas(valkey, make_runtime, telemetry)
    yield made
    made.redis.close()


async def test_a_client_served_by_two_replicas_in_turn_is_one_session(replicas: Replicas) -> None:
    bearer = ("authorization", "Bearer s3cr3t-t0ken")

    replies = [
        await replicas.post(number % 2, modern(request_id=number), [*MODERN_HEADERS, bearer, ("via", "ingress")])
        for number in range(10)
    ]
    await replicas.settle()

    (session_id,) = {reply.session_id for reply in replies}
    (document,) = replicas.documents().values()
    assert document["session_id"] == session_id
    assert (document["tool_call_count"], document["source"]) == (10, "inferred")
    assert sum(replicas.events("session.start").values()) == 1
    assert "s3cr3t" not in replicas.everything() + replicas.telemetry.everything()


async def test_two_users_behind_one_address_are_two_sessions_on_both_replicas(replicas: Replicas) -> None:
    for number in range(8):
        user = ("authorization", f"Bearer s3cr3t-{number // 2 % 2}")
        await replicas.post(number % 2, modern(request_id=number), [*MODERN_HEADERS, user, ("via", "ingress")])
    await replicas.settle()

    assert sorted(each["tool_call_count"] for each in replicas.documents().values()) == [4, 4]


@pytest.mark.parametrize(
    "hop",
    [("via", "1.1 ingress"), ("x-forwarded-for", "198.51.100.7"), ("forwarded", "for=198.51.100.7"), None],
    ids=["via", "x-forwarded-for", "forwarded", "only HTTP/1.0"],
)
async def test_ten_clients_without_credentials_behind_a_proxy_are_no_session(
    replicas: Replicas, hop: tuple[str, str] | None
) -> None:
    """A proxy in its simplest configuration adds no header, but speaks HTTP/1.0 to the server: no client does."""
    for number in range(10):
        app = MCPMiddleware(Server(), replicas.runtimes[number % 2])

        async def served(scope: Message, receive: Any, send: Any, app: Any = app) -> None:
            await app({**scope, "http_version": "1.1" if hop else "1.0"}, receive, send)

        await post(served, modern(), [*MODERN_HEADERS, *([hop] if hop else [])])
    await replicas.settle()

    assert set(sessions_of(replicas.telemetry)) == {(None, "none")}
    assert replicas.documents() == {}


@pytest.mark.parametrize("other", [BOB, ("authorization", "Bearer opaque"), None], ids=["bob", "a token", "nobody"])
@pytest.mark.parametrize("kind", ["handed out by us", "the server's own", "a conversation"])
async def test_another_user_cannot_use_a_session_on_another_replica(
    replicas: Replicas, kind: str, other: tuple[str, str] | None
) -> None:
    own = "own" if kind == "the server's own" else None
    message = call(meta=CHAT) if kind == "a conversation" else call()
    opened = await replicas.post(0, initialize(), [ANN], session_id=own)
    headers = legacy_headers(opened.headers["mcp-session-id"])
    anns = await replicas.post(0, message, [*headers, ANN], session_id=own)
    await replicas.eventually(lambda: replicas.has(anns.session_id))

    others = [
        await replicas.post(1, message, [*headers, *([other] if other else [])], session_id=own) for _ in range(2)
    ]
    again = await replicas.post(1, message, [*headers, ANN], session_id=own)
    await replicas.settle()

    assert anns.session_id == again.session_id
    assert others[0].session_id == others[1].session_id != anns.session_id
    assert replicas.documents()[anns.session_id or ""]["tool_call_count"] == 2
    rejected = replicas.telemetry.points("otel_mcp.session.rejected")
    assert ({"otel_mcp.reason": "principal"}, 1) in rejected or ({"otel_mcp.reason": "principal"}, 2) in rejected
    assert "ann" not in replicas.everything()


async def test_the_first_of_two_users_of_an_id_keeps_it(replicas: Replicas) -> None:
    """Before either replica has written whose it is, none can know; soon after, both do."""
    first, second = await asyncio.gather(
        replicas.post(0, call(meta=CHAT), [ANN]), replicas.post(1, call(meta=CHAT), [BOB])
    )
    assert first.session_id == second.session_id

    async def apart() -> set[str | None]:
        return {
            (await replicas.post(number, call(meta=CHAT), [user])).session_id for number, user in enumerate((ANN, BOB))
        }

    async def are_apart() -> bool:
        return len(await apart()) == 2

    await replicas.eventually(are_apart)
    assert first.session_id in await apart()


async def test_the_user_of_the_handshake_is_that_of_the_session(replicas: Replicas) -> None:
    opened = await replicas.post(0, initialize(), [ANN])
    headers = legacy_headers(opened.headers["mcp-session-id"])

    bobs = await replicas.post(0, call(), [*headers, BOB])
    anns = await replicas.post(0, call(), [*headers, ANN])

    assert anns.session_id == opened.headers["mcp-session-id"] != bobs.session_id


async def test_a_replica_knows_the_client_whose_handshake_another_one_has_served(replicas: Replicas) -> None:
    opened = await replicas.post(0, initialize())
    headers = legacy_headers(opened.headers["mcp-session-id"])

    async def is_bound() -> bool:
        return any(replicas.redis.hget(key, "client_name") for key in replicas.redis.keys("*:stats"))

    await replicas.eventually(is_bound)
    await replicas.post(1, call(), headers)
    await replicas.settle()

    served = [span for span in replicas.telemetry.spans() if span.name == "tools/call add"]
    assert [(span.attributes or {}).get("otel_mcp.client.name") for span in served] == ["unit-client"]
    clients = {
        (given["mcp.method.name"], given["otel_mcp.client.name"]): count
        for given, count in replicas.telemetry.points("otel_mcp.client.requests")
    }
    assert clients == {("initialize", "unit-client"): 1, ("tools/call", "unit-client"): 1}


async def test_a_replica_learns_of_a_client_that_was_noted_after_its_first_call(replicas: Replicas) -> None:
    await replicas.runtimes[0].resolver.prepare()
    session_id = replicas.runtimes[0].resolver.hashes.mint()
    await replicas.post(1, call(), legacy_headers(session_id))
    facts = SessionFacts(session_id, time.time(), 3600.0, client_name="unit-client", opened=True)
    await replicas.runtimes[0].sessions.bind(facts)

    async def knows() -> bool:
        return replicas.runtimes[1].resolver.registry.sessions[session_id].facts.client_name == "unit-client"

    await replicas.eventually(knows, 1)


@pytest.mark.parametrize("owned", [True, False], ids=["stateful", "stateless"])
async def test_a_chat_that_shakes_hands_for_every_call_is_one_session(replicas: Replicas, owned: bool) -> None:
    found: set[str | None] = set()
    for number in range(5):
        own = f"transport-{number}" if owned else None
        opened = await replicas.post(number % 2, initialize(name="openai-mcp"), session_id=own)
        headers = legacy_headers(opened.headers["mcp-session-id"])
        await replicas.post(number % 2, notify("notifications/initialized"), headers, session_id=own)
        found.add((await replicas.post(number % 2, call(meta=CHAT), headers, session_id=own)).session_id)
        listed = await replicas.post(number % 2, ask("tools/list", 2), headers, session_id=own)
        found.add(listed.session_id)
        await delete(MCPMiddleware(Server(session_id=own), replicas.runtimes[number % 2]), headers)
    await replicas.settle()

    (session_id,) = found
    (stored,) = replicas.documents().items()
    assert stored[0] == session_id
    assert (stored[1]["tool_call_count"], stored[1]["request_count"]) == (5, 15)
    assert stored[1]["client_name"] == "openai-mcp"
    assert replicas.events("session.start") == Counter([session_id])
    assert replicas.events("session.end") == Counter()
    assert replicas.redis.zrange("otel_mcp:unit:deadlines", 0, -1) == [session_id]
    points = replicas.telemetry.points("otel_mcp.session.started")
    # Some series are declared with zero.
    assert {given["otel_mcp.session.source"]: count for given, count in points if count} == {"conversation": 1}


async def test_a_handshake_that_was_written_before_its_call_came_ends_as_replaced(replicas: Replicas) -> None:
    opened = await replicas.post(0, initialize(), session_id="own")
    await replicas.eventually(lambda: replicas.has("own"))

    reply = await replicas.post(0, call(meta=CHAT), legacy_headers("own"), session_id="own")
    await replicas.settle()

    assert opened.session_id == "own"
    assert replicas.living() == [reply.session_id]
    assert replicas.documents()["own"]["ended"]["reason"] == "replaced"
    assert replicas.documents()[reply.session_id or ""]["previous_id"] == "own"
    (end,) = [event["attributes"] for event in replicas.telemetry.events() if event["name"] == "session.end"]
    assert (end["session.id"], end["otel_mcp.session.end.reason"]) == ("own", "replaced")


async def test_a_handshake_with_one_replica_for_a_call_to_another_is_replaced(replicas: Replicas) -> None:
    found: set[str | None] = set()
    for _ in range(3):
        opened = await replicas.post(0, initialize())
        headers = legacy_headers(opened.headers["mcp-session-id"])
        found.add((await replicas.post(1, call(meta=CHAT), headers)).session_id)

    async def has_ended() -> bool:
        return len(replicas.events("session.end")) == 3

    await replicas.eventually(has_ended)
    await replicas.settle()

    (session_id,) = found
    assert replicas.living() == [session_id]
    reasons = {each.get("ended", {}).get("reason") for each in replicas.documents().values()}
    assert reasons == {"replaced", None}
    assert replicas.runtimes[1].resolver.registry.sessions[session_id or ""].facts.client_name == "unit-client"
    # What names the transport session alone means the conversation from now on, with either replica.
    for number in (0, 1):

        async def continues(number: int = number) -> bool:
            return (await replicas.post(number, ask("tools/list"), headers)).session_id == session_id

        await replicas.eventually(continues)


async def test_a_transport_session_in_which_tools_were_called_stays_a_session(replicas: Replicas) -> None:
    opened = await replicas.post(0, initialize())
    headers = legacy_headers(opened.headers["mcp-session-id"])
    await replicas.post(0, call(), headers)
    await replicas.eventually(lambda: replicas.has(opened.headers["mcp-session-id"]))

    for number in (0, 1):
        await replicas.post(number, call(meta=CHAT), headers)
    await replicas.settle()

    assert len(replicas.living()) == 2
    assert replicas.events("session.end") == Counter()


async def test_a_client_with_many_chats_over_one_transport_session_is_those_chats(replicas: Replicas) -> None:
    """As editors have it; a message without a chat goes to the one that the transport session was taken in by."""
    await replicas.post(0, initialize(), session_id="own")
    headers = legacy_headers("own")

    for chat in ("a", "b", "a"):
        await replicas.post(0, call(meta={"vscode.conversationId": chat}), headers, session_id="own")
    listed = await replicas.post(0, ask("tools/list"), headers, session_id="own")
    await replicas.settle()

    assert len(replicas.living()) == 2
    assert listed.session_id in replicas.living()
    assert sum(replicas.events("session.start").values()) == 2


async def test_another_user_cannot_end_a_session_by_naming_a_chat_in_it(replicas: Replicas) -> None:
    opened = await replicas.post(0, initialize(), [ANN])
    headers = legacy_headers(opened.headers["mcp-session-id"])
    await replicas.eventually(lambda: replicas.has(opened.headers["mcp-session-id"]))

    for number in (0, 1):
        await replicas.post(number, call(meta=CHAT), [*headers, BOB])
    await replicas.post(0, call(), [*headers, ANN])
    await replicas.settle()

    assert opened.headers["mcp-session-id"] in replicas.living()
    assert replicas.events("session.end") == Counter()


async def test_what_is_due_later_is_not_begun_when_the_loop_ends() -> None:
    later = Later()
    asked: list[bool] = []

    async def ask() -> None:
        asked.append(True)

    async def never() -> None:
        await asyncio.Event().wait()
        asked.append(True)

    later.run(ask, 0.1)
    later.run(never)
    await asyncio.sleep(0)
    later.close()
    await asyncio.sleep(0.2)

    assert asked == []
    assert not any("Later" in repr(task) for task in asyncio.all_tasks())


async def test_the_end_of_a_loop_ends_what_is_due_later_on_it(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    waiting = asyncio.Event()

    async def never() -> None:
        waiting.set()
        await asyncio.Event().wait()

    runtime.sessions.ensure_running()
    await asyncio.sleep(0)
    runtime.resolver.reconciler.later.run(never)
    await waiting.wait()
    (background,) = [task for task in asyncio.all_tasks() if "Worker" in repr(task)]
    background.cancel()  # As servers end their loops.
    await asyncio.wait({background})
    await asyncio.sleep(0)

    assert not any("Later" in repr(task) for task in asyncio.all_tasks())


@pytest.mark.parametrize("between", [None, notify("notifications/initialized"), ask("tools/list"), call()])
async def test_a_session_ends_after_the_handshake_that_another_replica_keeps_back(
    replicas: Replicas, between: Message | None
) -> None:
    opened = await replicas.post(0, initialize())
    session_id = opened.headers["mcp-session-id"]
    headers = legacy_headers(session_id)

    if between is not None:
        await replicas.post(1, between, headers)
    await delete(MCPMiddleware(Server(), replicas.runtimes[1]), headers)

    async def has_ended() -> bool:
        return "ended" in replicas.documents().get(session_id, {})

    await replicas.eventually(lambda: replicas.has(session_id), 0)
    await replicas.eventually(has_ended)
    await replicas.settle()
    assert replicas.events("session.start") == replicas.events("session.end") == Counter([session_id])
    assert replicas.living() == []
    (end,) = [event["attributes"] for event in replicas.telemetry.events() if event["name"] == "session.end"]
    assert end["otel_mcp.client.name"] == "unit-client"
    assert end["otel_mcp.session.requests"] == 1 + bool(between and "id" in between)


def dispatching(runtime: Runtime, tool: Callable[[], Awaitable[Message]]) -> MCPMiddleware:
    """A server with a seam, as the SDKs have it."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        message = json.loads(await read(receive))
        made = runtime.dispatcher.requests.call_of(
            scope[SCOPE_KEY], message["id"], message["method"], message["params"]
        )
        assert made is not None
        await Dispatch(runtime.dispatcher, made).run(tool)
        await respond(send, result(message["id"]))

    return MCPMiddleware(app, runtime)


async def test_a_call_longer_than_the_idle_gap_ends_its_session(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime(session_idle_gap=0.6)
    takes = [0.0, 0.8, 0.0, 0.0]

    async def tool() -> Message:
        await asyncio.sleep(takes.pop(0))
        return OK

    found: list[str | None] = []
    while takes:
        found.append((await post(dispatching(runtime, tool), modern(), [*MODERN_HEADERS, ANN])).session_id)
        runtime.recorder.drain()

    assert found[0] == found[1] != found[2] == found[3]


async def test_a_call_beyond_the_limit_on_new_sessions_is_counted_once(
    make_runtime: MakeRuntime, telemetry: Telemetry
) -> None:
    runtime = make_runtime(max_new_sessions=1)

    async def tool() -> Message:
        return OK

    met = [
        (await post(dispatching(runtime, tool), modern(), [*MODERN_HEADERS, jwt(name)])).session_id
        for name in ("one", "two", "three")
    ]
    await runtime.shut_down()

    assert [session_id is None for session_id in met] == [False, True, True]
    assert ({"otel_mcp.reason": "limit"}, 2) in telemetry.points("otel_mcp.session.rejected")


async def test_sessions_of_another_replica_are_joined_beyond_the_limit_on_new_ones(
    replicas: Replicas, valkey: Valkey, make_runtime: MakeRuntime
) -> None:
    replicas.runtimes.append(make_runtime(redis_url=valkey.url, flush_interval=FLUSH, max_new_sessions=1))
    people = [jwt(f"person-{number}") for number in range(3)]
    met = [(await replicas.post(0, modern(), [*MODERN_HEADERS, person])).session_id for person in people]

    joined = [(await replicas.post(2, modern(), [*MODERN_HEADERS, person])).session_id for person in people]
    new = [(await replicas.post(2, modern(), [*MODERN_HEADERS, jwt(name)])).session_id for name in ("first", "second")]
    await replicas.settle()

    lost = [*MODERN_HEADERS, ("x-session-id", "lost")]
    continued = [(await replicas.post(replica, modern(), lost)).session_id for replica in (0, 2)]
    await replicas.settle()

    assert continued[0] == continued[1] is not None
    assert None not in met
    assert joined == met
    assert new[0] is not None
    assert new[1] is None


@pytest.mark.parametrize("who", [ANN, ("x-session-id", "lost")], ids=["inferred", "lost id"])
async def test_replicas_that_began_two_sessions_go_on_in_one(replicas: Replicas, who: tuple[str, str]) -> None:
    headers = [*MODERN_HEADERS, who]
    apart = [(await replicas.post(0, modern(), headers)).session_id]
    await replicas.forget()
    apart.append((await replicas.post(1, modern(), headers)).session_id)
    await replicas.settle()

    for replica in (0, 1):
        await replicas.post(replica, modern(), headers)
        await replicas.settle()
    found = {(await replicas.post(replica, modern(), headers)).session_id for replica in (0, 1)}

    assert len(set(apart)) == 2
    assert len(found) == 1
    assert found <= set(apart)


async def test_users_of_one_lost_id_do_not_share_its_successor(replicas: Replicas) -> None:
    anns, bobs = ([*MODERN_HEADERS, ("x-session-id", "lost"), user] for user in (ANN, BOB))
    await replicas.post(0, modern(), anns)
    await replicas.forget()
    await replicas.post(1, modern(), bobs)
    await replicas.settle()

    seen: list[set[str | None]] = [set(), set()]
    found: list[set[str | None]] = []
    for _ in range(4):
        found = [set(), set()]
        for replica in (0, 1):
            for sessions, headers in zip(found, (anns, bobs), strict=True):
                sessions.add((await replicas.post(replica, modern(), headers)).session_id)
        seen = [before | sessions for before, sessions in zip(seen, found, strict=True)]
        await replicas.settle()

    assert seen[0].isdisjoint(seen[1])
    assert [len(sessions) for sessions in found] == [1, 1]


async def test_another_user_of_a_lost_id_is_separate_on_another_replica(
    replicas: Replicas,
) -> None:
    anns, bobs = ([*MODERN_HEADERS, ("x-session-id", "lost"), user] for user in (ANN, BOB))
    first = (await replicas.post(0, modern(), anns)).session_id
    await replicas.settle()

    found = {(await replicas.post(1, modern(), bobs)).session_id for _ in range(3)}
    await replicas.settle()

    assert len(found) == 1
    assert first not in found


LOST = [*MODERN_HEADERS, ("x-session-id", "lost")]


async def meet_apart(replicas: Replicas, valkey: Valkey) -> tuple[str | None, str | None]:
    """Have one replica continue an unknown id, and another meet it while the store says nothing. Their sessions."""
    await replicas.forget()
    elsewhere = (await replicas.post(0, modern(), LOST)).session_id
    await replicas.settle()
    valkey.hang()
    blindly = (await replicas.post(1, modern(), LOST)).session_id
    await anyio.sleep(0.7)
    valkey.resume()
    return elsewhere, blindly


async def test_an_id_met_during_an_outage_is_continued_as_elsewhere(replicas: Replicas, valkey: Valkey) -> None:
    elsewhere, blindly = await meet_apart(replicas, valkey)

    async def joined() -> bool:
        return (await replicas.post(1, modern(), LOST)).session_id == elsewhere

    await replicas.eventually(joined)

    assert blindly == "lost" != elsewhere


async def test_a_replica_that_comes_later_continues_a_lost_id_as_the_others(
    replicas: Replicas, valkey: Valkey, make_runtime: MakeRuntime
) -> None:
    elsewhere, _ = await meet_apart(replicas, valkey)

    async def written() -> bool:
        await replicas.settle()
        return await replicas.has("lost")

    await replicas.eventually(written)
    replicas.runtimes.append(make_runtime(redis_url=valkey.url, flush_interval=FLUSH))

    assert (await replicas.post(2, modern(), LOST)).session_id == elsewhere


async def test_a_client_that_names_its_inferred_session_is_still_agreed_upon(replicas: Replicas) -> None:
    headers = [*MODERN_HEADERS, ANN]
    first = (await replicas.post(0, modern(), headers)).session_id or ""
    await replicas.forget()
    await replicas.post(1, modern(), headers)
    await replicas.settle()
    await replicas.post(0, modern(), headers)
    await replicas.settle()

    await replicas.post(0, modern(), [*headers, ("x-session-id", first)])
    for replica in (0, 1):
        await replicas.post(replica, modern(), headers)
        await replicas.settle()
    found = {(await replicas.post(replica, modern(), headers)).session_id for replica in (0, 1)}

    assert len(found) == 1
