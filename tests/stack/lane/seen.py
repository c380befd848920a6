"""What a check gets to see, and patience."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from .ask import Prometheus, Traces
from .stack import Stack

VALUES: Final = {
    "environment": ".*",
    "service": "example-mcp-server",
    "tool": ".*",
    "prompt": ".*",
    "client": ".*",
    "tenant": ".*",
    "probes": "none",
    "caller": ".*",
}
"""What the variables of dashboards are set to."""
SERVICE: Final = VALUES["service"]
ARRIVES_WITHIN: Final = 90.0


@dataclass
class Seen:
    """What there is to ask, and since when."""

    stack: Stack
    prometheus: Prometheus
    traces: Traces
    began: float


Proof = Callable[[Seen], Iterator[str]]
"""Yields what is wrong."""


def eventually(found: Callable[[], bool], within: float = ARRIVES_WITHIN) -> bool:
    """Tell whether something comes true in time."""
    until = time.monotonic() + within
    while time.monotonic() < until:
        if found():
            return True
        time.sleep(0.5)
    return False
