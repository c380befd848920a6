"""Settings of ours that cannot be used, contradict one another, or are spelled wrongly."""

from __future__ import annotations

import logging
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Final

from otel_mcp.cli.doctor.finding import Finding, export, ok, warn
from otel_mcp.settings import PREFIX, Settings, load

_ELSEWHERE: Final = frozenset({"JAEGER_URL", "GRAFANA_URL"})
"""Read by the command line only."""


class _Heard(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage().removeprefix("otel_mcp: "))


@contextmanager
def _environment(env: Mapping[str, str]) -> Generator[None]:
    """Make `env` the environment of this process for a moment: settings are read from there."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(env)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def read(env: Mapping[str, str], redis_url: str | None = None) -> tuple[Settings, list[Finding]]:
    """Load the settings as the server would, and report each warning that it would log."""
    heard, logger = _Heard(), logging.getLogger("otel_mcp")
    logger.addHandler(heard)
    propagated, logger.propagate = logger.propagate, False
    try:
        with _environment(env):
            settings = load(redis_url=redis_url)
    finally:
        logger.propagate = propagated
        logger.removeHandler(heard)
    findings = [warn("settings", line, _unset(line)) for line in heard.lines]
    findings += _misspelled(env) + _quoted(env)
    if not env.get("OTEL_SERVICE_NAME") and settings.service_name.startswith("unknown_service"):
        findings.append(warn("settings", "the service has no name", export("OTEL_SERVICE_NAME", "my-mcp-server")))
    if not findings:
        given = sum(name.startswith(PREFIX) for name in env)
        findings.append(ok("settings", f"service {settings.service_name}, {given} of ours set"))
    return settings, findings


def _unset(line: str) -> str | None:
    name = next((word.strip(",:;") for word in line.split() if word.startswith(PREFIX)), None)
    return f"unset {name}" if name is not None else None


def _misspelled(env: Mapping[str, str]) -> list[Finding]:
    known = {name.upper() for name in Settings.model_fields} | _ELSEWHERE
    findings: list[Finding] = []
    for variable in sorted(env):
        name = variable.removeprefix(PREFIX)
        if not variable.startswith(PREFIX) or name.upper() in known:
            continue
        close = get_close_matches(name.upper(), known, 1)
        mend = f'export {PREFIX}{close[0]}="${variable}"' if close else f"unset {variable}"
        findings.append(warn("settings", f"there is no setting {variable}", mend))
    return findings


def _quoted(env: Mapping[str, str]) -> list[Finding]:
    """Quotes that a shell would have taken away: files of variables for containers are read without one."""
    return [
        warn(
            "settings",
            f"the value of {variable} has its quotes in it",
            f'export {variable}="${{{variable}:1:-1}}"',
        )
        for variable, value in sorted(env.items())
        if variable.startswith("OTEL_") and len(value) > 1 and value[0] == value[-1] and value[0] in "\"'"
    ]
