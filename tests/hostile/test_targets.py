"""What is fuzzed at length elsewhere holds for its seeds, for what fuzzing has found, and for some noise."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.hostile.targets import SEEDS, TARGETS

FOUND = (b"A" * 300,)
"""Inputs on which a target has failed."""


@pytest.mark.parametrize("name", TARGETS)
def test_a_parser_holds(name: str) -> None:
    for data in (*SEEDS, *FOUND):
        TARGETS[name](data)

    @settings(max_examples=60, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))  # pyright: ignore[reportArgumentType]
    @given(st.sampled_from(SEEDS), st.binary(max_size=40), st.integers(0, 60))
    def noise(seed: bytes, extra: bytes, at: int) -> None:
        TARGETS[name](extra)
        TARGETS[name](seed[:at] + extra + seed[at:])

    noise()
