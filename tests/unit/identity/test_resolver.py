"""Which requests come together as one session, as an operator would say it: whole conversations of a client."""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from otel_mcp import MCPMiddleware
from otel_mcp.runtime import Runtime
from otel_mcp.types import Message, Receive, Send
from tests.support.answers import Server
from tests.support.asgi import Reply, delete, post, read, respond
from tests.support.messages import CLIENT_INFO, MODERN_HEADERS, ask, call, initialize, legacy_headers, modern, notify
from tests.support.providers import Telemetry
from tests.unit.conftest import MakeRuntime

pytestmark = pytest.mark.anyio

BEARER = ("authorization", "Bearer s3cr3t-t0ken")


def jwt(subject: str) -> tuple[str, str]:
    payload = urlsafe_b64encode(json.dumps({"iss": "i", "sub": subject}).encode()).decode().rstrip("=")
    return ("authorization", f"Bearer e30.{payload}.sig")


def sessions_of(telemetry: Telemetry, method: str = "tools/call") -> list[tuple[object, object]]:
    """Session and source of every span of a method."""
    return [
        (attributes.get("session.id"), attributes["otel_mcp.session.source"])
        for span in telemetry.spans()
        if (attributes := dict(span.attributes or {}))["mcp.method.name"] == method
    ]


async def test_chatgpt_with_a_fresh_transport_session_for_each_call_is_one_session(
    runtime: Runtime, telemetry: Telemetry
) -> None:
    for number in range(4):
        app = MCPMiddleware(Server(session_id=f"transport-{number}"), runtime)
        meta = {"openai/session": "v1/conversation", "openai/subject": "v1/person"}
        await post(app, initialize(name="openai-mcp"))
        await post(app, call(meta=meta), legacy_headers(f"transport-{number}"))
        await delete(app, legacy_headers(f"transport-{number}"))

    found = sessions_of(telemetry)
    assert {source for _, source in found} == {"conversation"}
    assert len({session_id for session_id, _ in found}) == 1
    names = [(span.attributes or {}).get("otel_mcp.client.name") for span in telemetry.spans()]
    assert names == ["openai-mcp"] * 8
    assert "v1/person" not in telemetry.everything()


async def test_chatgpt_without_any_transport_session_is_one_session(runtime: Runtime, telemetry: Telemetry) -> None:
    app = MCPMiddleware(Server(), runtime)

    for number in range(3):
        meta = {"openai/session": "v1/conversation"}
        await post(app, call(request_id=number, meta=meta), [("mcp-protocol-version", "2025-11-25"), ("via", "cdn")])

    assert len(set(sessions_of(telemetry))) == 1


async def test_what_a_conversation_absorbs_is_no_session_of_its_own(runtime: Runtime, telemetry: Telemetry) -> None:
    for number in range(3):
        app = MCPMiddleware(Server(session_id=f"transport-{number}"), runtime)
        await post(app, initialize())
        await post(app, call(meta={"openai/session": "v1/x"}), legacy_headers(f"transport-{number}"))
    await runtime.shut_down()

    live = len([event for event in telemetry.events() if event["name"] == "session.start"]) - len(
        [event for event in telemetry.events() if event["name"] == "session.end"]
    )
    assert live == 1


async def test_codex_is_known_by_its_initialize(runtime: Runtime, telemetry: Telemetry) -> None:
    app = MCPMiddleware(Server(session_id="own"), runtime)

    await post(app, initialize(name="codex-mcp-client"))
    await post(app, call(meta={"threadId": "thread-1"}), legacy_headers("own"))

    assert sessions_of(telemetry)[0][1] == "conversation"


async def test_a_key_without_a_namespace_of_another_client_is_no_conversation(
    runtime: Runtime, telemetry: Telemetry
) -> None:
    app = MCPMiddleware(Server(session_id="own"), runtime)

    await post(app, initialize(name="a slack bot"))
    await post(app, call(meta={"threadId": "thread-1", "sessionId": "s", "sessionID": "s"}), legacy_headers("own"))

    assert sessions_of(telemetry) == [("own", "header")]


async def test_two_conversations_over_one_transport_session_are_two(runtime: Runtime, telemetry: Telemetry) -> None:
    app = MCPMiddleware(Server(session_id="own"), runtime)

    for talk in ("a", "b", "a"):
        await post(app, call(meta={"vscode.conversationId": talk}), legacy_headers("own"))

    first, second, third = sessions_of(telemetry)
    assert first == third != second


