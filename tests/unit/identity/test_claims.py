"""Which session a request claims to belong to: every source, alone and against the others."""

from __future__ import annotations

import re
from typing import Any

import pytest

from otel_mcp.hashing import KeyedHashes
from otel_mcp.identity.claims import Claims
from otel_mcp.model.call import Call, Exchange, client_info
from otel_mcp.model.delta import SessionFacts
from otel_mcp.model.session import Claim, Session
from otel_mcp.settings import load
from otel_mcp.wire.jsonrpc import Message
from tests.support.messages import CLIENT_INFO, MODERN

Headers = dict[str, str]
LEGACY = "2025-11-25"


def claims_of(**settings: Any) -> Claims:
    hashes = KeyedHashes()
    hashes.learn(b"secret")
    return Claims(load(**{"service_name": "shop", **settings}), hashes)


def called(
    headers: Headers | None = None,
    meta: dict[str, Any] | None = None,
    *,
    method: str = "tools/call",
    version: str = LEGACY,
    peer: str | None = "203.0.113.9",
    query: str | None = None,
    shared: bool = False,
    **params: Any,
) -> Call:
    """A call as the wire left it."""
    given = {name.lower().encode(): value.encode("latin-1") for name, value in (headers or {}).items()}
    session_id = given.get(b"mcp-session-id")
    exchange = Exchange(
        "POST",
        "/mcp",
        given,
        client=peer,
        client_is_shared=shared,
        protocol_version=version,
        wire_session_id=session_id.decode("latin-1") if session_id else None,
    )
    exchange.transport_id = exchange.wire_session_id or query
    made = exchange.add(Message(method, 1, {"name": "add", **params}))
    made.meta = meta or {}
    return made


def claimed(call: Call, **settings: Any) -> Claim | None:
    return claims_of(**settings).read(call)


def source(call: Call, **settings: Any) -> str:
    found = claimed(call, **settings)
    return found.source if found is not None else "none"


CONVERSATION = {"openai/session": "v1/abc"}
BAGGAGE = "user.id=7,session.id=agent-run"


@pytest.mark.parametrize(
    ("headers", "meta", "expected"),
    [
        ({}, CONVERSATION, "conversation"),
        ({}, {"baggage": BAGGAGE}, "conversation"),
        ({"baggage": BAGGAGE}, {}, "conversation"),
        ({"baggage": "gen_ai.conversation.id=c"}, {}, "conversation"),
        ({"mcp-session-id": "t"}, {}, "header"),
        ({"x-session-id": "t"}, {}, "header"),
        ({"x-claude-code-session-id": "t"}, {}, "header"),
        ({"x-hermes-session-id": "t"}, {}, "header"),
        ({"mcp-client-session-id": "t"}, {}, "header"),
        ({"authorization": "Bearer t"}, {}, "inferred"),
        ({}, {}, "inferred_weak"),
        ({"mcp-session-id": "t"}, CONVERSATION, "conversation"),
        ({"x-session-id": "t", "authorization": "Bearer t"}, {}, "header"),
    ],
)
def test_the_first_source_that_says_something_wins(headers: Headers, meta: dict[str, Any], expected: str) -> None:
    assert source(called(headers, meta)) == expected


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("conversation,header,inferred", "conversation"),
        ("header,conversation", "header"),
        ("cookie,header", "cookie"),
        ("inferred", "inferred"),
        ("inferred,conversation", "inferred"),
        ("none", "none"),
        ("cookie", "cookie"),
    ],
)
def test_the_order_of_the_sources_is_the_users(order: str, expected: str) -> None:
    call = called({"mcp-session-id": "t", "cookie": "mcp_session=c", "authorization": "Bearer t"}, CONVERSATION)

    assert source(call, session_sources=order) == expected


def test_a_source_that_is_not_listed_is_not_asked() -> None:
    assert source(called({}, CONVERSATION), session_sources="header") == "none"
    assert source(called({"cookie": "mcp_session=c"}, shared=True)) == "none"


def test_a_transport_id_keys_as_itself_and_is_marked_as_the_protocols() -> None:
    assert claimed(called({"mcp-session-id": "abc-1"})) == Claim("header", "abc-1", True)
    assert claimed(called({"mcp-session-id": "c_" + "0" * 32})) == Claim("header", "c_" + "0" * 32, True)
    assert claimed(called({"x-session-id": "c_" + "0" * 32})) == Claim("header", "c_" + "0" * 32)
    assert claimed(called(query="abc-2")) == Claim("header", "abc-2", True)


def test_a_harmful_or_hidden_transport_id_is_hashed() -> None:
    harmful = claimed(called({"mcp-session-id": "a{b}"}))
    hidden = claimed(called({"mcp-session-id": "abc"}), session_id="hashed")

    assert harmful is not None
    assert hidden is not None
    assert harmful.key.startswith("h_")
    assert hidden.key.startswith("h_")
    assert harmful.transport
    assert hidden.transport


