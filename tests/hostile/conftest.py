"""The fixtures of the unit tests: runtimes on providers in memory, and a count of our own failures."""

from tests.unit.conftest import (
    bare_environment,
    failures,
    logs,
    make_runtime,
    no_failures,
    patient,
    quick_entry_points,
    runtime,
    telemetry,
    time_to_end,
    valkey,
)

__all__ = [
    "bare_environment",
    "failures",
    "logs",
    "make_runtime",
    "no_failures",
    "patient",
    "quick_entry_points",
    "runtime",
    "telemetry",
    "time_to_end",
    "valkey",
]
