"""Holds how much code of ours one warm ``tools/call`` of an SDK 2.x server runs.

`tests.support.path` counts and explains how; ``python -m tests.support.path --list`` names each function. Unlike
microseconds, the counts are the same on every machine, so the ceilings are the present numbers: lower them
here when the code runs less.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import pytest

from tests.support import path

PATH = {
    ("2026-07-28", "off"): (35, 16),
    ("2026-07-28", "on"): (44, 18),
    ("2025-11-25", "off"): (40, 17),
    ("2025-11-25", "on"): (49, 19),
    (path.OTHER, "off"): (19, 8),
    (path.OTHER, "on"): (19, 8),
}
"""Functions and files, at most, by revision and HTTP span; the last two of a request that is none of ours."""
UNTIL_FLUSHED = {"2026-07-28": (82, 29), "2025-11-25": (83, 30)}
"""The same with drain and flush to Redis, without the HTTP span.

Two of them may be missing: one that writes a second's time once, and one that wakes a worker if it sleeps.
"""


@pytest.fixture(scope="module")
def counted(valkey_url: str) -> Callable[[str], path.Paths]:
    return lru_cache(lambda http_span: path.count(http_span, f"{valkey_url}/15"))


def assert_within(ran: path.Ran, functions: int, files: int) -> None:
    assert ran.functions <= functions, "\n".join(ran.names)
    assert ran.files <= files, "\n".join(ran.names)


@pytest.mark.parametrize(("revision", "http_span"), PATH)
def test_a_warm_call_runs_few_functions(counted: Callable[[str], path.Paths], revision: str, http_span: str) -> None:
    assert_within(counted(http_span)[revision].request, *PATH[revision, http_span])


@pytest.mark.parametrize("revision", UNTIL_FLUSHED)
def test_drain_and_flush_run_few_functions(counted: Callable[[str], path.Paths], revision: str) -> None:
    assert_within(counted("off")[revision].until_flushed, *UNTIL_FLUSHED[revision])


def test_tenants_are_read_by_two_functions_and_counted_by_one(valkey_url: str) -> None:
    paths = path.count("off", f"{valkey_url}/15", OTEL_PYTHON_MCP_TENANT="header:user-agent")
    for revision in UNTIL_FLUSHED:
        functions, files = PATH[revision, "off"]
        assert_within(paths[revision].request, functions + 2, files + 1)
        functions, files = UNTIL_FLUSHED[revision]
        assert_within(paths[revision].until_flushed, functions + 3, files + 2)
