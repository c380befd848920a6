"""Conversation ids that hosts put into ``params._meta``.

The table says which key names the conversation of which host (sources:
``docs/sessions.md``). A key without a namespace could be anybody's, so it counts
only together with the name of its host. Users add keys by configuration or by
the entry point group ``otel_mcp_conversation_keys``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Final, cast
from urllib.parse import unquote_plus

from pydantic_core import from_json

from otel_mcp.guard import guarded
from otel_mcp.settings import Settings
from otel_mcp.wire.jsonrpc import text

CONVERSATION_KEYS: Final = "otel_mcp_conversation_keys"
"""Entry point group of further `HostKey` tuples."""


@dataclass(frozen=True, slots=True)
class HostKey:
    """One place where a host puts the id of its conversation."""

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

_MAX: Final = 512
_MAX_BAGGAGE: Final = 8192
_MAX_MEMBERS: Final = 180
"""Both as W3C limits them."""


def host_keys(settings: Settings) -> tuple[HostKey, ...]:
    """Return the keys that count, those of the user first."""
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

    Not by way of OpenTelemetry's propagator: that logs what it cannot read, and
    so would let a stranger write our log.
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
