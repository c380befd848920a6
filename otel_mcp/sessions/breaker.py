"""When to ask a failing store again: soon, later each time, never in step with other processes."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Final

_FIRST: Final = 0.25
_LONGEST: Final = 2.0
"""Seconds; recovery is noticed that late at most."""
_DENIED: Final = 30.0
"""Seconds between two tries where the store does not let us in."""


class Breaker:
    """Open while the store fails."""

    __slots__ = ("_clock", "_failures", "_longest", "_until", "is_open")

    def __init__(self, *, longest: float = _LONGEST, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._longest = longest
        self._failures = 0
        self._until = 0.0
        self.is_open = False

    def failed(self, *, denied: bool = False) -> bool:
        """Note a failure; `True` if it begins an outage."""
        pause = _DENIED if denied else min(_FIRST * 2.0 ** min(self._failures, 16), self._longest)
        self._failures += 1
        self._until = self._clock() + pause * random.uniform(0.5, 1.0)
        begins = not self.is_open
        self.is_open = True
        return begins

    def succeeded(self) -> bool:
        """Note a success; `True` if it ends an outage."""
        ends = self.is_open
        self.is_open = False
        self._failures = 0
        return ends

    @property
    def wait(self) -> float:
        """Seconds until the next try; 0 = now."""
        return max(0.0, self._until - self._clock()) if self.is_open else 0.0
