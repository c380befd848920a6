"""The sessions that this process holds: bounded, by last use, and with a limit on new ones."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Final

from otel_mcp.model.delta import SessionFacts
from otel_mcp.model.session import Session
from otel_mcp.settings import Settings

_MINUTE: Final = 60.0


class Table:
    """Sessions by the id that keys them."""

    def __init__(self, settings: Settings, rejected: Callable[[str], None], clock: Callable[[], float]) -> None:
        self._rejected = rejected
        self._clock = clock
        self._ttl = settings.session_ttl
        self._most = settings.max_sessions
        self._most_new = settings.max_new_sessions
        self.sessions: OrderedDict[str, Session] = OrderedDict()
        self._window_began = 0.0
        self._opened = 0
        self._asking = 0

    def get(self, session_id: str) -> Session | None:
        """A live session. What became part of a conversation lives as long as that."""
        session = self.sessions.get(session_id)
        if session is None or session.ended:
            return None
        active = session.conversation or session
        return session if not active.ended and self._clock() - active.last_activity < active.facts.limit else None

    def may_open(self) -> bool:
        """Whether the limit on new sessions allows another one."""
        now = self._clock()
        if now - self._window_began >= _MINUTE:
            self._window_began, self._opened = now, 0
        return self._opened + self._asking < self._most_new

    @contextmanager
    def room(self) -> Generator[None]:
        """Count a session that may begin while the store is asked: it writes down what it agrees to."""
        self._asking += 1
        try:
            yield
        finally:
            self._asking -= 1

    def admit(
        self, session_id: str, source: str, *, limit: float | None = None, previous: str | None = None
    ) -> Session | None:
        """Begin a session, within the limit; `limit` is that of its silence, in seconds."""
        if not self.may_open():
            self._rejected("limit")
            return None
        self._opened += 1
        session = self.draft(session_id, source, limit=limit, previous=previous)
        self.put(session)
        return session

    def draft(
        self, session_id: str, source: str, *, limit: float | None = None, previous: str | None = None
    ) -> Session:
        """A session that is not held: nobody else sees it."""
        now = self._clock()
        return Session(SessionFacts(session_id, now, limit or self._ttl, source=source, previous_id=previous), now)

    def proposal(
        self, session_id: str, source: str, *, previous: str | None = None, known: bool = False
    ) -> Session | None:
        """A draft, if it is of a session that the store knows, or if another one may begin."""
        return self.draft(session_id, source, previous=previous) if known or self.may_open() else None

    def put(self, session: Session) -> None:
        """Hold a session."""
        self.sessions[session.id] = session
        while len(self.sessions) > self._most:
            self.sessions.popitem(last=False)

    def remember(self, table: OrderedDict[str, str], key: str, value: str) -> None:
        """Note in another table of ids, which is bounded likewise."""
        table[key] = value
        while len(table) > self._most:
            table.popitem(last=False)

    def first(self, table: OrderedDict[str, str], key: str, answer: str, candidate: str) -> str:
        """Of two requests that asked a store which answered neither, the first one's id stands."""
        if answer == candidate:
            for rival in (table.get(key), key):
                if rival is not None and self.get(rival) is not None:
                    return rival
        return answer
