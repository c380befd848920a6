"""Keep the sessions that this process knows: the most recently used ones, and a limited rate of new ones."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Final

from opentelemetry.trace import SpanContext

from otel_mcp.bounded import remember
from otel_mcp.model.delta import SessionFacts
from otel_mcp.model.session import Session
from otel_mcp.settings import Settings

_MINUTE: Final = 60.0


class Registry:
    """Sessions by id, and the ids of sessions that continue other ids or belong to clients."""

    def __init__(self, settings: Settings, rejected: Callable[[str], None], clock: Callable[[], float]) -> None:
        """Begin without sessions; `rejected` counts rejected ones by reason, `clock` returns Unix seconds."""
        self.rejected = rejected
        self.clock = clock
        self._ttl = settings.session_ttl
        self._most = settings.max_sessions
        self._most_new = settings.max_new_sessions
        self.sessions: OrderedDict[str, Session] = OrderedDict()
        self._followed: OrderedDict[str, str] = OrderedDict()
        """Ids of sessions, by the ids that they continue and by the hashes of clients."""
        self._window_began = 0.0
        self._opened = 0
        self._asking = 0

    def get(self, session_id: str) -> Session | None:
        """Return a live session."""
        session = self.sessions.get(session_id)
        return session if session is not None and session.is_live(self.clock()) else None

    def calls_of(self, session_id: str) -> list[SpanContext]:
        """Return the sampled calls of a session in this process, which may have ended."""
        session = self.sessions.get(session_id)
        return list(session.sampled) if session is not None and session.sampled is not None else []

    def may_open(self) -> bool:
        """Return whether the limit on new sessions allows another one."""
        now = self.clock()
        if now - self._window_began >= _MINUTE:
            self._window_began, self._opened = now, 0
        return self._opened + self._asking < self._most_new

    @contextmanager
    def room(self) -> Generator[None]:
        """Count one more new session while the store is asked, since the answer may begin it."""
        self._asking += 1
        try:
            yield
        finally:
            self._asking -= 1

    def draft(
        self, session_id: str, source: str, *, limit: float | None = None, previous: str | None = None
    ) -> Session:
        """Make a session without adding it; it ends after `limit` seconds without activity."""
        now = self.clock()
        return Session(SessionFacts(session_id, now, limit or self._ttl, source=source, previous_id=previous), now)

    def begin(self, session: Session) -> Session | None:
        """Add a session that begins here; ``None`` = over the limit."""
        if not self.may_open():
            self.rejected("limit")
            return None
        self._opened += 1
        return self.put(session)

    def put(self, session: Session) -> Session:
        """Add a session, which may have begun elsewhere."""
        remember(self.sessions, session.id, session, self._most)
        return session

    def follow(self, key: str, session_id: str) -> None:
        """Let `key`, an id or the hash of a client, lead to that session from now on."""
        remember(self._followed, key, session_id, self._most)

    def followed(self, key: str) -> Session | None:
        """Return the live session that `key` leads to."""
        session_id = self._followed.get(key)
        return self.get(session_id) if session_id is not None else None

    def agreed(self, key: str, answer: str, candidate: str) -> str:
        """Let `key` lead to the id that the store returned; without an answer, the id of an earlier request stays."""
        earlier = (self.followed(key) or self.get(key)) if answer == candidate else None
        self.follow(key, answer if earlier is None else earlier.id)
        return answer if earlier is None else earlier.id
