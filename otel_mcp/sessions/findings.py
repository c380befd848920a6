"""Finds patterns in running sessions: loops, retry storms, ping-pong.

A process sees its own calls only, so it reads the session from the store, which has the calls of all replicas. It does
so after a failed or repeated call. A new pattern is marked in the store and reported by the process whose mark came
first. Nothing here runs on the path of a request.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from math import inf
from typing import Final

from otel_mcp.bounded import remember
from otel_mcp.guard import guarded
from otel_mcp.model.verdict import find
from otel_mcp.sessions.health import SessionEvents, StoreHealth
from otel_mcp.store.base import SessionStore

PAUSE: Final = 5.0
"""Minimum seconds between two reads of one session."""
LOOKS: Final = 10
"""Sessions read in one turn of the worker: each document is parsed."""
_SESSIONS: Final = 2000
"""Maximum number of sessions to read, and of remembered times of reading."""


class Findings:
    """Reads sessions that may show a pattern. `clock` returns monotonic seconds."""

    def __init__(
        self,
        store: SessionStore,
        events: SessionEvents,
        health: StoreHealth,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._events = events
        self._health = health
        self._clock = clock
        self.due: dict[str, float] = {}
        """Sessions to read, and when (monotonic seconds)."""
        self.next_at = inf
        """The earliest of these."""
        self._looked: OrderedDict[str, float] = OrderedDict()

    def want(self, session_id: str) -> None:
        """Queue a session for reading; ignore it if `_SESSIONS` are queued."""
        if len(self.due) < _SESSIONS:
            self.due[session_id] = at = max(self._clock(), self._looked.get(session_id, -inf) + PAUSE)
            self.next_at = min(self.next_at, at)

    async def look(self) -> None:
        """Read the sessions that are due, up to `LOOKS`."""
        now = self._clock()
        if self._health.is_away:
            return
        with self._health.operation("find"):
            for session_id in [each for each, at in self.due.items() if at <= now][:LOOKS]:
                del self.due[session_id]
                remember(self._looked, session_id, now, _SESSIONS)
                await self._look(session_id)
        self.next_at = min(self.due.values(), default=inf)

    async def _look(self, session_id: str) -> None:
        state = await self._store.load(session_id)
        if state is None or state.ended is not None:
            return  # The outcome of an ended session covers its patterns.
        for finding in find(state.tool_calls):
            if finding.name not in state.findings and await self._store.mark(session_id, finding.name):
                state.findings.append(finding.name)
                with guarded("session events"):
                    self._events.found(finding, state)