async def test_a_conversation_keys_apart_on_another_server(make_runtime: MakeRuntime) -> None:
    replies = [
        await post(
            MCPMiddleware(Server(), make_runtime(service_name=service, hash_key="shared")),
            call(meta={"openai/session": "v1/x"}),
            legacy_headers("x"),
        )
        for service in ("one", "two", "one")
    ]

    assert replies[0].session_id == replies[2].session_id != replies[1].session_id


async def test_an_agent_with_opentelemetry_names_its_session_by_baggage(runtime: Runtime, telemetry: Telemetry) -> None:
    app = MCPMiddleware(Server(), runtime)

    await post(app, modern(baggage="session.id=run-1"), MODERN_HEADERS)
    await post(app, modern(), [*MODERN_HEADERS, ("baggage", "session.id=run-1")])
    await post(app, modern(baggage="session.id=run-2"), MODERN_HEADERS)

    first, second, third = sessions_of(telemetry)
    assert first == second != third
    assert first[1] == "conversation"


async def test_two_replicas_agree_on_a_client_without_a_session(make_runtime: MakeRuntime) -> None:
    """Both hold the same store: the other learns what one agrees on."""
    one, two = make_runtime(hash_key="shared"), make_runtime(hash_key="shared")
    shared = one.sessions._store  # pyright: ignore[reportPrivateUsage]
    two.sessions._store = shared  # pyright: ignore[reportPrivateUsage]

    replies: list[Reply] = []
    for number in range(6):
        app = MCPMiddleware(Server(), (one, two)[number % 2])
        headers = [*MODERN_HEADERS, BEARER, ("via", "ingress")]
        replies.append(await post(app, modern(request_id=number), headers, client=(f"10.0.0.{number % 2}", 1)))

    assert len({reply.session_id for reply in replies}) == 1
    assert replies[0].session_id is not None


async def test_two_users_behind_one_address_are_two_sessions(runtime: Runtime, telemetry: Telemetry) -> None:
    app = MCPMiddleware(Server(), runtime)

    for number in range(6):
        await post(app, modern(), [*MODERN_HEADERS, ("authorization", f"Bearer user-{number % 2}")])

    found = sessions_of(telemetry)
    assert len(set(found)) == 2
    assert found[0] == found[2] == found[4]
    assert "user-0" not in telemetry.everything()


async def test_ten_clients_behind_a_proxy_are_not_melted_together(runtime: Runtime, telemetry: Telemetry) -> None:
    app = MCPMiddleware(Server(), runtime)

    for number in range(10):
        for name in ("x-forwarded-for", "forwarded", "via"):
            await post(app, modern(), [*MODERN_HEADERS, (name, f"for=198.51.100.{number}")])

    assert set(sessions_of(telemetry)) == {(None, "none")}


async def test_clients_behind_a_trusted_proxy_are_distinguished(
    make_runtime: MakeRuntime, telemetry: Telemetry
) -> None:
    app = MCPMiddleware(Server(), make_runtime(trusted_proxies="10.0.0.0/8"))

    for number in range(6):
        hops = ("x-forwarded-for", f"198.51.100.{number % 3}")
        await post(app, modern(), [*MODERN_HEADERS, hops], client=("10.0.0.1", 1))

    found = sessions_of(telemetry)
    assert len(set(found)) == 3
    assert {source for _, source in found} == {"inferred_weak"}


async def test_a_client_cannot_pass_for_another_by_a_header_of_its_own(
    make_runtime: MakeRuntime, telemetry: Telemetry
) -> None:
    """Some proxies append a line of their own instead of extending the client's."""
    app = MCPMiddleware(Server(), make_runtime(trusted_proxies="10.0.0.0/8"))
    own = ("x-forwarded-for", "203.0.113.66")
    await post(app, modern(), [*MODERN_HEADERS, ("x-forwarded-for", "198.51.100.1")], client=("10.0.0.1", 1))

    for victim in ("198.51.100.1", "6.6.6.6", "7.7.7.7"):
        await post(app, modern(), [*MODERN_HEADERS, ("x-forwarded-for", victim), own], client=("10.0.0.1", 1))

    victims, *attackers = sessions_of(telemetry)
    assert victims not in attackers
    assert len(set(attackers)) == 1


async def test_a_client_that_leaves_out_its_id_is_inferred(runtime: Runtime, telemetry: Telemetry) -> None:
    app = MCPMiddleware(Server(), runtime)

    for number in range(3):
        await post(app, call(request_id=number), [("mcp-protocol-version", "2025-11-25")])

    assert len(set(sessions_of(telemetry))) == 1
    assert sessions_of(telemetry)[0][1] == "inferred_weak"


