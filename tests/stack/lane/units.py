"""Numbers as a reader wants them."""

from __future__ import annotations

from math import isfinite
from typing import Final

_TIMES: Final = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms"))
_SIZES: Final = ((1 << 20, "MiB"), (1 << 10, "KiB"), (1, "B"))
_MANY: Final = ((10**6, "Mil"), (10**3, "K"))


def written(value: float, unit: str, decimals: int | None = None) -> str:
    """Return a value with its unit, as Grafana would write it; `decimals` of a count, where the panel says how many."""
    if not isfinite(value):
        return "inf" if value > 0 else "-"
    if unit == "percentunit":
        return f"{value:.1%}"
    if unit == "s":
        return _scaled(value, _TIMES)
    if unit == "bytes":
        return _scaled(value, _SIZES)
    if unit == "locale":
        return f"{value:,.{decimals or 0}f}"
    suffix = "/s" if unit in {"reqps", "ops", "eps"} else ""
    if value >= _MANY[-1][0]:
        return f"{_scaled(value, _MANY)}{suffix}"
    return f"{value:.3g}{suffix}"


def _scaled(value: float, steps: tuple[tuple[float, str], ...]) -> str:
    for size, name in steps:
        if abs(value) >= size:
            return f"{value / size:.3g} {name}"
    return "0" if not value else f"{value:.2g} {steps[-1][1]}"
