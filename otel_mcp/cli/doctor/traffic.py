"""Our settings, and what the sessions of the last hour show: a host that opens one for each call, a proxy."""

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
_MANY: Final = 10
"""Sessions of one client from which its ways can be known."""
_CALLS_EACH: Final = 1.25
_PROXY_FLAGS: Final = ("--proxy-headers", "--forwarded-allow-ips", "--proxy-protocol", "--root-path")
_TRUSTED: Final = f"{PREFIX}TRUSTED_PROXIES"
_NO_SESSION: Final = "a client that sends no id and no credential has no session"


class _Warnings(logging.Handler):
    """Keeps what is logged, in place of every other handler."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage().removeprefix("otel_mcp: "))


@contextmanager
def _environment(env: Mapping[str, str]) -> Generator[list[str]]:
    """Make `env` the environment of this process for a moment, since settings are read from there; what is logged."""
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
    """Return the settings as the server would have them, and each warning that it would log."""
    with _environment(env) as warnings:
        return load(redis_url=redis_url), warnings


def settings(env: Mapping[str, str], current: Settings, warnings: Iterable[str]) -> Iterator[Finding]:
    """Settings of ours that cannot be used, contradict one another, or are spelled wrongly."""
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
        # Files of variables for containers are read without a shell, which would have taken quotes away.
        if variable.startswith("OTEL_") and len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
            yield warn(f"the value of {variable} has its quotes in it", f'export {variable}="${{{variable}:1:-1}}"')
            is_well = False
    if not env.get("OTEL_SERVICE_NAME") and current.service_name.startswith("unknown_service"):
        yield warn("the service has no name", export("OTEL_SERVICE_NAME", "my-mcp-server"))
    elif is_well:
        given = sum(name.startswith(PREFIX) for name in env)
        yield ok(f"service {current.service_name}, {counted(given, 'setting')} of ours")


def sessions(documents: Sequence[Document]) -> Iterator[Finding]:
    """Check for a host that opens a session for each call: then sessions mean nothing."""
    since, count, calls = time.time() - _HOUR, Counter[str](), Counter[str]()
    for document in documents:
        # What became part of a conversation does not count as a session.
        if (document.created or 0) >= since and document.ended_by != "replaced" and document.call_count > 0:
            client = document.facts["client_name"] or "unknown"
            count[client] += 1
            calls[client] += document.call_count
    guilty = [name for name, many in count.most_common() if many >= _MANY and calls[name] <= many * _CALLS_EACH]
    for name in guilty:
        yield warn(
            f"{clean(name, 64)}: {count[name]:,} sessions for {calls[name]:,} calls in the last hour, one for each",
            f"export {PREFIX}CONVERSATION_KEYS=NAME  # the name in params._meta of what the host calls a conversation",
        )
    if not guilty:
        found = f"{counted(count.total(), 'session')} with {counted(calls.total(), 'call')}"
        yield ok(f"{found} in the last hour")


def proxy(current: Settings, launch: Launch, documents: Sequence[Document] | None) -> Iterator[Finding]:
    """Behind a proxy that is not trusted, a client without an id or a credential has no session."""
    asked = option(launch.program, "--forwarded-allow-ips") or launch.env.get("FORWARDED_ALLOW_IPS")
    mend = export(_TRUSTED, asked if asked and asked != "*" else "10.0.0.0/8")
    if current.trusted_proxies:
        yield ok(f"{current.proxy_header} is believed from {', '.join(current.trusted_proxies)}")
    elif asked or any(word in _PROXY_FLAGS for word in launch.program):
        yield warn(f"the server is behind a proxy that {_TRUSTED} does not name: {_NO_SESSION}", mend)
    elif documents and all(document.facts["source"] == "none" for document in documents):
        yield warn(f"no session has a source: if a proxy is in front, {_TRUSTED} must name it", mend)
    else:
        yield ok(f"no proxy is trusted; behind one, {_NO_SESSION}")


def hash_key(current: Settings, launch: Launch) -> Iterator[Finding]:
    """Processes without a common key do not recognise one another's clients."""
    variable, workers = f"{PREFIX}HASH_KEY", launch.workers
    if current.hash_key is not None:
        yield ok(f"{variable} is set")
    elif current.redis_url is not None:
        yield ok("shared through Redis")
    elif workers > 1:
        found = f"{workers} workers without Redis have {workers} keys: none knows the others' clients"
        yield fail(found, f'export {variable}="$(openssl rand -hex 32)"')
    elif not launch.given:
        yield skip(f"one for each process: without Redis, several replicas need {variable}")
    else:
        yield ok("one process needs no common key")
