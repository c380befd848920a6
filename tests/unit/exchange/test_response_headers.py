"""The two headers that we may add, and everywhere that we must not."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from otel_mcp import MCPMiddleware
from otel_mcp.runtime import Runtime
from otel_mcp.types import Message, Receive, Send
from tests.support.answers import Server, error, initialized
from tests.support.asgi import JSON_HEADERS, Reply, delete, event, get, make_scope, post, read, request, respond, stream
from tests.support.messages import MODERN_HEADERS, ask, call, initialize, legacy_headers, modern, notify
from tests.unit.conftest import MakeRuntime

pytestmark = pytest.mark.anyio

OURS = re.compile(r"om1\.[!-~]+")
OURS_NAMES = {"mcp-session-id", "x-session-id"}


def added(reply: Reply) -> dict[str, str]:
    return {name: value for name, value in reply.headers.items() if name in OURS_NAMES}


def answering(
    payload: object, status: int = 200, headers: list[tuple[str, str]] | None = None, *, sse: bool = False
) -> Any:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await read(receive)
        if sse:
            await stream(send, [event(payload)], headers or [], status)
        else:
            await respond(send, payload, status, headers or [])

    return app


@pytest.mark.parametrize("sse", [False, True])
@pytest.mark.parametrize("version", ["2025-03-26", "2025-06-18", "2025-11-25", "2026-07-28", "2099-01-01"])
async def test_initialize_of_a_server_without_sessions_gets_an_id_of_ours(
    runtime: Runtime, sse: bool, version: str
) -> None:
    app = MCPMiddleware(answering(initialized(version="2025-11-25"), sse=sse), runtime)

    reply = await post(app, initialize(version=version))

    assert OURS.fullmatch(reply.headers["mcp-session-id"])
    assert added(reply) == dict.fromkeys(OURS_NAMES, reply.headers["mcp-session-id"])
    assert reply.messages[0]["headers"][-2:] == [
        (name.encode(), reply.headers[name].encode()) for name in ("mcp-session-id", "x-session-id")
    ]


async def test_our_id_is_removed_before_the_app_and_recognised_later(runtime: Runtime) -> None:
    server = Server()
    app = MCPMiddleware(server, runtime)
    session_id = (await post(app, initialize())).headers["mcp-session-id"]

    replies = [
        await post(app, notify("notifications/initialized"), legacy_headers(session_id)),
        await post(app, call(), legacy_headers(session_id)),
        await post(app, ask("tools/list"), legacy_headers(session_id)),
        await post(app, call(), legacy_headers(session_id), path="/elsewhere"),
    ]

    assert [reply.session_id for reply in replies] == [session_id] * 4
    assert all(b"mcp-session-id" not in dict(scope["headers"]) for scope in server.scopes)
    assert all(dict(scope["headers"]).get(b"mcp-protocol-version") for scope in server.scopes[1:])
    assert all("mcp-session-id" not in reply.headers for reply in replies)


async def test_the_servers_own_id_is_never_changed_and_never_joined_by_another(runtime: Runtime) -> None:
    app = MCPMiddleware(Server(session_id="servers-own"), runtime)

    first = await post(app, initialize())
    second = await post(app, call(), legacy_headers("servers-own"))
    third = await get(app, legacy_headers("servers-own"))
    last = await delete(app, legacy_headers("servers-own"))

    for reply in (first, second, third, last):
        assert [value for name, value in reply.messages[0]["headers"] if name == b"mcp-session-id"] == [b"servers-own"]
        assert reply.session_id == "servers-own"


async def test_a_foreign_id_reaches_the_app_as_it_is(runtime: Runtime) -> None:
    server = Server()
    app = MCPMiddleware(server, runtime)

    for session_id in ("foreign", "om1.forged.forged", "om1.", "om1"):
        await post(app, call(), legacy_headers(session_id))
        assert dict(server.scopes[-1]["headers"])[b"mcp-session-id"] == session_id.encode()


async def test_an_id_made_with_another_key_is_kept_from_a_stateless_server(
    make_runtime: MakeRuntime,
) -> None:
    one, other = (make_runtime(hash_key=key) for key in ("one", "other"))
    server, owning = Server(), Server(session_id="servers-own")
    given = (await post(MCPMiddleware(server, one), initialize())).headers["mcp-session-id"]

    await post(MCPMiddleware(server, other), call(), legacy_headers(given))
    assert b"mcp-session-id" not in dict(server.scopes[-1]["headers"])

    app = MCPMiddleware(owning, other)
    await post(app, initialize(), path="/owning")
    await post(app, call(), legacy_headers("servers-own"), path="/owning")
    await post(app, call(), legacy_headers(given), path="/owning")
    assert dict(owning.scopes[-1]["headers"])[b"mcp-session-id"] == given.encode()


async def test_an_x_session_id_that_the_app_sets_stands(runtime: Runtime) -> None:
    app = MCPMiddleware(answering(initialized(), headers=[("x-session-id", "the app's")]), runtime)

    reply = await post(app, initialize())

    assert reply.session_id == "the app's"
    assert [name for name, _ in reply.messages[0]["headers"]].count(b"x-session-id") == 1
    assert "mcp-session-id" in reply.headers


@pytest.mark.parametrize("name", ["Mcp-Session-Id", "X-Session-Id"])
async def test_headers_of_the_server_are_known_in_any_case(runtime: Runtime, name: str) -> None:
    app = MCPMiddleware(answering(initialized(), headers=[(name, "own")]), runtime)

    reply = await post(app, initialize())

    names = [header.lower() for header, _ in reply.messages[0]["headers"]]
    assert names.count(name.lower().encode()) == 1


@pytest.mark.parametrize(
    "status", [201, 202, 204, 301, 307, 400, 401, 403, 404, 405, 406, 409, 413, 415, 421, 500, 503]
)
async def test_no_id_is_given_with_anything_but_success(runtime: Runtime, status: int) -> None:
    app = MCPMiddleware(answering(initialized(), status), runtime)

    reply = await post(app, initialize())

    assert "mcp-session-id" not in reply.headers
    if status >= 400:
        assert added(reply) == {}


async def test_no_id_is_given_with_an_error_of_the_protocol(runtime: Runtime) -> None:
    """A JSON-RPC error comes with HTTP 200, so this may only be seen too late: at least it opens nothing."""
    app = MCPMiddleware(answering(error(-32602, 0), 400), runtime)

    assert added(await post(app, initialize())) == {}


@pytest.mark.parametrize(
    ("message", "headers"),
    [
        (call(), ()),
        (ask("tools/list"), ()),
        (ask("ping"), ()),
        (notify("notifications/initialized"), ()),
        (modern(), MODERN_HEADERS),
        (ask("server/discover"), MODERN_HEADERS),
        (initialize(), (("origin", "https://app.example"),)),
        ({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {"processId": 1}}, ()),
    ],
)
async def test_no_id_is_given_where_no_legacy_client_would_expect_one(
    runtime: Runtime, message: Message, headers: tuple[tuple[str, str], ...]
) -> None:
    app = MCPMiddleware(answering(initialized()), runtime)

    for _ in range(2):
        reply = await post(app, message, headers)
        assert "mcp-session-id" not in reply.headers


@pytest.mark.parametrize("method", ["GET", "DELETE", "PUT", "OPTIONS", "HEAD"])
async def test_no_id_is_given_to_another_method(runtime: Runtime, method: str) -> None:
    app = MCPMiddleware(answering(initialized()), runtime)

    reply = await request(app, make_scope(method, headers=[*JSON_HEADERS]), [json.dumps(initialize()).encode()])

    assert added(reply) == {}


async def test_every_answer_of_a_session_names_it_and_other_answers_none(runtime: Runtime) -> None:
    app = MCPMiddleware(Server(), runtime)

    weak = await post(app, modern(), MODERN_HEADERS)
    again = await post(app, modern(), MODERN_HEADERS)
    proxied = await post(app, modern(), [*MODERN_HEADERS, ("via", "1.1 proxy")])

    assert weak.session_id is not None
    assert again.session_id == weak.session_id
    assert added(proxied) == {}


@pytest.mark.parametrize(
    ("chosen", "names"),
    [
        ("mcp-session-id,x-session-id", {"mcp-session-id", "x-session-id"}),
        ("X-Session-Id", {"x-session-id"}),
        ("mcp-session-id", {"mcp-session-id"}),
        ("none", set[str]()),
    ],
)
async def test_the_user_chooses_the_headers(make_runtime: MakeRuntime, chosen: str, names: set[str]) -> None:
    app = MCPMiddleware(Server(), make_runtime(response_headers=chosen))

    opened = added(await post(app, initialize()))
    called = added(await post(app, call()))

    assert {*opened, *called} == names
    assert ("mcp-session-id" in opened) == ("mcp-session-id" in names)


async def test_without_our_header_a_server_without_sessions_opens_none_at_initialize(
    make_runtime: MakeRuntime,
) -> None:
    runtime = make_runtime(response_headers="x-session-id")
    app = MCPMiddleware(Server(), runtime)

    first = await post(app, initialize())
    second = await post(app, call(), [("mcp-protocol-version", "2025-11-25")])
    third = await post(app, ask("tools/list"), [("mcp-protocol-version", "2025-11-25")])

    assert second.session_id == third.session_id is not None
    assert first.session_id in (None, second.session_id)


async def test_a_preflight_and_its_answer_are_not_touched(runtime: Runtime) -> None:
    allowed = [("access-control-allow-origin", "*"), ("access-control-expose-headers", "mcp-session-id")]

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await respond(send, b"", 204, allowed)

    scope = make_scope(
        "OPTIONS",
        headers=[
            ("origin", "https://app.example"),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "mcp-session-id,content-type"),
        ],
    )

    reply = await request(MCPMiddleware(app, runtime), scope)

    assert added(reply) == {}


async def test_a_browser_is_never_given_an_id_but_keeps_the_servers(runtime: Runtime) -> None:
    origin = [("origin", "https://app.example")]

    without = await post(MCPMiddleware(Server(), runtime), initialize(), origin)
    with_own = await post(MCPMiddleware(Server(session_id="own"), runtime), initialize(), origin)

    assert "mcp-session-id" not in without.headers
    assert with_own.headers["mcp-session-id"] == "own"


async def test_an_unknown_id_at_initialize_is_answered_with_its_successor(runtime: Runtime) -> None:
    app = MCPMiddleware(Server(), runtime)

    reply = await post(app, initialize(), [("mcp-session-id", "lost")])

    assert reply.session_id not in (None, "lost")
    assert reply.headers["mcp-session-id"] == reply.session_id


async def test_an_unknown_id_is_answered_with_the_same_successor_every_time(runtime: Runtime) -> None:
    app = MCPMiddleware(Server(), runtime)
    await post(app, initialize())  # Shows that this server keeps no sessions of its own.

    found = {(await post(app, call(), legacy_headers("lost"))).session_id for _ in range(3)}

    assert len(found) == 1
    assert found != {"lost"}
    assert None not in found


async def test_an_id_with_control_characters_is_never_in_a_header(runtime: Runtime) -> None:
    app = MCPMiddleware(Server(), runtime)

    for hostile in ("a\r\nset-cookie: x=1", "a\x00b", "\x7f", "a\x1bb", "\u00e9\u00ff", " ", "x" * 5000):
        for name in ("mcp-session-id", "x-session-id"):
            reply = await post(app, call(), [(name, hostile), ("mcp-protocol-version", "2025-11-25")])
            for value in added(reply).values():
                assert re.fullmatch(r"[!-~]{1,128}", value), (hostile, value)
