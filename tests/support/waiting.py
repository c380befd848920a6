"""Wait for a condition, never for a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

T = TypeVar("T")
WITHIN: Final = 120.0
"""Seconds until a condition is taken for one that never comes true; a busy machine takes long for everything."""


def wait_until(condition: Callable[[], object], *, deadline: float = WITHIN, interval: float = 0.05) -> bool:
    """Poll a condition from a thread that may block; tell whether it came true within `deadline` seconds."""
    end = time.monotonic() + deadline
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(interval)
    return True


def at_once(work: Coroutine[Any, Any, T]) -> T:
    """Run what waits for nothing, such as a store in memory, without a loop."""
    try:
        work.send(None)
    except StopIteration as done:
        return done.value
    work.close()
    raise AssertionError("it waits")
