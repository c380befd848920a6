"""Does a figure grow? A slope that outliers do not move, and a test that chance does not pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import sqrt
from statistics import median
from typing import Final

SURE: Final = 3.0
"""Standard deviations of Kendall's statistic; chance gets there about once in a thousand figures."""


@dataclass(frozen=True, slots=True)
class Limit:
    """How much a figure may grow over the whole time that it is measured."""

    absolute: float
    share: float = 0.0
    """Of its median, on top."""
    room: float = 0.0
    """Up to here it may fill: the bound of a table."""

    def of(self, values: Sequence[float]) -> float:
        return self.absolute + self.share * abs(median(values))


@dataclass(frozen=True, slots=True)
class Trend:
    """How a figure went."""

    name: str
    first: float
    last: float
    growth: float
    """The slope times the time measured."""
    limit: float
    certainty: float
    """Standard deviations of Kendall's statistic; positive where the figure rises."""

    @property
    def grows(self) -> bool:
        return self.growth > self.limit and self.certainty > SURE


def trend(name: str, times: Sequence[float], values: Sequence[float], limit: Limit) -> Trend:
    """The Theil-Sen slope of `values` over `times` (seconds), and Kendall's test whether they rise at all."""
    pairs = list(combinations(zip(times, values, strict=True), 2))
    slope = median([(later[1] - earlier[1]) / (later[0] - earlier[0]) for earlier, later in pairs])
    rises = sum((later[1] > earlier[1]) - (later[1] < earlier[1]) for earlier, later in pairs)
    count = len(values)
    deviation = sqrt(count * (count - 1) * (2 * count + 5) / 18)
    third = max(count // 3, 1)
    return Trend(
        name,
        median(values[:third]),
        median(values[-third:]),
        slope * (times[-1] - times[0]),
        max(limit.of(values), limit.room - min(values)),
        rises / deviation,
    )
