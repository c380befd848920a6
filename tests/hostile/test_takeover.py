"""Ann has a session, Bob knows all its ids: he can neither join, nor end, nor mark anything of hers. One process."""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from typing import Any

import anyio
import pytest

from otel_mcp import MCPMiddleware
from otel_mcp.runtime import Runtime
from otel_mcp.types import ASGIApp, Message, Receive, Send
from tests.support.answers import Server, error, initialized
from tests.support.asgi import Reply, delete, get, post, read, respond
from tests.support.messages import MODERN_HEADERS, call, initialize, legacy_headers, modern, notify
from tests.support.providers import Telemetry
from tests.unit.conftest import MakeRuntime

pytestmark = pytest.mark.anyio


def user(subject: str, *, issued: int = 0) -> tuple[str, str]:
    """A credential that names a user; renewed, it is another text."""
    payload = urlsafe_b64encode(json.dumps({"iss": "i", "sub": subject, "iat": issued}).encode()).decode().rstrip("=")
    return ("authorization", f"Bearer e30.{payload}.sig")


ANN, BOB = user("ann"), user("bob")
OPAQUE = ("authorization", "Bearer opaque")


def tool_calls(telemetry: Telemetry) -> list[Any]:
    """The session of every tool call, in their order."""
    spans = [dict(span.attributes or {}) for span in telemetry.spans()]
    return [span.get("session.id") for span in spans if span["mcp.method.name"] == "tools/call"]


def ends(telemetry: Telemetry) -> list[Any]:
    return [event["attributes"]["session.id"] for event in telemetry.events() if event["name"] == "session.end"]


async def test_the_first_to_use_an_id_is_not_who_it_belongs_to(runtime: Runtime, telemetry: Telemetry) -> None:
    app = MCPMiddleware(Server(session_id="own"), runtime)

    await post(app, initialize(), [ANN])
    await post(app, call(), [*legacy_headers("own"), BOB])
    await post(app, call(), [*legacy_headers("own"), ANN])

    bobs, anns = tool_calls(telemetry)
    assert anns == "own"
    assert bobs != "own"


async def test_an_id_that_the_server_gives_to_two_users_is_two_sessions(runtime: Runtime, telemetry: Telemetry) -> None:
    app = MCPMiddleware(Server(session_id="own"), runtime)

    for who in (ANN, BOB):
        await post(app, initialize(), [who])
        await post(app, call(), [*legacy_headers("own"), who])

    anns, bobs = tool_calls(telemetry)
    assert anns == "own"
    assert bobs not in (None, "own")


async def test_an_anonymous_request_joins_no_users_session(runtime: Runtime, telemetry: Telemetry) -> None:
    app = MCPMiddleware(Server(session_id="own"), runtime)

    await post(app, initialize(), [ANN])
    for headers in ([], [OPAQUE]):
        await post(app, call(), [*legacy_headers("own"), *headers])

    assert "own" not in tool_calls(telemetry)


async def test_a_renewed_credential_is_the_same_user(runtime: Runtime, telemetry: Telemetry) -> None:
    app = MCPMiddleware(Server(session_id="own"), runtime)

    await post(app, initialize(), [ANN])
    await post(app, call(), [*legacy_headers("own"), user("ann", issued=1)])

    assert tool_calls(telemetry) == ["own"]


HOLDS = [
    pytest.param({"meta": {"openai/session": "chat"}}, [], id="conversation"),
    pytest.param({"meta": {"baggage": "session.id=agent"}}, [], id="baggage in _meta"),
    pytest.param({}, [("baggage", "gen_ai.conversation.id=agent")], id="baggage"),
    pytest.param({}, [("cookie", "mcp_session=jar")], id="cookie"),
    pytest.param({}, [("x-claude-code-session-id", "host")], id="header of a host"),
    pytest.param({}, legacy_headers("known-to-bob"), id="transport session"),
]


@pytest.mark.parametrize(("claims", "headers"), HOLDS)
async def test_a_stranger_repeating_a_users_claims_is_in_another_session(
    claims: Message, headers: list[tuple[str, str]], make_runtime: MakeRuntime, telemetry: Telemetry
) -> None:
    runtime = make_runtime(session_sources="conversation,header,cookie,inferred")
    app = MCPMiddleware(Server(), runtime)

    for who in (ANN, BOB, ANN):
        await post(app, call(**claims), [*headers, ("mcp-protocol-version", "2025-11-25"), who])

    first, bobs, second = tool_calls(telemetry)
    assert first is not None
    assert first == second
    assert bobs not in (None, first)


async def test_the_id_of_an_inferred_session_opens_it_to_nobody_else(runtime: Runtime, telemetry: Telemetry) -> None:
    app = MCPMiddleware(Server(), runtime)
    mine = (await post(app, modern(), [*MODERN_HEADERS, ANN])).session_id
    assert mine is not None

    theirs = await post(app, modern(), [*MODERN_HEADERS, BOB, ("x-session-id", mine)])
    again = await post(app, modern(), [*MODERN_HEADERS, ANN])

    assert again.session_id == mine
    assert theirs.session_id not in (None, mine)