def test_a_revision_without_sessions_has_no_transport_id() -> None:
    assert source(called({"mcp-session-id": "t"}, version=MODERN)) == "inferred_weak"
    assert source(called({"mcp-session-id": "t", "x-session-id": "x"}, version=MODERN)) == "header"


def test_a_named_id_keys_as_a_hash_of_service_source_and_id() -> None:
    calls = [
        called({}, CONVERSATION),
        called({}, {"openai/session": "v1/other"}),
        called({}, {"vscode.conversationId": "v1/abc"}),
        called({"x-hermes-session-id": "v1/abc"}),
        called({"x-claude-code-session-id": "v1/abc"}),
        called({"baggage": "session.id=v1/abc"}),
    ]
    keys = [(claimed(call)) for call in calls]
    elsewhere = claimed(calls[0])

    assert len({found.key for found in keys if found is not None}) == len(calls)
    assert all(found is not None and found.key.startswith("c_") and len(found.key) == 34 for found in keys)
    assert all(found is not None and found.derived and not found.transport for found in keys)
    assert elsewhere == keys[0]
    found = claims_of(service_name="another").read(calls[0])
    assert found is not None
    assert keys[0] is not None
    assert found.key != keys[0].key


def test_a_conversation_is_named_also_where_another_source_keys_the_session() -> None:
    found = claimed(called({"mcp-session-id": "t"}, CONVERSATION), session_sources="header")

    assert found == Claim("header", "t", True, conversation_id="v1/abc")


def test_keys_that_the_user_configures_are_conversations() -> None:
    assert source(called({}, {"our/run": "r"}), conversation_keys="our/run") == "conversation"
    assert source(called({}, {"our/run": "r"})) == "inferred_weak"


def test_headers_that_the_user_configures_carry_sessions_after_the_standard_ones() -> None:
    options = {"session_headers": "X-Agent-Run"}

    assert source(called({"x-agent-run": "r"}), **options) == "header"
    both = claimed(called({"x-agent-run": "r", "mcp-session-id": "t"}), **options)
    assert both is not None
    assert both.key == "t"
    assert source(called({"x-agent-run": "r"})) == "inferred_weak"


def test_a_key_without_a_namespace_counts_only_with_its_host() -> None:
    meta = {"threadId": "t"}
    by_meta = {"threadId": "t", CLIENT_INFO: {"name": "codex-mcp-client", "version": "1"}}

    assert source(called({}, meta)) == "inferred_weak"
    assert source(called({"user-agent": "Codex/1.0"}, meta)) == "conversation"
    assert source(called({}, by_meta)) == "conversation"


@pytest.mark.parametrize("cookie", ["mcp_session=abc", "a=b; mcp_session=abc; c=d", 'mcp_session="abc"'])
def test_a_cookie_is_a_source_where_the_user_lists_it(cookie: str) -> None:
    options = {"session_sources": "cookie"}
    found, other = (
        claimed(called({"cookie": cookie}), **options),
        claimed(called({"cookie": "mcp_session=other"}), **options),
    )

    assert found is not None
    assert other is not None
    assert found.key.startswith("c_")
    assert found.key != other.key
    assert source(called({"cookie": cookie}), session_cookie="sid", **options) == "none"


@pytest.mark.parametrize("cookie", ["", "mcp_session=", "other=1", "=;=;", "\xff\xfe", "mcp_session", "a" * 9000])
def test_a_cookie_that_says_nothing_is_none(cookie: str) -> None:
    assert source(called({"cookie": cookie}), session_sources="cookie") == "none"


@pytest.mark.parametrize(
    "baggage", ["", ",,,", "session.id", "session.id=", "=x", "\xff", "session.id=" + "x" * 9000, "a=b;session.id=x"]
)
def test_baggage_that_says_nothing_is_none(baggage: str) -> None:
    assert source(called({"baggage": baggage}), session_sources="conversation") == "none"
    assert source(called({}, {"baggage": baggage}), session_sources="conversation") == "none"


def fingerprint(call: Call, **settings: Any) -> str:
    found = claimed(call, **settings)
    assert found is not None
    assert found.inferred
    return found.key


def test_the_same_caller_address_and_client_are_one_fingerprint() -> None:
    headers = {"authorization": "Bearer t", "user-agent": "a"}
    meta = {CLIENT_INFO: {"name": "c", "version": "1"}}

    assert fingerprint(called(headers, meta)) == fingerprint(called(headers, dict(meta)))


def test_everything_that_tells_clients_apart_tells_them_apart() -> None:
    headers = {"authorization": "Bearer t", "user-agent": "a"}
    meta = {CLIENT_INFO: {"name": "c", "version": "1"}}
    others = [
        called(headers, meta),
        called({**headers, "authorization": "Bearer u"}, meta),
        called({**headers, "user-agent": "b"}, meta),
        called(headers, {CLIENT_INFO: {"name": "d", "version": "1"}}),
        called(headers, {CLIENT_INFO: {"name": "c", "version": "2"}}),
        called(headers, meta, peer="203.0.113.10"),
        called({"user-agent": "a"}, meta),
    ]

    assert len({fingerprint(call) for call in others}) == len(others)


