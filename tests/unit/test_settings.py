"""Configuration: keyword arguments, else the environment, else the default; a bad value harms nobody."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.sdk.resources import OTELResourceDetector

from otel_mcp.settings import CONFLICTS, Settings, captures_content, load
from tests.support.answers import Server
from tests.support.asgi import post
from tests.support.messages import call
from tests.unit.conftest import MakeRuntime

Logs = Callable[[], list[str]]
PREFIX = "OTEL_PYTHON_MCP_"


def test_without_configuration_everything_has_its_default() -> None:
    assert load().model_dump() == {
        "redis_url": None,
        "redis_prefix": "",
        "service_name": "unknown_service",
        "session_ttl": 3600.0,
        "session_idle_gap": 1800.0,
        "session_sources": ("conversation", "header", "inferred"),
        "session_headers": (),
        "session_cookie": "mcp_session",
        "conversation_keys": (),
        "probe_clients": (),
        "session_id": "raw",
        "response_headers": ("mcp-session-id", "x-session-id"),
        "trusted_proxies": (),
        "proxy_header": "x-forwarded-for",
        "max_new_sessions": 600,
        "max_sessions": 10_000,
        "max_tool_calls": 25,
        "max_pending_calls": 10_000,
        "flush_interval": 1.0,
        "flush_calls": 256,
        "sweep_interval": 10.0,
        "http_span": "auto",
        "session_span": False,
        "store_content": False,
        "capture_content": False,
        "redaction_hook": None,
        "excluded_urls": None,
        "tenant": None,
        "tenant_names": (),
        "observers": (),
        "audit": "off",
        "audit_caller": "hash",
        "log_calls": False,
        "slow_call": 5.0,
        "agent_model": None,
        "agent_url": None,
        "agent_calls": 10,
        "agent_content": False,
        "jaeger_url": None,
        "grafana_url": None,
        "hash_key": None,
    }


def test_the_environment_is_read_with_its_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PREFIX + "SESSION_TTL", "60")
    monkeypatch.setenv(PREFIX + "SESSION_SOURCES", " header , cookie ,, ")
    monkeypatch.setenv(PREFIX + "SESSION_HEADERS", "X-Agent-Run,X-Other")
    monkeypatch.setenv(PREFIX + "STORE_CONTENT", "true")
    monkeypatch.setenv(PREFIX + "HTTP_SPAN", "off")
    monkeypatch.setenv(PREFIX + "PROXY_HEADER", "X-Real-IP")
    monkeypatch.setenv(PREFIX + "TENANT", "header:X-Org")
    monkeypatch.setenv(PREFIX + "TENANT_NAMES", "acme, umbrella")
    monkeypatch.setenv("SESSION_IDLE_GAP", "1")

    settings = load()

    assert settings.session_ttl == 60.0
    assert settings.session_sources == ("header", "cookie")
    assert settings.session_headers == ("x-agent-run", "x-other")
    assert settings.store_content is True
    assert settings.http_span == "off"
    assert settings.proxy_header == "x-real-ip"
    assert (settings.tenant, settings.tenant_names) == ("header:x-org", ("acme", "umbrella"))
    assert settings.session_idle_gap == 1800.0


def test_keyword_arguments_win_and_none_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PREFIX + "SESSION_TTL", "60")
    monkeypatch.setenv(PREFIX + "MAX_SESSIONS", "7")

    settings = load(session_ttl=5, max_sessions=None)

    assert settings.session_ttl == 5.0
    assert settings.max_sessions == 7


def test_an_empty_variable_is_no_value(monkeypatch: pytest.MonkeyPatch, logs: Logs) -> None:
    monkeypatch.setenv(PREFIX + "SESSION_TTL", "")
    monkeypatch.setenv(PREFIX + "HASH_KEY", "")

    settings = load()

    assert (settings.session_ttl, settings.hash_key, logs()) == (3600.0, None, [])


BAD = [
    ("SESSION_TTL", "soon"),
    ("SESSION_TTL", "0"),
    ("SESSION_TTL", "-1"),
    ("SESSION_TTL", "nan"),
    ("SESSION_TTL", "inf"),
    ("SESSION_IDLE_GAP", "0"),
    ("SESSION_SOURCES", "header,guess"),
    ("SESSION_ID", "plain"),
    ("SESSION_HEADERS", "x-\u2713"),
    ("MAX_NEW_SESSIONS", "0"),
    ("MAX_SESSIONS", "many"),
    ("MAX_TOOL_CALLS", "0"),
    ("MAX_TOOL_CALLS", "501"),
    ("FLUSH_INTERVAL", "0"),
    ("FLUSH_CALLS", "1.5"),
    ("SWEEP_INTERVAL", "never"),
    ("HTTP_SPAN", "maybe"),
    ("SESSION_SPAN", "perhaps"),
    ("STORE_CONTENT", "42"),
    ("TRUSTED_PROXIES", "10.0.0.0/99"),
    ("TRUSTED_PROXIES", "proxy.internal"),
    ("PROXY_HEADER", "cf-connecting-ip"),
    ("EXCLUDED_URLS", "["),
    ("SLOW_CALL", "x"),
    ("TENANT", "org"),
    ("TENANT", "claim:"),
    ("TENANT", "header:x org"),
    ("TENANT", "path:0"),
    ("TENANT", "path:first"),
    ("TENANT", ":1"),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_value_that_cannot_be_used_is_one_warning_and_the_default(
    monkeypatch: pytest.MonkeyPatch, logs: Logs, name: str, value: str
) -> None:
    monkeypatch.setenv(PREFIX + name, value)

    settings = load()

    assert settings == Settings.model_construct()
    (line,) = logs()
    assert line.startswith(f"otel_mcp: {PREFIX}{name} cannot be used")
    assert line.endswith("; the default stands")


@pytest.mark.anyio
@pytest.mark.parametrize(("name", "value"), BAD)
async def test_a_value_that_cannot_be_used_takes_nothing_away(
    monkeypatch: pytest.MonkeyPatch, make_runtime: MakeRuntime, telemetry: Any, name: str, value: str
) -> None:
    from otel_mcp import MCPMiddleware

    monkeypatch.setenv(PREFIX + name, value)
    app = MCPMiddleware(Server(), make_runtime())

    reply = await post(app, call())

    assert reply.status == 200
    assert reply.session_id is not None
    assert [span.name for span in telemetry.spans()] == ["tools/call add"]


def test_several_bad_values_are_a_warning_each_and_good_ones_stand(monkeypatch: pytest.MonkeyPatch, logs: Logs) -> None:
    monkeypatch.setenv(PREFIX + "SESSION_TTL", "soon")
    monkeypatch.setenv(PREFIX + "HTTP_SPAN", "maybe")
    monkeypatch.setenv(PREFIX + "MAX_SESSIONS", "5")

    settings = load(max_tool_calls="x", flush_calls=3)

    assert settings == Settings.model_construct(max_sessions=5, flush_calls=3)
    named = [line.split()[1].removeprefix(PREFIX) for line in logs() if "cannot be used" in line]
    assert named == ["HTTP_SPAN", "MAX_TOOL_CALLS", "SESSION_TTL"]


@pytest.mark.parametrize(
    ("name", "value", "takes"),
    [
        ("AUDIT", "true", "'off' or 'events'"),
        ("AUDIT_CALLER", "x-planted", "hash, none or claim:NAME"),
        ("TENANT", "x-planted", "path:1, claim:NAME or header:NAME"),
    ],
)
def test_a_warning_names_what_the_setting_takes(
    monkeypatch: pytest.MonkeyPatch, logs: Logs, name: str, value: str, takes: str
) -> None:
    monkeypatch.setenv(PREFIX + name, value)
    load()

    assert logs() == [f"otel_mcp: {PREFIX}{name} cannot be used (it takes {takes}); the default stands"]


def test_a_bad_argument_gives_way_to_the_default_only(monkeypatch: pytest.MonkeyPatch, logs: Logs) -> None:
    monkeypatch.setenv(PREFIX + "SESSION_TTL", "60")

    assert load(session_ttl="x").session_ttl == 3600.0
    assert len(logs()) == 1


def test_a_warning_never_shows_the_value(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv(PREFIX + "SESSION_SOURCES", "p4ssw0rd")
    monkeypatch.setenv(PREFIX + "SESSION_TTL", "p4ssw0rd")

    load(hash_key=["p4ssw0rd"])

    assert len(caplog.messages) == 3
    assert "p4ssw0rd" not in caplog.text


def test_lists_are_texts_or_tuples_in_python() -> None:
    assert load(session_sources="header, none").session_sources == ("header", "none")
    assert load(session_sources=["header"]).session_sources == ("header",)
    assert load(response_headers="None").response_headers == ("none",)
    assert load(observers=("a:b", "c:d")).observers == ("a:b", "c:d")


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({}, "unknown_service"),
        ({"OTEL_SERVICE_NAME": "shop"}, "shop"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "a=b, service.name = cart ,c=d"}, "cart"),
        ({"OTEL_SERVICE_NAME": "shop", "OTEL_RESOURCE_ATTRIBUTES": "service.name=cart"}, "shop"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "nonsense"}, "unknown_service"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=my%20shop%2Ceu"}, "my shop,eu"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=a,service.name=b%3Dc"}, "b=c"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=a=b"}, "a=b"),
        ({"OTEL_SERVICE_NAME": "as%20is"}, "as%20is"),
    ],
)
def test_the_service_is_that_of_the_standard_variables(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], name: str
) -> None:
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)

    assert load().service_name == name
    assert OTELResourceDetector().detect().attributes.get("service.name", "unknown_service") == name


WITHOUT_EFFECT: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("SESSION_HEADERS", {"session_headers": "x-run", "session_sources": "inferred", "response_headers": "none"}, {}),
    ("SESSION_COOKIE", {"session_cookie": "sid"}, {"session_sources": "cookie,header"}),
    (
        "CONVERSATION_KEYS",
        {"conversation_keys": "a/b", "session_sources": "header"},
        {"session_sources": "conversation"},
    ),
    ("SESSION_IDLE_GAP", {"session_idle_gap": 120, "session_ttl": 60}, {"session_ttl": 120}),
    (
        "RESPONSE_HEADERS",
        {"response_headers": "mcp-session-id", "session_sources": "inferred"},
        {"response_headers": "x-session-id"},
    ),
    ("PROXY_HEADER", {"proxy_header": "forwarded"}, {"trusted_proxies": "10.0.0.0/8"}),
    ("REDACTION_HOOK", {"redaction_hook": "json:dumps"}, {"store_content": True}),
    ("TENANT_NAMES", {"tenant_names": "acme"}, {"tenant": "path:1"}),
    ("AUDIT_CALLER", {"audit_caller": "none"}, {"audit": "events"}),
    ("SLOW_CALL", {"slow_call": 1}, {"log_calls": True}),
    ("AGENT_URL", {"agent_url": "http://127.0.0.1/v1"}, {"agent_model": "small"}),
    ("AGENT_CALLS", {"agent_calls": 20}, {"agent_model": "small"}),
    ("AGENT_CONTENT", {"agent_content": True, "agent_model": "small"}, {"store_content": True}),
    ("REDIS_PREFIX", {"redis_prefix": "a:"}, {"redis_url": "redis://127.0.0.1"}),
]


@pytest.mark.parametrize(("name", "given", "remedy"), WITHOUT_EFFECT, ids=[case[0] for case in WITHOUT_EFFECT])
def test_a_setting_that_another_leaves_without_effect_is_one_warning(
    logs: Logs, name: str, given: dict[str, Any], remedy: dict[str, Any]
) -> None:
    remedy = remedy or {"session_sources": "header"}
    load(**{**given, **remedy})
    assert logs() == []

    load(**given)
    (line,) = logs()
    assert line.startswith(f"otel_mcp: {PREFIX}{name} has no effect: ")


def test_every_conflict_is_tried() -> None:
    assert {name.lower() for name, _, _ in WITHOUT_EFFECT} == {name for name, _, _ in CONFLICTS}


def test_settings_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load().session_ttl = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("variable", "option", "captured"),
    [
        (None, False, False),
        (None, True, True),
        ("true", False, True),
        ("SPAN_ONLY", False, True),
        (" span_and_event ", False, True),
        ("event_only", False, False),
        ("false", False, False),
        ("no_content", False, False),
        ("nonsense", False, False),
        ("false", True, True),
    ],
)
def test_content_goes_on_spans_only_where_somebody_asked_for_it(
    monkeypatch: pytest.MonkeyPatch, variable: str | None, option: bool, captured: bool
) -> None:
    if variable is not None:
        monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", variable)

    assert captures_content(load(capture_content=option)) is captured
