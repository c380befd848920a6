"""How Prometheus names what OpenTelemetry names: `UnderscoreEscapingWithSuffixes`."""

from __future__ import annotations

import re
from typing import Final

_UNITS: Final = {"s": "_seconds", "By": "_bytes"}


def label(attribute: str) -> str:
    """Return the label that an attribute becomes."""
    return re.sub(r"[^a-zA-Z0-9_]", "_", attribute)


def series(name: str, unit: str, kind: str) -> str:
    """Return the series that a metric becomes, without what a histogram adds.

    Raises:
        KeyError: The unit is none that this project uses.
    """
    return label(name) + _unit_suffix(unit, kind) + ("_total" if kind == "counter" else "")


def _unit_suffix(unit: str, kind: str) -> str:
    if unit == "1":
        return "_ratio" if kind == "gauge" else ""
    # An annotation such as {session} is no unit and leaves no trace in the name.
    return "" if unit.startswith("{") else _UNITS[unit]