def test_an_address_that_many_share_tells_nothing_of_a_client() -> None:
    assert source(called()) == "inferred_weak"
    assert source(called(shared=True)) == "none"
    assert source(called(peer=None)) == "none"
    assert source(called({"authorization": "Bearer t"}, shared=True)) == "inferred"


BASE: dict[str, Any] = {
    "headers": {"user-agent": "one/1"},
    "meta": {"io.modelcontextprotocol/clientInfo": {"name": "a"}},
}


@pytest.mark.parametrize(
    "other",
    [
        {**BASE, "headers": {"user-agent": "two/1"}},
        {**BASE, "headers": {"user-agent": "one/1", "x-session-id": "mine"}},
        {**BASE, "headers": {"user-agent": "one/1", "baggage": "session.id=talk"}},
        {**BASE, "headers": {"user-agent": "one/1", "authorization": "Bearer secret"}},
        {**BASE, "shared": True},
        {**BASE, "headers": {"user-agent": "one/1", "mcp-session-id": "own"}, "version": "2025-11-25"},
        {**BASE, "meta": {"io.modelcontextprotocol/clientInfo": {"name": "b"}}},
        {**BASE, "meta": {"io.modelcontextprotocol/clientInfo": {"name": "a", "version": "2"}}},
        {**BASE, "meta": {**BASE["meta"], "openai/session": "talk"}},
        {**BASE, "peer": "10.9.9.9"},
        {**BASE, "method": "initialize"},
    ],
    ids=[
        "agent", "x-session-id", "baggage", "credential", "proxy", "transport", "name", "version", "host", "peer",
        "method",
    ],
)  # fmt: skip
def test_what_is_remembered_of_one_request_is_not_taken_for_another(other: dict[str, Any]) -> None:
    claims = claims_of()
    requests = [called(**BASE), called(**other), called(**BASE), called(**other)]

    remembered = [claims.of(request) for request in requests]

    assert remembered == [claims.read(request) for request in requests]
    assert remembered[0] is remembered[2]
    assert remembered[0] != remembered[1]


def test_what_is_remembered_depends_on_who_opened_the_transport_session() -> None:
    claims = claims_of()
    sources: list[str | None] = []

    for name in ("other", "codex-mcp-client", "other"):
        request = called({"mcp-session-id": "t"}, {"threadId": "t"})
        request.exchange.transport_session = Session(SessionFacts("t", 1.0, 3600.0, client_name=name), 1.0)
        found = claims.of(request)
        sources.append(found.source if found is not None else None)

    assert sources == ["header", "conversation", "header"]


def test_nothing_is_inferred_for_initialize() -> None:
    assert source(called(method="initialize")) == "none"
    assert source(called({"authorization": "Bearer t"}, method="initialize")) == "none"
    assert source(called({"mcp-session-id": "t"}, method="initialize")) == "header"


@pytest.mark.parametrize(
    ("method", "params", "meta", "named"),
    [
        ("initialize", {"clientInfo": {"name": "c", "version": "1"}}, {}, ("c", "1")),
        ("tools/call", {}, {CLIENT_INFO: {"name": "c", "version": "1"}}, ("c", "1")),
        ("tools/call", {"clientInfo": {"name": "c"}}, {}, (None, None)),
        ("initialize", {"clientInfo": "c"}, {}, (None, None)),
        ("initialize", {"clientInfo": {"name": 7, "version": []}}, {}, (None, None)),
        ("initialize", {"clientInfo": {"name": "x" * 999, "version": "y" * 999}}, {}, ("x" * 128, "y" * 64)),
        ("initialize", {}, {}, (None, None)),
    ],
)
def test_the_client_says_who_it_is(
    method: str, params: dict[str, Any], meta: dict[str, Any], named: tuple[str | None, str | None]
) -> None:
    assert client_info(called({}, meta, method=method, **params)) == named


def test_a_caller_is_one_behind_any_of_several_proxies() -> None:
    headers = {"authorization": "Bearer t"}
    one, two = (called(headers, peer=f"10.0.0.{number}", shared=True) for number in (1, 2))

    assert fingerprint(one) == fingerprint(two)


@pytest.mark.parametrize("keys", ["", "team/chat*", "a+(b", "x{9}"])
def test_looking_for_a_conversation_repeats_nothing(keys: str) -> None:
    """Else a body made for it could take more than linear time."""
    pattern = claims_of(conversation_keys=keys).conversations.pattern

    assert set(b"*+{").isdisjoint(re.sub(rb"\\.", b"", pattern))
