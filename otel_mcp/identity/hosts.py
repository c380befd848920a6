"""Find the conversation ids of hosts, and recognise probes.

``HOST_KEYS`` lists the keys of ``params._meta`` that contain the conversation ids of hosts. A key without a namespace
is ambiguous, so it counts only together with the name of its host. Users add keys by configuration or by the entry
point group ``otel_mcp_conversation_keys``.

Probes are registries, scanners, monitors and tests: on a public server, most sessions are theirs. We recognise them by
their name in ``clientInfo``, or by the first product of their user agent. Whole names are compared, because a wrong
match hides a customer. The Inspector is not listed, since people use it, nor ``mcp``, the default name of an SDK.
Sources of both tables: ``docs/sessions.md``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Final, Literal, cast
from urllib.parse import unquote_plus

from pydantic_core import from_json

from otel_mcp.guard import guarded
from otel_mcp.settings import Settings
from otel_mcp.wire.jsonrpc import text

CONVERSATION_KEYS: Final = "otel_mcp_conversation_keys"
"""Entry point group of further `HostKey` tuples."""


@dataclass(frozen=True, slots=True)
class HostKey:
    """The key of a host's conversation id."""

    key: str
    """Key in ``_meta``."""
    inside: str | None = None
    """Key within that value, where the value is an object or its JSON text."""
    clients: tuple[str, ...] = ()
    """In lower case: one must be part of the clientInfo name or the user agent; empty = any client."""


HOST_KEYS: Final = (
    HostKey("openai/session"),
    HostKey("vscode.conversationId"),
    HostKey("ai.opencode/sessionID"),
    HostKey("antigravity.google/conversation_id"),
    HostKey("sessionID", clients=("opencode",)),
    HostKey("x-codex-turn-metadata", inside="session_id", clients=("codex",)),
    HostKey("threadId", clients=("codex",)),
    HostKey("sessionId", clients=("codex",)),
    HostKey("Mcp-Client-Session-Id"),
)

Synthetic = Literal["bot", "test"]

BOTS: Final = frozenset({
    "agent-tools.cloud",
    "agentage-mcp-catalog-health",
    "glama",
    "glama-mcp-inspector",
    "golemreach-trust",
    "hultra-link",
    "mcp-reputation-scanner",
    "mcp-rugpull-research",
    "mcp-spec-check",
    "mcpbeat",
    "mcpcensus",
    "mcpdd",
    "mcpgrade",
    "mcpindex-trust",
    "mcpscan",
    "mcpscoringengine",
    "orank-scanner",
    "reliability-bureau-spike",
    "sasame-audit",
    "sentineloracle",
    "smitherybot",
    "spanly-health-monitor",
    "szerverbank-public-agent-observer",
    "wmcp-grader",
    "x402-observatory",
    "x402-observer",
    "yellowmcp-health",
    "yellowmcp-healthchecker",
    "yellowmcp-securityscanner",
})  # fmt: skip
"""Registries, scanners and monitors that the operator did not set up; in lower case."""
TESTS: Final = frozenset({
    "blackbox exporter",
    "conformance-test-client",
    "datadog",
    "gatus",
    "googlestackdrivermonitoring-uptimechecks",
    "uptime-kuma",
    "uptimerobot",
})  # fmt: skip
"""Checks that an operator sets up, and that can send a POST; in lower case."""
_PROBING: Final = ("-probe", "-prober")
"""Endings of the names of dozens of probes; ``glimind-probe`` made a quarter of all sessions of one server."""

_MAX: Final = 512
_MAX_BAGGAGE: Final = 8192
_MAX_MEMBERS: Final = 180
"""Both are limits of W3C."""


def host_keys(settings: Settings) -> tuple[HostKey, ...]:
    """Return all keys, those of the user first."""
    keys = [HostKey(key) for key in settings.conversation_keys]
    for entry in entry_points(group=CONVERSATION_KEYS):
        with guarded(f"conversation keys {entry.name}"):
            keys.extend(entry.load())
    return (*keys, *HOST_KEYS)


def conversation(meta: Mapping[str, Any], keys: tuple[HostKey, ...], client: str) -> tuple[str, str] | None:
    """Find the first conversation id in `meta`, as (key, id); `client` = client name and user agent, lower case."""
    for entry in keys:
        if entry.key not in meta:
            continue
        if entry.clients and not any(name in client for name in entry.clients):
            continue
        if found := _value(meta[entry.key], entry.inside):
            return entry.key, found
    return None


def _value(value: object, inside: str | None) -> str | None:
    if inside is not None:
        if isinstance(value, str) and len(value) <= 8192:
            try:
                value = from_json(value)
            except ValueError:
                return None
        value = cast(dict[str, object], value).get(inside) if isinstance(value, dict) else None
    return text(value, _MAX) if isinstance(value, str) and 0 < len(value) <= _MAX else None


def from_baggage(baggage: str) -> tuple[str, str] | None:
    """Read the session of an instrumented agent from the text of W3C baggage.

    OpenTelemetry's propagator is not used: it logs what it cannot parse, so a
    client could write to our log.
    """
    found: dict[str, str] = {}
    if len(baggage) <= _MAX_BAGGAGE:
        for member in baggage.split(",", _MAX_MEMBERS)[:_MAX_MEMBERS]:
            key, _, value = member.partition(";")[0].partition("=")
            found.setdefault(key.strip(), value.strip())
    for key in ("gen_ai.conversation.id", "session.id"):
        value = text(unquote_plus(text(found.get(key, ""), _MAX_BAGGAGE)), _MAX + 1)
        if 0 < len(value) <= _MAX:
            return key, value
    return None


def synthetic_type(name: str | None, user_agent: str | None, tests: Collection[str] = ()) -> Synthetic | None:
    """Return the kind of a probe; ``None`` = an agent or a person, by its names.

    Args:
        name: of ``clientInfo``.
        user_agent: the whole header.
        tests: further names of checks, in lower case.
    """
    for each in (name, user_agent and _product(user_agent)):
        each = (each or "").strip().lower()
        if each in TESTS or each in tests:
            return "test"
        if each in BOTS or each.endswith(_PROBING):
            return "bot"
    return None


def _product(user_agent: str) -> str:
    """Return the first product of a user agent, or the one after ``(compatible;``."""
    _, _, compatible = user_agent.partition("(compatible;")
    return (compatible or user_agent).partition("/")[0].partition("(")[0]