async def test_a_public_session_id_that_comes_back_is_that_session(runtime: Runtime, telemetry: Telemetry) -> None:
    app = MCPMiddleware(Server(), runtime)
    first = await post(app, modern(), MODERN_HEADERS)
    await runtime.shut_down()

    second = await post(app, modern(), [*MODERN_HEADERS, ("x-session-id", first.session_id or ""), ("via", "proxy")])

    assert second.session_id == first.session_id


async def test_a_made_up_public_session_id_is_not_a_session(runtime: Runtime, telemetry: Telemetry) -> None:
    app = MCPMiddleware(Server(), runtime)

    replies = [await post(app, modern(), [*MODERN_HEADERS, ("x-session-id", "made-up")]) for _ in range(2)]

    assert replies[0].session_id == replies[1].session_id not in (None, "made-up")
    assert (telemetry.spans()[0].attributes or {})["session.previous_id"] == "made-up"


async def test_the_authenticated_user_tells_apart_what_the_token_does_not(
    runtime: Runtime, telemetry: Telemetry
) -> None:
    inner = Server()

    def authenticated(subject: str) -> Any:
        async def app(scope: Message, receive: Receive, send: Send) -> None:
            token = SimpleNamespace(client_id="c", subject=subject, claims={"iss": "i"})
            scope["user"] = SimpleNamespace(access_token=token)
            await MCPMiddleware(inner, runtime)(scope, receive, send)

        return app

    for subject in ("ann", "bob", "ann"):
        await post(authenticated(subject), modern(), [*MODERN_HEADERS, BEARER])

    first, second, third = sessions_of(telemetry)
    assert first == third != second


async def test_a_session_under_another_user_is_another_session_and_counted(
    runtime: Runtime, telemetry: Telemetry
) -> None:
    app = MCPMiddleware(Server(session_id="own"), runtime)

    for user in ("ann", "bob", "ann"):
        await post(app, call(), [*legacy_headers("own"), jwt(user)])

    first, second, third = sessions_of(telemetry)
    assert first == third == ("own", "header")
    assert second[0] != "own"
    assert ({"otel_mcp.reason": "principal"}, 1) in telemetry.points("otel_mcp.session.rejected")


