"""What the checks judge, and what they say."""

from __future__ import annotations

from dataclasses import dataclass

from .driver import Tally
from .otlp_store import TelemetryStore
from .sessions import SeenSession


@dataclass(frozen=True)
class Check:
    """An expectation, what was found, and whether that will do."""

    expectation: str
    found: str
    passed: bool


@dataclass(frozen=True)
class Evidence:
    """Everything that is judged."""

    telemetry: TelemetryStore
    sessions: list[SeenSession]
    malformed: list[str]
    tally: Tally


def equal(expectation: str, found: float, expected: float) -> Check:
    """Expect one number to be another."""
    return Check(expectation, f"{found:g} of {expected:g}", found == expected)


def at_least_one(expectation: str, found: float) -> Check:
    """Expect something to have happened."""
    return Check(expectation, f"{found:g}", found >= 1)
