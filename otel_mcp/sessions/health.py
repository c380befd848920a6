"""Tracks whether the store works: a circuit breaker that times each operation and logs each outage once."""

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
"""Maximum seconds that one request waits for the store, over all its lookups."""
_FIRST: Final = 0.25
_LONGEST: Final = 2.0
"""First and maximum seconds between two attempts after a failure, with jitter."""
_DENIED: Final = 30.0
"""Seconds between two attempts if the store denies access."""
_CALM: Final = 5.0
"""Seconds without a failure after which a failed part counts as recovered; a single flush may not have used it."""
_LOGGED: Final = 5
_WITHIN: Final = 60.0
"""Rate limit of the log: at most `_LOGGED` outages in `_WITHIN` seconds."""


class SessionEvents(Protocol):
    """Receives what happens in sessions. Its exceptions are contained by the caller."""

    def written(self, delta: SessionDelta, result: WriteResult) -> SessionDelta | None:
        """Act on a store result that says more than "written".

        Returns:
            The delta to write instead if the session belongs to another user (`WriteResult.owner`).
        """
        ...

    def ended(self, session: EndedSession) -> None:
        """Report the end of a session. Called in one process only."""
        ...

    def found(self, finding: Finding, state: SessionState) -> None:
        """Report a pattern in a running session. Called in one process only. `state` is its document."""
        ...

    def interrupted(self, cut: Interruption) -> None:
        """Report that a server refused a live session. Called in one process only."""
        ...

    def returned(self, facts: SessionFacts, after: float) -> None:
        """Report that a client is back, with the session of these facts, `after` seconds after one was cut."""
        ...

    def dropped(self, count: int, reason: str) -> None:
        """Count tool calls that will not be in the store: ``full``, ``foreign``, ``error``, ``shutdown``...

        With ``interruptions``, count refused requests that were not checked.
        """
        ...

    def store_operation(self, operation: str, outcome: str, seconds: float) -> None:
        """Record an operation (``flush``, ``recall``...) with ``ok``, ``error``, ``denied`` or ``timeout``."""
        ...

    def in_flight(self) -> Sequence[OpenCall]:
        """Return the tool calls that have been in flight for long."""
        ...

    def hash_key(self, key: bytes) -> None:
        """Use the hash key that all replicas have agreed on."""
        ...

    def listed(self) -> list[tuple[str, str]]:
        """Return digest and summary of each catalogue that is not yet in the store."""
        ...

    def met(self, digest: str, summary: str, others: list[str]) -> None:
        """Act on the result of `tables.meet` for one of them: the summaries in `others`."""
        ...

    def tasks_seen(self, most: int) -> Sequence[TaskNews]:
        """Take up to `most` news of tasks, oldest first."""
        ...

    def tasks_followed(self, answer: Followed) -> None:
        """Act on the store's answer to the news that were taken last."""
        ...

    def tasks_abandoned(self) -> None:
        """Count as lost the news of tasks that the store has not confirmed."""
        ...

    def tasks_counted(self, census: TaskCensus | None) -> None:
        """Record the counts of the service's tasks, and report expired ones; ``None`` = unknown."""
        ...

    def closing(self) -> None:
        """Submit all pending calls, since the running loop or the process is about to end."""
        ...


class Use:
    """One operation on the store."""

    down: StoreDown | None = None
    """Why it failed."""


class StoreHealth:
    """Infers the state of the store from the outcomes of operations."""

    def __init__(
        self, events: SessionEvents, *, divided: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin healthy. `divided`: parts of the store may fail independently, as in a cluster."""
        self.divided = divided
        self.events = events
        self._clock = clock
        self.is_away = False
        """The breaker is open: the last operation failed."""
        self.is_partial = False
        """Some nodes or slots of a cluster do not work; the others do."""
        self.is_slow = False
        """The store works, but a lookup has timed out: no request waits until a probe is answered in time."""
        self.recoveries = 0
        self.recovered_at = -inf
        """When the store recovered last, in seconds of the clock."""
        self._failures = 0
        self._retry_at = 0.0
        self._last_failure = 0.0
        self._logged: deque[float] = deque(maxlen=_LOGGED)
        self._is_logged = False
        """Whether the current outage was logged, so that its end is logged too."""

    @property
    def wait(self) -> float:
        """Seconds until the next attempt; 0 = now."""
        return max(0.0, self._retry_at - self._clock()) if self.is_away else 0.0

    @contextmanager
    def operation(self, name: str, *, proof: bool = False, deferred: bool = False) -> Generator[Use]:
        """Time a store operation. Contain its failure and open the breaker (for `proof` see `failed`).

        With `deferred`, leave the breaker to the caller, who reads `Use.down`.
        """
        started = time.perf_counter()
        use, outcome = Use(), "ok"
        try:
            yield use
        except StoreDown as down:
            use.down, outcome = down, "denied" if down.denied else "error"
        except asyncio.CancelledError:
            outcome = "error"  # Unknown: the store may have executed it.
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
        """Open the breaker after a failure; log one warning per outage.

        While `is_partial`, a failure opens it only with `proof`: others may come from the failed part.
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
        """Close the breaker; log the end of an outage once."""
        if self._close() and not self.is_partial:
            self._log_end()

    def partly(self, down: StoreDown) -> None:
        """Close the breaker although a part of the store does not work; log one warning, as for an outage."""
        self._last_failure = self._clock()
        was_away = self._close()
        if not self.is_partial:
            self.is_partial = True
            if not was_away:
                self._log(down, "a part of ")

    def answered(self) -> None:
        """Note a successful probe. After an outage of a divided store it says nothing about the other parts."""
        if self.divided and self.is_away and not self.is_partial:
            self.partly(StoreDown("unknown"))
        else:
            self.succeeded()

    def all_written(self) -> None:
        """Note that every flush was written: a failed part has recovered if it was calm for `_CALM` seconds."""
        if self.is_partial and not self.is_away and self._clock() - self._last_failure >= _CALM:
            self.is_partial = False
            self._log_end()
            self._recovered()

    def _close(self) -> bool:
        """Close the breaker; return whether it was open."""
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
                "sessions are kept in memory and written when it is available again",
                part,
                down.reason,
            )

    def _log_end(self) -> None:
        if self._is_logged:
            # INFO if it is shown; otherwise WARNING, so that the end is logged wherever the outage was.
            level = logging.INFO if logger.isEnabledFor(logging.INFO) else logging.WARNING
            logger.log(level, "otel_mcp: Redis can be used again; what was kept in memory is being written")
