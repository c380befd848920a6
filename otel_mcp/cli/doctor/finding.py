"""One result of one check, and the guard that keeps a broken check from stopping the others."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Awaitable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal

Status = Literal["ok", "warn", "FAIL", "skip"]

DOCS: Final = "docs/doctor.md"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found, and the line that mends it."""

    check: str
    status: Status
    found: str
    mend: str | None = None
    """One line to copy: an export, a command, a flag."""

    @property
    def docs(self) -> str:
        """Where the documentation explains this check."""
        return f"{DOCS}#{self.check}"

    def as_json(self) -> dict[str, Any]:
        """Return the fields as they stand in the JSON report."""
        return {**asdict(self), "status": self.status.lower(), "docs": self.docs}


def ok(check: str, found: str) -> Finding:
    """Report that nothing is wrong."""
    return Finding(check, "ok", found)


def skip(check: str, found: str) -> Finding:
    """Report that a check could not look, and why."""
    return Finding(check, "skip", found)


def warn(check: str, found: str, mend: str | None = None) -> Finding:
    """Report what makes telemetry worse without stopping it."""
    return Finding(check, "warn", found, mend)


def fail(check: str, found: str, mend: str | None = None) -> Finding:
    """Report what stops telemetry."""
    return Finding(check, "FAIL", found, mend)


def export(variable: str, value: str) -> str:
    """Write the shell command that sets a variable."""
    return f"export {variable}={shlex.quote(value)}"


def merged(results: Iterable[tuple[str, Finding]]) -> list[Finding]:
    """Say once what was found of several signals, with their names before it."""
    signals: dict[Finding, list[str]] = {}
    for signal, finding in results:
        signals.setdefault(finding, []).append(signal)
    return [replace(finding, found=f"{', '.join(names)}: {finding.found}") for finding, names in signals.items()]


async def guarded(check: str, results: Awaitable[Iterable[Finding]], seconds: float) -> list[Finding]:
    """Await the findings of one check; a check that fails or hangs becomes a finding of its own.

    Only the class of an exception is shown: its text may hold a password.
    """
    try:
        return list(await asyncio.wait_for(results, seconds))
    except asyncio.TimeoutError:
        return [warn(check, f"the check took longer than {seconds:g} s and was given up")]
    except Exception as error:
        return [warn(check, f"the check itself failed: {type(error).__name__}")]
