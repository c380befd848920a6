"""Numbers as a person reads them."""

from __future__ import annotations


def seconds(value: float | None) -> str:
    """Write a duration in seconds or milliseconds, and nothing for None."""
    if value is None:
        return ""
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.1f} ms"
