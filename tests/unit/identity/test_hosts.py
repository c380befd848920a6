"""Conversation ids, and the hosts that they are believed of; registries, monitors and tests, by their names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from otel_mcp.identity.hosts import BOTS, HOST_KEYS, TESTS, HostKey, conversation, from_baggage, synthetic_type


@pytest.mark.parametrize(
    ("meta", "client", "found"),
    [
        ({"openai/session": "v1/x"}, "", ("openai/session", "v1/x")),
        ({"vscode.conversationId": "x", "vscode.requestId": "turn"}, "", ("vscode.conversationId", "x")),
        ({"ai.opencode/sessionID": "ses_1"}, "", ("ai.opencode/sessionID", "ses_1")),
        ({"antigravity.google/conversation_id": "x"}, "", ("antigravity.google/conversation_id", "x")),
        ({"Mcp-Client-Session-Id": "x"}, "", ("Mcp-Client-Session-Id", "x")),
        ({"sessionID": "ses_1"}, "opencode 1.0", ("sessionID", "ses_1")),
        ({"sessionID": "ses_1"}, "somebody else", None),
        ({"threadId": "t"}, "codex-mcp-client", ("threadId", "t")),
        ({"threadId": "t"}, "a slack bot", None),
        ({"sessionId": "s"}, "codex", ("sessionId", "s")),
        ({"sessionId": "s"}, "", None),
        ({"claudecode/toolUseId": "one call"}, "claude-code", None),
        ({"openai/subject": "a person"}, "openai-mcp", None),
        ({"progressToken": 1}, "", None),
        ({}, "codex", None),
    ],
)
def test_a_key_counts_with_its_namespace_or_with_its_host(
    meta: dict[str, Any], client: str, found: tuple[str, str] | None
) -> None:
    assert conversation(meta, HOST_KEYS, client) == found


def test_each_key_of_a_host_is_in_the_documentation() -> None:
    page = (Path(__file__).parents[3] / "docs" / "sessions.md").read_text(encoding="utf-8")

    assert [entry.key for entry in HOST_KEYS if f"`{entry.key}`" not in page] == []


@pytest.mark.parametrize(
    "value", [{"session_id": "s", "turn_id": "t"}, json.dumps({"session_id": "s", "turn_id": "t"})]
)
def test_codex_metadata_is_read_as_object_and_as_its_json_text(value: object) -> None:
    meta = {"x-codex-turn-metadata": value, "threadId": "t"}

    assert conversation(meta, HOST_KEYS, "codex") == ("x-codex-turn-metadata", "s")


@pytest.mark.parametrize(
    "value", ["{", "[]", "null", "7", '{"turn_id":"t"}', "[" * 8000, '{"session_id":' + '"x"' * 4000, {}, [], 7, None]
)
def test_codex_metadata_that_says_nothing_leaves_it_to_the_next_key(value: object) -> None:
    meta = {"x-codex-turn-metadata": value, "threadId": "t"}

    assert conversation(meta, HOST_KEYS, "codex") == ("threadId", "t")


@pytest.mark.parametrize("value", ["", "x" * 513, 7, None, [], {}, True, ["x"]])
def test_a_value_that_can_be_no_id_is_none(value: object) -> None:
    assert conversation({"openai/session": value}, HOST_KEYS, "") is None


def test_keys_of_the_user_come_first_and_need_no_host() -> None:
    keys = (HostKey("our/run"), *HOST_KEYS)

    assert conversation({"openai/session": "x", "our/run": "r"}, keys, "") == ("our/run", "r")


@pytest.mark.parametrize(
    ("baggage", "found"),
    [
        ("session.id=s", ("session.id", "s")),
        ("a=b, session.id = s%20t ;p=1,x", ("session.id", "s t")),
        ("session.id=s,gen_ai.conversation.id=c", ("gen_ai.conversation.id", "c")),
        ("gen_ai.conversation.id=,session.id=s", ("session.id", "s")),
        ("session.id=s,session.id=t", ("session.id", "s")),
        ("session.id=" + "x" * 513, None),
        ("," * 180 + "session.id=s", None),
        ("x" * 8192 + ",session.id=s", None),
        ("session.id=\ud800", ("session.id", "?")),
        ("session.id=%ED%A0%80", ("session.id", "\ufffd" * 3)),
        ("user.id=u", None),
        ("session.id", None),
        ("=", None),
        ("", None),
    ],
)
def test_baggage_names_the_conversation_of_an_instrumented_agent(
    baggage: str, found: tuple[str, str] | None, caplog: pytest.LogCaptureFixture
) -> None:
    assert from_baggage(baggage) == found
    assert caplog.records == []


@pytest.mark.parametrize(
    ("name", "user_agent", "kind"),
    [
        ("glama", None, "bot"),
        ("MCPScoringEngine", "node", "bot"),
        ("glimind-probe", None, "bot"),
        ("tiza-search-prober", None, "bot"),
        (" YellowMCP-Health ", None, "bot"),
        ("mcp", "mcpbeat/0.1 (+https://mcpbeat.com/bot/)", "bot"),
        (None, "Mozilla/5.0 (compatible; SmitheryBot/1.0; +https://smithery.ai)", "bot"),
        ("conformance-test-client", "node", "test"),
        ("mcp", "Blackbox Exporter/0.27.0", "test"),
        (None, "Mozilla/5.0+(compatible; UptimeRobot/2.0; http://www.uptimerobot.com/)", "test"),
        (None, "GoogleStackdriverMonitoring-UptimeChecks(https://cloud.google.com/monitoring)", "test"),
        (None, "Datadog/Synthetics", "test"),
        ("Acme-Check", None, "test"),
        (None, "acme-check/2 python-httpx/0.28", "test"),
        ("mcp", "python-httpx/0.28.1", None),
        ("mcp-inspector", "node", None),
        ("claude-code", "claude-code/2.1.266 (cli)", None),
        ("glama-chat", None, None),
        ("probe", None, None),
        ("probe-designer", "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36", None),
        ("my-health", "datadog-agent/7", None),
        ("", "", None),
        (None, None, None),
    ],
)
def test_synthetic_client_is_known_by_its_whole_name_only(
    name: str | None, user_agent: str | None, kind: str | None
) -> None:
    assert synthetic_type(name, user_agent, frozenset({"acme-check"})) == kind


def test_names_are_in_lower_case_and_of_one_kind() -> None:
    assert not BOTS & TESTS
    assert all(each == each.lower().strip() for each in BOTS | TESTS)
