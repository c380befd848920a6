"""What the soak calls growth."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

import pytest

from tests.soak.trend import Limit, trend

_CHANCE: Final = random.Random(20260728)
FIGURES: Final[dict[str, tuple[Callable[[int], float], bool]]] = {
    "constant": (lambda at: 7.0, False),
    "noise": (lambda at: 100 + _CHANCE.uniform(-40, 40), False),
    "a saw": (lambda at: 100.0 + at % 20, False),
    "one spike": (lambda at: 1000.0 if at == 30 else 100.0, False),
    "a step at once": (lambda at: 100.0 if at < 2 else 130.0, False),
    "falling": (lambda at: 200.0 - at, False),
    "within the limit": (lambda at: 100 + at * 0.1, False),
    "a leak": (lambda at: 100.0 + at, True),
    "a leak in noise": (lambda at: 100 + at + _CHANCE.uniform(-40, 40), True),
    "a leak in a saw": (lambda at: 100.0 + at + at % 20, True),
}


@pytest.mark.parametrize("name", FIGURES)
def test_only_what_rises_beyond_its_limit_grows(name: str) -> None:
    figure, leaks = FIGURES[name]
    times = [at * 2.0 for at in range(60)]

    found = trend(name, times, [figure(at) for at in range(60)], Limit(5, 0.05))

    assert found.grows is leaks, found
