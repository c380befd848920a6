"""Findings of checks, and their report: lines for a person, tab-separated values in a pipe, or JSON."""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Final, Literal

from otel_mcp.cli.terminal import Terminal, clean, counted, say

Status = Literal["ok", "warn", "FAIL", "skip"]
SCHEMA: Final = "otel-mcp/doctor/1"
DOCS: Final = "docs/doctor.md"
INSTALL: Final = "python -m pip install opentelemetry-distro opentelemetry-exporter-otlp"
_COLOR: Final = {"ok": "green", "warn": "yellow", "FAIL": "red", "skip": "dim"}


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of a check, with a line that fixes the problem."""

    status: Status
    found: str
    mend: str | None = None
    """One line to copy: an export, a command, a flag."""
    check: str = ""
    """Name of the check, and of its section in the documentation."""

    def as_json(self) -> dict[str, Any]:
        """Return the finding as in the JSON report."""
        return {**asdict(self), "status": self.status.lower(), "docs": f"{DOCS}#{self.check}"}


Findings = Iterable[Finding]


ok: Final = partial(Finding, "ok")
skip: Final = partial(Finding, "skip")
"""The check could not be made."""
warn: Final = partial(Finding, "warn")
"""Telemetry is worse than it could be."""
fail: Final = partial(Finding, "FAIL")
"""Telemetry does not arrive, or sessions are lost."""


def export(variable: str, value: str) -> str:
    """Return the shell command that sets a variable."""
    return f"export {variable}={shlex.quote(value)}"


def merged(results: Iterable[tuple[str, Finding]]) -> list[Finding]:
    """Merge equal findings of several signals into one, which begins with their names."""
    signals: dict[Finding, list[str]] = {}
    for signal, finding in results:
        signals.setdefault(finding, []).append(signal)
    return [replace(finding, found=f"{', '.join(names)}: {finding.found}") for finding, names in signals.items()]


def judge(check: str, look: Callable[..., Findings], *about: object, **how: object) -> list[Finding]:
    """Run a check; if it raises, that is a finding."""
    try:
        return [replace(finding, check=check) for finding in look(*about, **how)]
    except Exception as error:
        # Without the text of the error, which may contain a password.
        return [warn(f"the check itself failed: {type(error).__name__}", check=check)]


async def guarded(check: str, looking: Awaitable[Findings], seconds: float) -> list[Finding]:
    """Run a check that waits, like `judge`, for at most `seconds`."""
    try:
        found = list(await asyncio.wait_for(looking, seconds))
    except TimeoutError:
        found = [warn(f"the check took longer than {seconds:g} s")]
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
    """Write a line for each finding, with the fix below it; in a pipe, tab-separated values."""
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
    say(summary(findings))


def summary(findings: Sequence[Finding]) -> str:
    """Sum up the findings in one line."""
    failed, warned = count(findings, "FAIL"), count(findings, "warn")
    if not failed and not warned:
        return f"nothing stops telemetry ({counted(count(findings, 'ok'), 'check')})"
    parts = [f"{failed} stop{'s' if failed == 1 else ''} telemetry" if failed else "nothing stops telemetry"]
    parts += [counted(warned, "warning")] if warned else []
    return f"{', '.join(parts)}; {DOCS} explains each check"


def count(findings: Sequence[Finding], status: str) -> int:
    return sum(finding.status == status for finding in findings)
