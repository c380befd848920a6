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
from otel_mcp.store.base import StoreDown

logger = logging.getLogger("otel_mcp")

PATIENCE: Final = 0.05
"""Seconds that a request may wait for the store, in all that it asks."""
_CALM: Final = 5.0
"""Seconds without a failure after which a part that failed counts as back: not every flush needs it."""
_TOLD: Final = 5
_WITHIN: Final = 60.0
"""Outages that are logged in so many seconds: a store that comes and goes must not fill the log."""


class StoreHealth:
    """What is known of the store from using it."""

    def __init__(
        self, events: SessionEvents, *, divided: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`divided`: parts of the store may fail by themselves, as those of a cluster do."""
        self.divided = divided
        self._events = events
        self._clock = clock
        self.on_outage: list[Callable[[], None]] = []
        self.on_recovery: list[Callable[[], None]] = []
        self.clear()

    def clear(self) -> None:
        """Start again: after a fork."""
        self.breaker = Breaker()
        self._told: deque[float] = deque(maxlen=_TOLD)
        self._is_told = False
        """The outage under way has been logged, so its end will be."""
        self.is_partial = False
        """Some nodes of a cluster, or slots, do not work; the others do."""
        self._last_failure = 0.0
        self.is_slow = False
        """It works, but a request has waited for it in vain: none does until a probe has been answered in time."""

    @property
    def is_away(self) -> bool:
        """Whether the last use of the store failed."""
        return self.breaker.is_open

    @contextmanager
    def operation(self, name: str, *, proof: bool = False) -> Generator[None]:
        """Time a use of the store; its failures end here, and open the breaker. For `proof` see `failed`."""
        with self.timed(name, lambda down: self.failed(down, proof=proof)):
            yield

    @contextmanager
    def timed(self, name: str, failed: Callable[[StoreDown], None]) -> Generator[None]:
        """Time a use of the store, whose failures go to `failed`."""
        started = time.perf_counter()
        outcome = "ok"
        try:
            yield
        except StoreDown as down:
            outcome = "denied" if down.denied else "error"
            failed(down)
        except asyncio.CancelledError:
            outcome = "error"  # Nobody has said that it was done.
            raise
        except Exception as error:
            outcome = "error"
            report(f"session store ({name})", error)
            failed(StoreDown(type(error).__name__))
        finally:
            with guarded("session events"):
                self._events.store_operation(name, outcome, time.perf_counter() - started)

    def failed(self, down: StoreDown, *, proof: bool = False) -> None:
        """Note that the store does not work; one warning an outage.

        While a part of it is known not to work, only what does not concern that part is a `proof`.
        """
        if self.is_partial and not proof:
            self._last_failure = self._clock()
            return
        if self.breaker.failed(denied=down.denied):
            if not self.is_partial:
                self._warn(down)
            _tell(self.on_outage)

    def partly(self, down: StoreDown) -> None:
        """Note that a part of the store does not work, and that the rest does; one warning, as of an outage."""
        self._last_failure = self._clock()
        was_away = self.breaker.succeeded()
        if not self.is_partial:
            self.is_partial = True
            if not was_away:
                self._warn(down, "a part of ")
        if was_away:
            _tell(self.on_recovery)

    def answered(self) -> None:
        """Note that it answers one question: of a divided store that says nothing of the other parts."""
        if self.divided and self.is_away and not self.is_partial:
            self.partly(StoreDown("unknown"))
        else:
            self.succeeded()

    def _warn(self, down: StoreDown, part: str = "") -> None:
        now = self._clock()
        self._is_told = len(self._told) < _TOLD or now - self._told[0] >= _WITHIN
        if self._is_told:
            self._told.append(now)
            _warn(down, part)

    def succeeded(self) -> None:
        """Note that the store works; one line an outage."""
        if not self.breaker.succeeded():
            return
        if not self.is_partial:
            self._tell_end()
        _tell(self.on_recovery)

    def all_written(self) -> None:
        """Nothing waits that could not be written: a part that failed is back, unless it has failed just now."""
        if self.is_partial and not self.is_away and self._clock() - self._last_failure >= _CALM:
            self.is_partial = False
            self._tell_end()
            _tell(self.on_recovery)

    def _tell_end(self) -> None:
        if self._is_told:
            # For information; but a reader of the warning has to see this, also where nobody set up logging.
            level = logging.INFO if logger.isEnabledFor(logging.INFO) else logging.WARNING
            logger.log(level, "otel_mcp: Redis can be used again; what was kept in memory is being written")


def _warn(down: StoreDown, part: str) -> None:
    if down.denied:
        logger.warning(
            "otel_mcp: Redis does not let us in (%s): check user, password and permissions in the URL; "
            "requests are not affected, sessions are kept in memory meanwhile",
            down.reason,
        )
    else:
        logger.warning(
            "otel_mcp: %sRedis cannot be used (%s); requests are not affected, "
            "sessions are kept in memory and written when it is back",
            part,
            down.reason,
        )


def _tell(callbacks: list[Callable[[], None]]) -> None:
    for callback in callbacks:
        with guarded("session recovery"):
            callback()
