"""A histogram merged from the points of several processes, and its quantiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .otlp_records import MetricPoint


@dataclass(frozen=True)
class Histogram:
    """Counts per bucket; the last bucket, beyond all bounds, is open."""

    count: int = 0
    sum: float = 0.0
    bounds: tuple[float, ...] = ()
    bucket_counts: tuple[int, ...] = ()

    @property
    def mean(self) -> float | None:
        """The average, or None for an empty histogram."""
        return self.sum / self.count if self.count else None

    def quantile(self, fraction: float) -> float | None:
        """Estimate a quantile as Prometheus does: linear within the bucket it falls into.

        Returns None for an empty histogram; in the open bucket, the highest bound.
        """
        rank = fraction * self.count
        below = 0
        for index, in_bucket in enumerate(self.bucket_counts):
            if in_bucket and below + in_bucket >= rank:
                if index == len(self.bounds):
                    return self.bounds[-1] if self.bounds else None
                lower = self.bounds[index - 1] if index else min(0.0, self.bounds[0])
                return lower + (self.bounds[index] - lower) * (rank - below) / in_bucket
            below += in_bucket
        return None


def merge(points: Sequence[MetricPoint]) -> Histogram:
    """Add up histogram points bucket by bucket.

    Raises:
        ValueError: The points do not share their bounds, so their buckets cannot be added.
    """
    filled = [point for point in points if point.count]
    if not filled:
        return Histogram()
    bounds = filled[0].bounds
    if any(point.bounds != bounds for point in filled):
        raise ValueError(f"{filled[0].name}: bucket bounds differ")
    return Histogram(
        count=sum(point.count for point in filled),
        sum=sum(point.sum for point in filled),
        bounds=bounds,
        bucket_counts=tuple(sum(b) for b in zip(*(p.bucket_counts for p in filled), strict=True)),
    )