async def test_another_user_of_a_lost_id_is_not_asked_about_again(
    runtime: Runtime, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = MCPMiddleware(Server(), runtime)
    for user in ("ann", "bob", "bob"):
        await post(app, call(), [*legacy_headers("lost"), jwt(user)])
    asked: list[str] = []

    async def describe(session_id: str, _: object = None) -> None:
        asked.append(session_id)

    monkeypatch.setattr(runtime.sessions, "describe", describe)
    await post(app, call(), [*legacy_headers("lost"), jwt("bob")])

    first, *others = sessions_of(telemetry)
    assert first not in others
    assert len(set(others)) == 1
    assert asked == []


async def test_a_forged_token_that_the_server_refuses_leaves_nothing(runtime: Runtime, telemetry: Telemetry) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await read(receive)
        await respond(send, b"", 401)

    for number in range(50):
        await post(MCPMiddleware(app, runtime), modern(), [*MODERN_HEADERS, jwt(f"made-up-{number}")])
    await runtime.shut_down()

    assert runtime.sessions.local == 0
    assert telemetry.events() == []
    assert sum(value for _, value in telemetry.points("otel_mcp.session.started")) == 0


async def test_made_up_ids_that_nobody_refuses_are_bounded(make_runtime: MakeRuntime, telemetry: Telemetry) -> None:
    runtime = make_runtime(max_new_sessions=20)
    app = MCPMiddleware(Server(), runtime)

    for number in range(200):
        await post(app, call(), legacy_headers(f"made-up-{number}"))
    await runtime.shut_down()

    assert runtime.sessions.local <= 20
    rejected = {tuple(given.items()): value for given, value in telemetry.points("otel_mcp.session.rejected")}
    assert rejected[(("otel_mcp.reason", "limit"),)] >= 180
    assert [source for _, source in sessions_of(telemetry)].count("none") == 180


async def test_the_facts_of_initialize_are_kept_for_the_session(runtime: Runtime, telemetry: Telemetry) -> None:
    app = MCPMiddleware(Server(session_id="own"), runtime)
    await post(app, initialize())
    for method in ("tools/list", "ping", "tools/call"):
        await post(app, ask(method, name="add"), [("mcp-session-id", "own")])

    for span in telemetry.spans():
        attributes = dict(span.attributes or {})
        assert attributes["otel_mcp.client.name"] == "unit-client"


@pytest.mark.parametrize(("name", "kind"), [("glama", "bot"), ("Acme-Check", "test"), ("mcp-inspector", None)])
async def test_the_name_of_a_registry_is_a_fact_of_its_session(
    make_runtime: MakeRuntime, telemetry: Telemetry, name: str, kind: str | None
) -> None:
    runtime = make_runtime(probe_clients="acme-check")
    app = MCPMiddleware(Server(session_id="own"), runtime)
    await post(app, initialize(name=name))
    await post(app, ask("tools/list"), legacy_headers("own"))
    await runtime.shut_down()

    state = await runtime.sessions.load("own")
    assert state is not None
    assert state.synthetic_type == kind
    assert [each["attributes"].get("user_agent.synthetic.type") for each in telemetry.events()] == [kind]


async def test_the_version_is_the_one_that_was_negotiated(runtime: Runtime, telemetry: Telemetry) -> None:
    answer = {"result": {"protocolVersion": "2025-03-26", "capabilities": {}}}
    app = MCPMiddleware(Server({"initialize": answer}, session_id="own"), runtime)

    await post(app, initialize(version="2025-11-25"))
    await post(app, call(), [("mcp-session-id", "own")])
    await runtime.shut_down()

    assert [(span.attributes or {}).get("mcp.protocol.version") for span in telemetry.spans()] == ["2025-03-26"] * 2
    state = await runtime.sessions.load("own")
    assert state is not None
    assert state.protocol_version == "2025-03-26"


async def test_an_id_that_continues_another_says_so(runtime: Runtime, telemetry: Telemetry) -> None:
    app = MCPMiddleware(Server(), runtime)
    await post(app, initialize())
    reply = await post(app, call(), legacy_headers("lost"))
    await runtime.shut_down()

    assert (telemetry.spans()[-1].attributes or {})["session.previous_id"] == "lost"
    state = await runtime.sessions.load(reply.session_id or "")
    assert state is not None
    assert state.previous_id == "lost"
    begun = [event["attributes"].get("session.previous_id") for event in telemetry.events()]
    assert sorted(begun, key=str) == [None, "lost"]


async def test_a_deleted_session_of_ours_is_continued_by_another(runtime: Runtime, telemetry: Telemetry) -> None:
    app = MCPMiddleware(Server(), runtime)
    old = (await post(app, initialize())).headers["mcp-session-id"]
    await post(app, call(), legacy_headers(old))
    await delete(app, legacy_headers(old))
    await runtime.shut_down()

    replies = [await post(app, call(), legacy_headers(old)) for _ in range(2)]

    assert replies[0].session_id == replies[1].session_id not in (None, old)


async def test_a_notification_joins_a_session_and_opens_none(runtime: Runtime, telemetry: Telemetry) -> None:
    app = MCPMiddleware(Server(), runtime)

    for _ in range(3):
        await post(app, notify("notifications/initialized"), [("mcp-protocol-version", "2025-11-25")])
    await runtime.shut_down()

    assert telemetry.events() == []
    assert runtime.sessions.local == 0


async def test_first_requests_that_come_together_are_one_session(runtime: Runtime, telemetry: Telemetry) -> None:
    app = MCPMiddleware(Server(), runtime)
    replies: list[Reply] = []

    async def one(number: int) -> None:
        replies.append(await post(app, modern(request_id=number), MODERN_HEADERS))

    async with anyio.create_task_group() as group:
        for number in range(20):
            group.start_soon(one, number)

    assert len({reply.session_id for reply in replies}) == 1


async def test_no_value_of_a_request_is_anywhere_in_what_we_emit(
    make_runtime: MakeRuntime, telemetry: Telemetry, caplog: pytest.LogCaptureFixture
) -> None:
    runtime = make_runtime(session_span=True)
    server = Server({"tools/call": {"result": {"content": "secret-result", "isError": True}}}, session_id="own")
    app = MCPMiddleware(server, runtime)
    meta = {"secret-key": "secret-meta", CLIENT_INFO: {"name": "c", "version": "1", "secret": "secret-info"}}
    headers = [
        *legacy_headers("own"),
        BEARER,
        ("cookie", "mcp_session=secret-cookie"),
        ("x-api-key", "secret-key-value"),
        ("x-other", "secret-header"),
    ]
    message = call(meta=meta)
    message["params"]["arguments"] = {"password": "secret-argument"}
    await post(app, initialize())
    for _ in range(2):
        await post(app, message, headers, query="token=secret-query")
    await runtime.shut_down()
    state = await runtime.sessions.load("own")
    await delete(app, legacy_headers("own"))
    await runtime.shut_down()

    assert state is not None
    emitted = telemetry.everything() + state.model_dump_json() + caplog.text
    for secret in ("secret", "s3cr3t", "t0ken"):
        assert secret not in emitted
