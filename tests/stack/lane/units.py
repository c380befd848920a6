"""Numbers as a reader wants them."""

from __future__ import annotations

from math import isfinite
from typing import Final

_TIMES: Final = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms"))
_SIZES: Final = ((1 << 20, "MiB"), (1 << 10, "KiB"), (1, "B"))


def written(value: float, unit: str) -> str:
    """Return a value with its unit, as Grafana would write it."""
    if not isfinite(value):
        return "inf" if value > 0 else "-"
    if unit == "percentunit":
        return f"{value:.1%}"
    if unit == "s":
        return _scaled(value, _TIMES)
    if unit == "bytes":
        return _scaled(value, _SIZES)
    suffix = "/s" if unit in {"reqps", "ops", "eps"} else ""
    return f"{value:.3g}{suffix}"


def _scaled(value: float, steps: tuple[tuple[float, str], ...]) -> str:
    for size, name in steps:
        if abs(value) >= size:
            return f"{value / size:.3g} {name}"
    return "0" if not value else f"{value:.2g} {steps[-1][1]}"
