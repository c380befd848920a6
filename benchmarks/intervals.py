"""Medians and bootstrap intervals, of the standard library alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

RESAMPLES: Final = 1000
_SEED: Final = 20260728


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    def text(self, digits: int = 0) -> str:
        """E.g. ``58 [53, 64]``."""
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def estimate(statistic: Callable[..., float], *samples: Sequence[object], resamples: int = RESAMPLES) -> Estimate:
    """`statistic` of the samples, with a percentile interval; each sample is resampled on its own."""
    source = random.Random(_SEED)
    drawn = sorted(statistic(*(source.choices(sample, k=len(sample)) for sample in samples)) for _ in range(resamples))
    return Estimate(statistic(*samples), drawn[int(0.025 * resamples)], drawn[int(0.975 * resamples) - 1])


def _median(sample: Sequence[float]) -> float:
    return median(sample)


def median_of(sample: Sequence[float]) -> Estimate:
    """The median."""
    return estimate(_median, sample)
