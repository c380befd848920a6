"""Reports ends of sessions, after other processes have had time to write their calls.

The store reserves each end for the process that wrote it. If that process dies,
the next sweep of another process reports the end.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from otel_mcp.bounded import remember
from otel_mcp.guard import guarded
from otel_mcp.model.delta import EndedSession
from otel_mcp.model.verdict import judge, visits_regularly
from otel_mcp.sessions.health import SessionEvents, StoreHealth
from otel_mcp.settings import Settings
from otel_mcp.store.base import BRIEF, SessionStore
from otel_mcp.store.memory import MemoryStore

TRAVEL: Final = 1.0
"""Seconds that another process's flush may take, beyond its interval."""
BATCH: Final = 100
"""Ends in one round trip."""
_SWEEP: Final = 1.0
"""Maximum seconds of one sweep: a backlog must not occupy the loop."""


class Endings:
    """Holds the ends that this process has to report."""

    def __init__(self, settings: Settings, store: SessionStore, events: SessionEvents, health: StoreHealth) -> None:
        self._store = store
        self._events = events
        self._health = health
        self._most = settings.max_sessions
        self._settle = 0.0 if isinstance(store, MemoryStore) else settings.flush_interval + TRAVEL
        """Seconds to wait for the flushes of other processes."""
        self._brief = min(BRIEF, settings.session_idle_gap) if "inferred" in settings.session_sources else 0.0
        self.held: OrderedDict[str, float] = OrderedDict()
        """Ended sessions, and when to report each (monotonic seconds)."""

    def hold(self, session_id: str, *, brief: bool = False) -> None:
        """Keep an end that this process has written, until it is time to report it.

        A `brief` session is kept longer: its client opens a transport session for each call, and may continue it.
        """
        seconds = max(self._settle, self._brief) if brief else self._settle
        remember(self.held, session_id, time.monotonic() + seconds, self._most)

    async def conclude(self, session_id: str | None = None, *, everything: bool = False) -> None:
        """Report the ends that are due, also that of `session_id`; with `everything`, report all."""
        now = time.monotonic()
        due = [key for key, at in self.held.items() if everything or at <= now or key == session_id]
        # With `everything` also an empty batch: it lets the store send pending acknowledgements.
        for first in range(0, max(len(due), everything), BATCH):
            if self._health.is_away:
                return
            batch = {key: self.held.pop(key) for key in due[first : first + BATCH] if key in self.held}
            settled = False
            try:
                with self._health.operation("end"):
                    await self._settled(await self._store.claim_held(list(batch), time.time() - self._settle))
                    settled = True
            finally:
                if not settled:  # Asked again, the store leaves out reported ends.
                    for key, at in batch.items():
                        self.held.setdefault(key, at)

    async def sweep(self) -> None:
        """Report the ends of expired sessions, and those left by processes that died."""
        until = time.monotonic() + _SWEEP
        while time.monotonic() < until:
            ended = await self._store.claim_expired(time.time() - self._settle, BATCH)
            await self._settled(ended)
            if not ended:
                return

    async def _settled(self, ended: Sequence[EndedSession]) -> None:
        if ended:
            await self.report(ended)
            await self._store.ack_ends(ended)

    async def report(self, ended: Sequence[EndedSession]) -> None:
        """Decide outcomes and report these ends, also after a failure: the store returns each end once."""
        visits: Sequence[Sequence[float]] = [()] * len(ended)
        try:
            if any(end.facts.visitor is not None for end in ended):
                with self._health.operation("visits"):
                    visits = await self._store.visits(ended)
        finally:
            for end, starts in zip(ended, visits, strict=True):
                _decide(end, starts)
                with guarded("session events"):
                    self._events.ended(end)


def _decide(end: EndedSession, starts: Sequence[float]) -> None:
    """Set the outcome of a session. A visitor that comes regularly and calls no tool is marked as a bot."""
    end.outcome = "worked" if end.tool_call_count else "no_call"
    with guarded("session outcome"):
        if end.facts.synthetic_type is None and not end.tool_call_count and visits_regularly(starts):
            end.facts.synthetic_type = "bot"
        end.outcome = judge(
            end.calls, end.tool_call_count, findings=end.findings, probe=end.facts.synthetic_type is not None
        )
