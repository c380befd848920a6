"""Whether the store works: a circuit breaker that times each use of it, and logs an outage once."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from math import inf
from typing import Final, Protocol

from otel_mcp.guard import report
from otel_mcp.model.delta import EndedSession, OpenCall, SessionDelta, SessionFacts, WriteResult
from otel_mcp.model.session import Interruption
from otel_mcp.model.state import SessionState
from otel_mcp.model.task import Followed, TaskCensus, TaskNews
from otel_mcp.model.verdict import Finding
from otel_mcp.store.base import StoreDown

logger = logging.getLogger("otel_mcp")

PATIENCE: Final = 0.05
"""Seconds that a request may wait for the store, in all that it asks."""
_FIRST: Final = 0.25
_LONGEST: Final = 2.0
"""Seconds between two tries of a store that fails: first and at most. Never in step with other processes."""
_DENIED: Final = 30.0
"""Seconds between two tries where the store denies access."""
_CALM: Final = 5.0
"""Seconds without a failure after which a part that failed counts as back: not every flush needs it."""
_LOGGED: Final = 5
_WITHIN: Final = 60.0
"""Outages that are logged in so many seconds: a store that comes and goes must not fill the log."""


class SessionEvents(Protocol):
    """What sessions report to the rest of the package; what it raises stops here."""

    def written(self, delta: SessionDelta, result: WriteResult) -> SessionDelta | None:
        """Act on what the store has answered about a session, where that is more than that it was written.

        Returns:
            What is to be written instead, where the session is another user's (`WriteResult.owner`).
        """
        ...

    def ended(self, session: EndedSession) -> None:
        """Report the end of a session; no other process does."""
        ...

    def found(self, finding: Finding, state: SessionState) -> None:
        """Report a pattern that a running session shows; no other process does. `state` is its document."""
        ...

    def interrupted(self, cut: Interruption) -> None:
        """Report that a server refused a session that lives; no other process does."""
        ...

    def returned(self, facts: SessionFacts, after: float) -> None:
        """Report that a client is back, with the session of these facts, so many seconds after one was cut."""
        ...

    def dropped(self, count: int, reason: str) -> None:
        """Count tool calls that will not be in the store: ``full``, ``foreign``, ``error``, ``shutdown``.

        Of ``interruptions`` it is refused requests that were not looked at.
        """
        ...

    def store_operation(self, operation: str, outcome: str, seconds: float) -> None:
        """Record a use of the store: ``flush``, ``recall``... with ``ok``, ``error``, ``denied`` or ``timeout``."""
        ...

    def in_flight(self) -> Sequence[OpenCall]:
        """Return the tool calls that have been in flight for long."""
        ...

    def hash_key(self, key: bytes) -> None:
        """Take over the hash key that all replicas have agreed on."""
        ...

    def listed(self) -> list[tuple[str, str]]:
        """Return the catalogues of which other processes have still to learn: digest, and what is to be known of it."""
        ...

    def met(self, digest: str, summary: str, others: list[str]) -> None:
        """Act on what the store has answered about one of them (see `tables.meet`)."""
        ...

    def tasks_seen(self, most: int) -> Sequence[TaskNews]:
        """Return what calls have shown of tasks, oldest first, once."""
        ...

    def tasks_followed(self, answer: Followed) -> None:
        """Act on what the store has answered to those that were returned last."""
        ...

    def tasks_abandoned(self) -> None:
        """Count as lost what the store is not known to have of tasks."""
        ...

    def tasks_counted(self, census: TaskCensus | None) -> None:
        """Take the tasks of the service, and report those whose time is over; ``None`` = they are not known."""
        ...

    def closing(self) -> None:
        """Submit what has still to be submitted: the running loop, or the process, is about to end."""
        ...


class Use:
    """One use of the store."""

    down: StoreDown | None = None
    """Why it failed."""


class StoreHealth:
    """What is known of the store from using it."""

    def __init__(
        self, events: SessionEvents, *, divided: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin healthy. `divided`: parts of the store may fail by themselves, as those of a cluster do."""
        self.divided = divided
        self.events = events
        self._clock = clock
        self.is_away = False
        """The last use of the store failed (the breaker is open)."""
        self.is_partial = False
        """Some nodes of a cluster, or slots, do not work; the others do."""
        self.is_slow = False
        """It works, but a request has waited for it in vain: none does until a probe has been answered in time."""
        self.recoveries = 0
        self.recovered_at = -inf
        """By the clock."""
        self._failures = 0
        self._retry_at = 0.0
        self._last_failure = 0.0
        self._logged: deque[float] = deque(maxlen=_LOGGED)
        self._is_logged = False
        """The outage under way has been logged, so its end will be."""

    @property
    def wait(self) -> float:
        """Seconds until the next try; 0 = now."""
        return max(0.0, self._retry_at - self._clock()) if self.is_away else 0.0

    @contextmanager
    def operation(self, name: str, *, proof: bool = False, deferred: bool = False) -> Generator[Use]:
        """Time a use of the store. Its failures end here, and open the breaker (for `proof` see `failed`).

        Those that are `deferred` do not: the caller judges what they mean.
        """
        started = time.perf_counter()
        use, outcome = Use(), "ok"
        try:
            yield use
        except StoreDown as down:
            use.down, outcome = down, "denied" if down.denied else "error"
        except asyncio.CancelledError:
            outcome = "error"  # Nobody knows whether it was done.
            raise
        except Exception as error:
            use.down, outcome = StoreDown(type(error).__name__), "error"
            report(f"session store ({name})", error)
        finally:
            if use.down is not None and not deferred:
                self.failed(use.down, proof=proof)
            try:
                self.events.store_operation(name, outcome, time.perf_counter() - started)
            except Exception as error:
                report("session events", error)

    def failed(self, down: StoreDown, *, proof: bool = False) -> None:
        """Note that the store does not work; one warning an outage.

        While a part of it is known not to work, only what does not concern that part is a `proof`.
        """
        if self.is_partial and not proof:
            self._last_failure = self._clock()
            return
        pause = _DENIED if down.denied else min(_FIRST * 2.0 ** min(self._failures, 16), _LONGEST)
        self._failures += 1
        self._retry_at = self._clock() + pause * random.uniform(0.5, 1.0)
        if not self.is_away:
            self.is_away = True
            if not self.is_partial:
                self._log(down)

    def succeeded(self) -> None:
        """Note that the store works; one line an outage."""
        if self._close() and not self.is_partial:
            self._log_end()

    def partly(self, down: StoreDown) -> None:
        """Note that a part of the store does not work, and that the rest does; one warning, as of an outage."""
        self._last_failure = self._clock()
        was_away = self._close()
        if not self.is_partial:
            self.is_partial = True
            if not was_away:
                self._log(down, "a part of ")

    def answered(self) -> None:
        """Note that it answers one question: of a divided store that says nothing of the other parts."""
        if self.divided and self.is_away and not self.is_partial:
            self.partly(StoreDown("unknown"))
        else:
            self.succeeded()

    def all_written(self) -> None:
        """Note that nothing waits which could not be written: a part that failed before is back by now."""
        if self.is_partial and not self.is_away and self._clock() - self._last_failure >= _CALM:
            self.is_partial = False
            self._log_end()
            self._recovered()

    def _close(self) -> bool:
        """Close the breaker; `True` if it was open."""
        was_away, self.is_away, self._failures = self.is_away, False, 0
        if was_away:
            self._recovered()
        return was_away

    def _recovered(self) -> None:
        self.recoveries += 1
        self.recovered_at = self._clock()

    def _log(self, down: StoreDown, part: str = "") -> None:
        now = self._clock()
        self._is_logged = len(self._logged) < _LOGGED or now - self._logged[0] >= _WITHIN
        if not self._is_logged:
            return
        self._logged.append(now)
        if down.denied:
            logger.warning(
                "otel_mcp: Redis denies access (%s): check user, password and permissions in the URL; "
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

    def _log_end(self) -> None:
        if self._is_logged:
            # For information; but a reader of the warning has to see this, also where nobody set up logging.
            level = logging.INFO if logger.isEnabledFor(logging.INFO) else logging.WARNING
            logger.log(level, "otel_mcp: Redis can be used again; what was kept in memory is being written")
