"""Check our settings, the hash key, the sessions of the last hour, and whether there is a proxy that is not trusted."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Final

from otel_mcp.cli.doctor.launch import Launch, option
from otel_mcp.cli.doctor.report import Finding, export, fail, ok, skip, warn
from otel_mcp.cli.document import Document
from otel_mcp.cli.terminal import clean, counted
from otel_mcp.settings import PREFIX, Settings, load

_HOUR: Final = 3600.0
_MIN_SESSIONS: Final = 10
"""Sessions of a client that are needed to judge it."""
_MAX_CALLS_EACH: Final = 1.25
"""Calls for each session, on average, up to which a client is said to open one for each call."""
_PROXY_FLAGS: Final = ("--proxy-headers", "--forwarded-allow-ips", "--proxy-protocol", "--root-path")
_TRUSTED: Final = f"{PREFIX}TRUSTED_PROXIES"
_NO_SESSION: Final = "a client that sends no id and no credential has no session"


class _Warnings(logging.Handler):
    """Collects the messages that are logged."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage().removeprefix("otel_mcp: "))


@contextmanager
def _environment(env: Mapping[str, str]) -> Generator[list[str]]:
    """Replace the environment of this process, from which settings are read; yields the warnings logged meanwhile."""
    before, logger, warnings = dict(os.environ), logging.getLogger("otel_mcp"), _Warnings()
    propagates, logger.propagate = logger.propagate, False
    logger.addHandler(warnings)
    os.environ.clear()
    os.environ.update(env)
    try:
        yield warnings.lines
    finally:
        os.environ.clear()
        os.environ.update(before)
        logger.propagate = propagates
        logger.removeHandler(warnings)


def read(env: Mapping[str, str], redis_url: str | None = None) -> tuple[Settings, list[str]]:
    """Return the settings that the server would have, and the warnings that it would log."""
    with _environment(env) as warnings:
        return load(redis_url=redis_url), warnings


def settings(env: Mapping[str, str], current: Settings, warnings: Iterable[str]) -> Iterator[Finding]:
    """Check for settings that are invalid, have no effect, or are misspelled."""
    known, is_well = {name.upper() for name in Settings.model_fields}, True
    for line in warnings:
        name = next((word.strip(",:;") for word in line.split() if word.startswith(PREFIX)), None)
        takes = line.partition(" (it takes ")[2].partition(")")[0].rpartition(" or ")[2].strip("'")
        yield warn(line, (export(name, takes) if takes else f"unset {name}") if name is not None else None)
        is_well = False
    for variable, value in sorted(env.items()):
        name = variable.removeprefix(PREFIX).upper()
        if variable.startswith(PREFIX) and name not in known:
            close = get_close_matches(name, known, 1)
            mend = f'export {PREFIX}{close[0]}="${variable}"' if close else f"unset {variable}"
            yield warn(f"there is no setting {variable}", mend)
            is_well = False
        # Env files of containers are read without a shell, which would remove quotes.
        if variable.startswith("OTEL_") and len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
            yield warn(f"the value of {variable} includes quotes", f'export {variable}="${{{variable}:1:-1}}"')
            is_well = False
    if not env.get("OTEL_SERVICE_NAME") and current.service_name.startswith("unknown_service"):
        yield warn("the service has no name", export("OTEL_SERVICE_NAME", "my-mcp-server"))
    elif is_well:
        given = sum(name.startswith(PREFIX) for name in env)
        yield ok(f"service {current.service_name}, {counted(given, 'setting')} of ours")


def sessions(documents: Sequence[Document]) -> Iterator[Finding]:
    """Check for a client that opens a session for each call, which makes sessions meaningless."""
    since, count, calls = time.time() - _HOUR, Counter[str](), Counter[str]()
    for document in documents:
        # A session that became part of a conversation does not count.
        if (document.created or 0) >= since and document.ended_by != "replaced" and document.call_count > 0:
            client = document.facts["client_name"] or "unknown"
            count[client] += 1
            calls[client] += document.call_count
    guilty = [
        name for name, many in count.most_common() if many >= _MIN_SESSIONS and calls[name] <= many * _MAX_CALLS_EACH
    ]
    for name in guilty:
        yield warn(
            f"{clean(name, 64)}: {count[name]:,} sessions for {calls[name]:,} calls in the last hour, one for each",
            f"export {PREFIX}CONVERSATION_KEYS=NAME  # the key in params._meta that carries the host's conversation id",
        )
    if not guilty:
        found = f"{counted(count.total(), 'session')} with {counted(calls.total(), 'call')}"
        yield ok(f"{found} in the last hour")


def proxy(current: Settings, launch: Launch, documents: Sequence[Document] | None) -> Iterator[Finding]:
    """Check for a proxy that is not trusted: behind it, clients without id and credential have no session."""
    asked = option(launch.program, "--forwarded-allow-ips") or launch.env.get("FORWARDED_ALLOW_IPS")
    mend = export(_TRUSTED, asked if asked and asked != "*" else "10.0.0.0/8")
    if current.trusted_proxies:
        yield ok(f"{current.proxy_header} is trusted from {', '.join(current.trusted_proxies)}")
    elif asked or any(word in _PROXY_FLAGS for word in launch.program):
        yield warn(f"the server is behind a proxy that {_TRUSTED} does not name: {_NO_SESSION}", mend)
    elif documents and all(document.facts["source"] == "none" for document in documents):
        yield warn(f"no session has a source: if there is a proxy in front, {_TRUSTED} must name it", mend)
    else:
        yield ok(f"no proxy is trusted; behind one, {_NO_SESSION}")


def hash_key(current: Settings, launch: Launch) -> Iterator[Finding]:
    """Check that all processes share a hash key; otherwise they do not recognise each other's clients."""
    variable, workers = f"{PREFIX}HASH_KEY", launch.workers
    if current.hash_key is not None:
        yield ok(f"{variable} is set")
    elif current.redis_url is not None:
        yield ok("shared through Redis")
    elif workers > 1:
        found = f"{workers} workers without Redis have {workers} keys and do not recognise each other's clients"
        yield fail(found, f'export {variable}="$(openssl rand -hex 32)"')
    elif not launch.given:
        yield skip(f"each process has its own: without Redis, several replicas need {variable}")
    else:
        yield ok("one process needs no shared key")
