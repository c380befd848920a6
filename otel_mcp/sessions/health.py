"""Whether the store works: one place that times its use, notices outages and tells of them once."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Final

from otel_mcp.guard import guarded, report
from otel_mcp.sessions.breaker import Breaker
from otel_mcp.sessions.events import SessionEvents
from otel_mcp.sessions.store import StoreDown

logger = logging.getLogger("otel_mcp")

_TOLD: Final = 5
_WITHIN: Final = 60.0
"""Outages that are told in so many seconds: a store that comes and goes must not fill the log."""


class StoreHealth:
    """What is known of the store from using it."""

    def __init__(self, events: SessionEvents, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._events = events
        self._clock = clock
        self.on_outage: list[Callable[[], None]] = []
        self.on_recovery: list[Callable[[], None]] = []
        self.clear()

    def clear(self) -> None:
        """Begin anew: after a fork."""
        self.breaker = Breaker()
        self._told: deque[float] = deque(maxlen=_TOLD)
        self._is_told = False
        """The outage under way has been told, so its end will be."""

    @property
    def is_away(self) -> bool:
        """Whether the last use of the store failed."""
        return self.breaker.is_open

    @contextmanager
    def operation(self, name: str) -> Generator[None]:
        """Time a use of the store; its failures end here, and open the breaker."""
        started = time.perf_counter()
        outcome = "ok"
        try:
            yield
        except StoreDown as down:
            outcome = "denied" if down.denied else "error"
            self.failed(down)
        except asyncio.CancelledError:
            outcome = "error"  # Nobody has said that it was done.
            raise
        except Exception as error:
            outcome = "error"
            report(f"session store ({name})", error)
            self.failed(StoreDown(type(error).__name__))
        finally:
            with guarded("session events"):
                self._events.store_operation(name, outcome, time.perf_counter() - started)

    def failed(self, down: StoreDown) -> None:
        """Note that the store does not work; one warning an outage."""
        if not self.breaker.failed(denied=down.denied):
            return
        now = self._clock()
        self._is_told = len(self._told) < _TOLD or now - self._told[0] >= _WITHIN
        if self._is_told:
            self._told.append(now)
            _warn(down)
        _tell(self.on_outage)

    def succeeded(self) -> None:
        """Note that the store works; one line an outage."""
        if not self.breaker.succeeded():
            return
        if self._is_told:
            # For information; but whoever saw the warning has to see this, also where nobody set up logging.
            level = logging.INFO if logger.isEnabledFor(logging.INFO) else logging.WARNING
            logger.log(level, "otel_mcp: Redis can be used again; what was kept in memory is being written")
        _tell(self.on_recovery)


def _warn(down: StoreDown) -> None:
    if down.denied:
        logger.warning(
            "otel_mcp: Redis does not let us in (%s): check user, password and permissions in the URL; "
            "requests are not affected, sessions are kept in memory meanwhile",
            down.reason,
        )
    else:
        logger.warning(
            "otel_mcp: Redis cannot be used (%s); requests are not affected, "
            "sessions are kept in memory and written when it is back",
            down.reason,
        )


def _tell(callbacks: list[Callable[[], None]]) -> None:
    for callback in callbacks:
        with guarded("session recovery"):
            callback()