@pytest.mark.parametrize("status", [200, 204, 404, 405])
async def test_only_its_own_user_ends_a_session(status: int, runtime: Runtime, telemetry: Telemetry) -> None:
    app = MCPMiddleware(_with_delete(status), runtime)
    started = await post(app, initialize(), [ANN])
    mine = started.headers["mcp-session-id"]
    await post(app, call(), [*legacy_headers(mine), ANN])

    for who in ([BOB], [], [OPAQUE]):
        await delete(app, [*legacy_headers(mine), *who])
        await post(app, call(), [*legacy_headers(mine), ANN])
    await runtime.shut_down()
    assert mine not in ends(telemetry)
    await delete(app, [*legacy_headers(mine), ANN])
    await runtime.shut_down()

    assert tool_calls(telemetry) == [mine] * 4
    assert ends(telemetry) == [mine]


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refused_delete_ends_nothing(status: int, runtime: Runtime, telemetry: Telemetry) -> None:
    app = MCPMiddleware(_with_delete(status), runtime)
    mine = (await post(app, initialize())).headers["mcp-session-id"]

    await post(app, call(), legacy_headers(mine))
    await delete(app, legacy_headers(mine))
    await runtime.shut_down()

    assert ends(telemetry) == []


def _with_delete(status: int) -> ASGIApp:
    inner = Server()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        if scope["method"] == "DELETE":
            return await respond(send, b"", status)
        await inner(scope, receive, send)

    return app


async def test_a_404_for_another_user_ends_no_session(runtime: Runtime, telemetry: Telemetry) -> None:
    """As the SDK answers who has another's id."""
    inner = Server(session_id="own")

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        if (b"authorization", BOB[1].encode()) in scope["headers"]:
            await read(receive)
            return await respond(send, error(-32600, None), 404)
        await inner(scope, receive, send)

    watched = MCPMiddleware(app, runtime)
    await post(watched, initialize(), [ANN])
    await post(watched, call(), [*legacy_headers("own"), ANN])

    await post(watched, call(), [*legacy_headers("own"), BOB])
    await get(watched, [*legacy_headers("own"), BOB])
    await post(watched, call(), [*legacy_headers("own"), ANN])
    await runtime.shut_down()

    assert ends(telemetry) == []


@pytest.mark.parametrize(("who", "expected"), [(BOB, "-32001"), (user("ann", issued=1), "cancelled")])
async def test_only_its_own_user_cancels_a_call(
    who: tuple[str, str], expected: str, runtime: Runtime, telemetry: Telemetry
) -> None:
    arrived, cancelled = anyio.Event(), anyio.Event()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        message = json.loads(await read(receive))
        if message["method"] == "initialize":
            return await respond(send, initialized(message["id"]), 200, [("mcp-session-id", "own")])
        if "id" not in message:
            return await respond(send, b"", 202)
        arrived.set()
        await cancelled.wait()
        await respond(send, error(-32001, message["id"]))

    watched = MCPMiddleware(app, runtime)
    await post(watched, initialize(), [ANN])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(post, watched, call(request_id=7), [*legacy_headers("own"), ANN])
        await arrived.wait()
        await post(watched, notify("notifications/cancelled", requestId=7), [*legacy_headers("own"), who])
        cancelled.set()

    (span,) = [span for span in telemetry.spans() if span.name.startswith("tools/call")]
    assert dict(span.attributes or {})["error.type"] == expected


@pytest.mark.parametrize("forged", ["om1.AAAA.AAAA", "om1.", "om1." + "A" * 28 + "." + "A" * 12])
async def test_a_forged_id_is_no_session_and_reaches_the_app(
    forged: str, runtime: Runtime, telemetry: Telemetry
) -> None:
    inner = Server()

    await post(MCPMiddleware(inner, runtime), call(), legacy_headers(forged))

    assert tool_calls(telemetry) != [forged]
    assert (b"mcp-session-id", forged.encode()) in inner.scopes[0]["headers"]


async def test_ids_are_not_to_be_guessed(runtime: Runtime) -> None:
    app = MCPMiddleware(Server(), runtime)
    replies: list[Reply] = [await post(app, modern(), [*MODERN_HEADERS, user(f"u{number}")]) for number in range(200)]
    ids = {int(reply.session_id or "", 16) for reply in replies}

    assert len(ids) == 200
    for bit in range(128):
        ones = sum(identity >> bit & 1 for identity in ids)
        assert 50 < ones < 150  # Seven standard deviations.


@pytest.mark.parametrize("status", [401, 403, 404, 405, 406, 413, 415, 421, 429])
@pytest.mark.parametrize("known", [False, True], ids=["span afterwards", "span at once"])
async def test_a_message_that_the_server_refuses_has_no_session(
    status: int, known: bool, runtime: Runtime, telemetry: Telemetry
) -> None:
    serves = Server()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        if (b"x-refuse", b"1") in scope["headers"]:
            await read(receive)
            await respond(send, error(-32001), status)
        else:
            await serves(scope, receive, send)

    watched = MCPMiddleware(app, runtime)
    session_id = (await post(watched, initialize())).headers["mcp-session-id"]
    if known:
        await post(watched, call(), legacy_headers(session_id))
        assert tool_calls(telemetry) == [session_id]
    telemetry.spans()
    telemetry.span_exporter.clear()

    reply = await post(watched, call(), [*legacy_headers(session_id), ("x-refuse", "1")])

    attributes = dict(telemetry.span().attributes or {})
    assert attributes["otel_mcp.session.source"] == "none"
    assert attributes.keys().isdisjoint({"session.id", "session.previous_id", "otel_mcp.client.name"})
    assert reply.session_id is None


@pytest.mark.parametrize("code", [-32700, -32600, -32020, -32021, -32022])
async def test_a_message_refused_by_the_protocol_has_no_session(
    code: int, runtime: Runtime, telemetry: Telemetry
) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        body = await read(receive)
        await respond(send, *((error(code), 400) if b"tools/call" in body else (initialized(), 200)))

    watched = MCPMiddleware(app, runtime)
    session_id = (await post(watched, initialize())).headers["mcp-session-id"]

    for _ in range(2):
        await post(watched, call(), legacy_headers(session_id))

    assert tool_calls(telemetry) == [None, None]
