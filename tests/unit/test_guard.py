"""Where our own failures stop."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

import pytest

from otel_mcp import guard
from otel_mcp.guard import guarded, quietly, report

Logs = Callable[[], list[str]]


def test_what_we_raise_is_swallowed_and_counted_by_component(failures: Counter[str], logs: Logs) -> None:
    with guarded("parts"):
        raise RuntimeError("secret text of a request")
    quietly("parts", lambda: 1 / 0)
    quietly("others", lambda: None)

    assert failures == Counter({"parts": 2})
    assert len(logs()) == 1
    assert "RuntimeError" in logs()[0]
    assert "secret" not in logs()[0]


def test_each_component_logs_at_most_once_a_minute(
    failures: Counter[str], logs: Logs, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("otel_mcp.guard.time.monotonic", lambda: now)

    for _ in range(100):
        report("a", ValueError())
        report("b", ValueError())
    now += 59.9
    report("a", ValueError())
    assert len(logs()) == 2
    now += 0.2
    report("a", ValueError())

    assert len(logs()) == 3
    assert "102 so far" in logs()[-1]
    assert failures == Counter({"a": 102, "b": 100})


@pytest.mark.parametrize("kind", [asyncio.CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_cancellation_and_exit_are_not_ours_to_stop(kind: type[BaseException]) -> None:
    with pytest.raises(kind), guarded("parts"):
        raise kind


def test_a_guard_is_used_again_and_from_within_itself(failures: Counter[str]) -> None:
    shared = guarded("parts")

    with shared:
        with shared:
            raise RuntimeError
        raise ValueError
    with shared:
        pass

    assert failures == Counter({"parts": 2})


def test_where_it_was_raised_is_logged_without_a_traceback(failures: Counter[str], logs: Logs) -> None:
    def deep() -> None:
        raise LookupError("secret")

    quietly("parts", deep)

    assert failures["parts"] == 1
    assert "deep:" in logs()[0]
    assert "secret" not in logs()[0]
    assert guard.logger.name == "otel_mcp"
