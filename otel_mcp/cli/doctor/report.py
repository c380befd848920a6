"""Show a diagnosis: lines for a person, tab-separated values for a pipe, JSON with a version for programs."""

from __future__ import annotations

import json
from typing import Any, Final

from otel_mcp.cli.doctor.diagnosis import Diagnosis
from otel_mcp.cli.doctor.finding import DOCS, Finding
from otel_mcp.cli.terminal import Terminal, clean

SCHEMA: Final = "otel-mcp/doctor/v1"
_COLOR: Final = {"ok": "green", "warn": "yellow", "FAIL": "red", "skip": "dim"}


def as_json(diagnosis: Diagnosis) -> str:
    """Return the whole report as one JSON object."""
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "healthy": not diagnosis.count("FAIL"),
        "summary": {status.lower(): diagnosis.count(status) for status in _COLOR},
        "findings": [finding.as_json() for finding in diagnosis.sorted()],
    }
    return json.dumps(report, indent=2)


def as_lines(terminal: Terminal, diagnosis: Diagnosis) -> None:
    """Write a line a finding: values between tabs where nobody looks, else with the mending line beneath."""
    for finding in diagnosis.sorted():
        if terminal.is_interactive:
            _person(terminal, finding)
        else:
            fields = (finding.status, finding.check, finding.found, finding.mend or "", finding.docs)
            terminal.data("\t".join(clean(field) for field in fields))
    terminal.say(summary(diagnosis))


def _person(terminal: Terminal, finding: Finding) -> None:
    status = terminal.paint(f"{finding.status:<5}", _COLOR[finding.status])
    terminal.data(f"{status} {clean(finding.check):<12} {clean(finding.found)}")
    if finding.mend is not None:
        terminal.data(f"{'':19}{terminal.paint(clean(finding.mend), 'bold')}")
    if finding.status in {"warn", "FAIL"}:
        terminal.data(f"{'':19}{terminal.paint(finding.docs, 'dim')}")


def summary(diagnosis: Diagnosis) -> str:
    """Count what was found in one line."""
    failed, warned = diagnosis.count("FAIL"), diagnosis.count("warn")
    if not failed and not warned:
        return f"nothing stops telemetry ({diagnosis.count('ok')} checks)"
    parts = [f"{failed} stop{'s' if failed == 1 else ''} telemetry" if failed else "nothing stops telemetry"]
    if warned:
        parts.append(f"{warned} warning{'' if warned == 1 else 's'}")
    return f"{', '.join(parts)} ({DOCS})"
