"""What a check finds, and how it is shown: lines for a person, tab-separated values for a pipe, JSON for programs."""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Final, Literal

from otel_mcp.cli.terminal import Terminal, clean, counted

Status = Literal["ok", "warn", "FAIL", "skip"]
SCHEMA: Final = "otel-mcp/doctor/1"
DOCS: Final = "docs/doctor.md"
INSTALL: Final = "python -m pip install opentelemetry-distro opentelemetry-exporter-otlp"
_COLOR: Final = {"ok": "green", "warn": "yellow", "FAIL": "red", "skip": "dim"}


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found, and the line that mends it."""

    status: Status
    found: str
    mend: str | None = None
    """One line to copy: an export, a command, a flag."""
    check: str = ""
    """The name of the check, which is a section of the documentation too."""

    def as_json(self) -> dict[str, Any]:
        """Return the fields as they stand in the JSON report."""
        return {**asdict(self), "status": self.status.lower(), "docs": f"{DOCS}#{self.check}"}


Findings = Iterable[Finding]


ok: Final = partial(Finding, "ok")
skip: Final = partial(Finding, "skip")
"""A check could not look, and why."""
warn: Final = partial(Finding, "warn")
"""Telemetry is worse than it could be."""
fail: Final = partial(Finding, "FAIL")
"""Telemetry does not arrive, or sessions are lost."""


def export(variable: str, value: str) -> str:
    """Write the shell command that sets a variable."""
    return f"export {variable}={shlex.quote(value)}"


def merged(results: Iterable[tuple[str, Finding]]) -> list[Finding]:
    """Report once what was found of several signals, with their names before it."""
    signals: dict[Finding, list[str]] = {}
    for signal, finding in results:
        signals.setdefault(finding, []).append(signal)
    return [replace(finding, found=f"{', '.join(names)}: {finding.found}") for finding, names in signals.items()]


def judge(check: str, look: Callable[..., Findings], *about: object, **how: object) -> list[Finding]:
    """Run a check; one that fails becomes a finding of its own, and stops no other."""
    try:
        return [replace(finding, check=check) for finding in look(*about, **how)]
    except Exception as error:
        # Without its text, which may hold a password.
        return [replace(warn(f"the check itself failed: {type(error).__name__}"), check=check)]


async def guarded(check: str, looking: Awaitable[Findings], seconds: float) -> list[Finding]:
    """Run a check that waits, like `judge`; give up one that hangs."""
    try:
        found = list(await asyncio.wait_for(looking, seconds))
    except TimeoutError:
        found = [warn(f"the check took longer than {seconds:g} s and was given up")]
    except Exception as error:
        found = [warn(f"the check itself failed: {type(error).__name__}")]
    return [replace(finding, check=finding.check or check) for finding in found]


def as_json(findings: Sequence[Finding]) -> str:
    """Return the whole report as one JSON object."""
    report = {
        "schema": SCHEMA,
        "healthy": not count(findings, "FAIL"),
        "summary": {status.lower(): count(findings, status) for status in _COLOR},
        "findings": [finding.as_json() for finding in findings],
    }
    return json.dumps(report, indent=2)


def as_lines(terminal: Terminal, findings: Sequence[Finding]) -> None:
    """Write a line a finding: values between tabs in a pipe, else with the mending line beneath."""
    for finding in findings:
        if terminal.is_interactive:
            status = terminal.paint(f"{finding.status:<5}", _COLOR[finding.status])
            terminal.data(f"{status} {finding.check:<12} {clean(finding.found)}")
            if finding.mend is not None:
                terminal.data(f"{'':19}{terminal.paint(clean(finding.mend), 'bold')}")
        else:
            fields = (finding.status, finding.check, finding.found, finding.mend or "", f"{DOCS}#{finding.check}")
            terminal.data("\t".join(clean(field) for field in fields))
    terminal.flush()
    terminal.say(summary(findings))


def summary(findings: Sequence[Finding]) -> str:
    """Count what was found in one line."""
    failed, warned = count(findings, "FAIL"), count(findings, "warn")
    if not failed and not warned:
        return f"nothing stops telemetry ({counted(count(findings, 'ok'), 'check')})"
    parts = [f"{failed} stop{'s' if failed == 1 else ''} telemetry" if failed else "nothing stops telemetry"]
    parts += [counted(warned, "warning")] if warned else []
    return f"{', '.join(parts)}; {DOCS} explains each check"


def count(findings: Sequence[Finding], status: str) -> int:
    return sum(finding.status == status for finding in findings)
