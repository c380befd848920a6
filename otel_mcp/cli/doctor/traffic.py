"""What the sessions of the last hour show: a host that opens one for each call, a proxy that nobody trusts."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any, Final, cast

from otel_mcp.cli.doctor.arguments import option
from otel_mcp.cli.doctor.finding import Finding, export, ok, skip, warn
from otel_mcp.cli.doctor.launch import Launch
from otel_mcp.cli.terminal import clean
from otel_mcp.settings import PREFIX, Settings
from otel_mcp.store.redis.cluster import Cluster
from otel_mcp.store.redis.connect import connect
from otel_mcp.store.redis.keys import Keys

NEWEST: Final = 200
"""Documents that are read at most."""
_HOUR: Final = 3600.0
_MANY: Final = 10
"""Sessions of one client from which it can be said how it goes about them."""
_CALLS_EACH: Final = 1.25
_PROXY_FLAGS: Final = ("--proxy-headers", "--forwarded-allow-ips", "--proxy-protocol", "--root-path")


async def newest(settings: Settings) -> list[dict[str, Any]]:
    """Read the newest documents, through the index of sessions; at most `NEWEST`, in two round trips.

    Raises:
        redis.RedisError, OSError: Redis does not answer.
    """
    keys = Keys(settings.redis_prefix, settings.service_name)
    client: Any = connect(settings.redis_url or "")
    try:
        index = ("ZREVRANGE", keys.deadlines, 0, NEWEST - 1)
        members = (
            (await client.run_all([index]))[0] if isinstance(client, Cluster) else await client.execute_command(*index)
        )
        if isinstance(members, Exception):
            raise members
        names = [keys.session(member.decode())[0] for member in members]
        if not names:
            return []
        if isinstance(client, Cluster):
            texts = await client.run_all([("GET", name) for name in names])
        else:
            texts = await client.execute_command("MGET", *names)
    finally:
        with suppress(Exception):
            await client.aclose()
    return [document for text in texts if isinstance(text, bytes) and (document := _parsed(text)) is not None]


def _parsed(text: bytes) -> dict[str, Any] | None:
    with suppress(ValueError):
        found: object = json.loads(text)
        if isinstance(found, dict):
            return cast("dict[str, Any]", found)
    return None


def _at(document: Mapping[str, Any]) -> float:
    with suppress(ValueError, TypeError):
        return datetime.fromisoformat(str(document.get("created_at")).replace("Z", "+00:00")).timestamp()
    return 0.0


def _is_of_a_client(document: Mapping[str, Any]) -> bool:
    """Whether it counts as a session: what became part of a conversation does not."""
    ended: object = document.get("ended")
    return not (isinstance(ended, dict) and cast("dict[str, Any]", ended).get("reason") == "replaced")


def one_session_a_call(documents: Iterable[Mapping[str, Any]], now: float | None = None) -> list[Finding]:
    """A host that opens a session for each call makes sessions say nothing."""
    since = (now if now is not None else time.time()) - _HOUR
    sessions, calls = Counter[str](), Counter[str]()
    for document in documents:
        count = document.get("tool_call_count")
        if _at(document) >= since and _is_of_a_client(document) and isinstance(count, int) and count > 0:
            client = str(document.get("client_name") or "unknown")
            sessions[client] += 1
            calls[client] += count
    findings = [
        warn(
            "sessions",
            f"{clean(client, 64)}: {count:,} sessions for {calls[client]:,} calls in the last hour, one for each",
            f"export {PREFIX}CONVERSATION_KEYS=NAME  # the name in params._meta of what the host calls a conversation",
        )
        for client, count in sessions.most_common()
        if count >= _MANY and calls[client] <= count * _CALLS_EACH
    ]
    if findings:
        return findings
    total = sum(sessions.values())
    return [ok("sessions", f"{total:,} sessions with {sum(calls.values()):,} calls in the last hour")]


def proxy(settings: Settings, launch: Launch, documents: Iterable[Mapping[str, Any]] | None) -> list[Finding]:
    """Behind a proxy that is not trusted, a client without an id or a credential has no session."""
    variable = f"{PREFIX}TRUSTED_PROXIES"
    if settings.trusted_proxies:
        return [ok("proxy", f"{settings.proxy_header} is believed from {', '.join(settings.trusted_proxies)}")]
    without = "clients that send neither an id nor a credential have no session"
    asked = option(launch.program, "--forwarded-allow-ips") or launch.env.get("FORWARDED_ALLOW_IPS")
    if asked or any(word in _PROXY_FLAGS for word in launch.program):
        mend = export(variable, asked if asked and asked != "*" else "10.0.0.0/8")
        return [warn("proxy", f"the server is behind a proxy, and {variable} is not set: {without}", mend)]
    sources = Counter(str(document.get("source")) for document in documents or ())
    if documents is not None and sources and set(sources) == {"none"}:
        mend = export(variable, "10.0.0.0/8")
        return [warn("proxy", f"no session has a source: {without}, unless their proxy is trusted", mend)]
    return [ok("proxy", f"none is trusted: {without}")]


def hash_key(settings: Settings, launch: Launch) -> list[Finding]:
    """Processes without a common key do not recognise one another's clients."""
    variable = f"{PREFIX}HASH_KEY"
    if settings.hash_key is not None:
        return [ok("hash-key", f"{variable} is set")]
    if settings.redis_url is not None:
        return [ok("hash-key", "shared through Redis")]
    if launch.workers > 1:
        found = f"{launch.workers} workers without Redis have {launch.workers} keys: none knows the others' clients"
        return [Finding("hash-key", "FAIL", found, f'export {variable}="$(openssl rand -hex 32)"')]
    if not launch.given:
        return [skip("hash-key", f"one for each process: without Redis, several replicas need {variable}")]
    return [ok("hash-key", "one process needs no common key")]
