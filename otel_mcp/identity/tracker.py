"""The sessions that this process knows, and the rules that turn a claim into one.

In steady state this is a look-up in a dictionary. Only an id or a client that
this process meets for the first time asks the shared store, for 50 ms at most,
so that replicas agree; while the store is degraded it is answered from here.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import inf
from typing import Final, Protocol

from opentelemetry.trace import SpanContext

from otel_mcp.guard import guarded
from otel_mcp.identity.candidate import Candidate
from otel_mcp.identity.keys import OURS, Keys, new_id
from otel_mcp.identity.principal import Principal
from otel_mcp.sessions.delta import Known, SessionFacts
from otel_mcp.sessions.state import SessionState
from otel_mcp.settings import Settings

_MINUTE: Final = 60.0
_FRESH: Final = 30.0
"""Seconds in which an id of ours may be unknown to the store: another replica has still to write it."""
_STATE_FIELDS: Final = (
    "session_id", "user_agent", "created_at", "client_name", "client_version",
    "protocol_version", "source", "conversation_id", "previous_id",
)  # fmt: skip


class Directory(Protocol):
    """The part of the shared store that identity asks."""

    async def recall(self, session_id: str) -> Known | None: ...
    async def consult(self, key: str) -> str | None: ...
    async def agree(self, key: str, candidate: str, ttl: float) -> str: ...
    async def succeed(self, old_id: str, candidate: str) -> str: ...


@dataclass(slots=True, eq=False)
class Session:
    """A live session as this process sees it. Shared by all its requests; never locked, never copied."""

    facts: SessionFacts
    last_activity: float
    """Unix seconds."""
    principal: str | None = None
    """Keyed hash of the user that it is bound to."""
    agreement: str | None = None
    """Key under which replicas agreed on an inferred session."""
    ended: bool = False
    sampled: deque[SpanContext] | None = None
    """Spans of its calls in this process, for the span of the session; only where that is wanted."""
    facts_due: float = inf
    """Unix seconds at which to ask the store for what another replica knows of it."""
    attributes: dict[str, str] = field(default_factory=dict[str, str])
    """Span attributes, the same for every call of the session; refilled when the facts change."""

    @property
    def id(self) -> str:
        return self.facts.session_id

    @property
    def source(self) -> str:
        return self.facts.source or "none"

    def state(self) -> SessionState:
        """The public form: a copy without tool calls."""
        known = {name: getattr(self.facts, name) for name in _STATE_FIELDS}
        return SessionState.model_validate({**known, "last_activity": self.last_activity})


class Tracker:
    """Sessions by id and by fingerprint, bounded, with a limit on new ones."""

    def __init__(
        self,
        settings: Settings,
        directory: Directory,
        keys: Keys,
        rejected: Callable[[str], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._directory = directory
        self._keys = keys
        self._rejected = rejected
        self._clock = clock
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._fingerprints: OrderedDict[str, str] = OrderedDict()
        self._successors: OrderedDict[str, str] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self._gap = min(settings.session_idle_gap, settings.session_ttl)
        self._window_began = 0.0
        self._opened = 0

    def get(self, session_id: str) -> Session | None:
        """A live session that this process knows, by the id that keys it."""
        session = self._sessions.get(session_id)
        if session is None or session.ended:
            return None
        return session if self._clock() - session.last_activity < session.facts.limit else None

    def peek(self, claim: Candidate) -> Session | None:
        """What `resolve` would answer, if it can be told without asking or creating."""
        if claim.inferred:
            known = self._fingerprints.get(claim.key)
            return self.get(known) if known else None
        session = self.get(claim.key)
        if session is not None and session.facts_due <= self._clock():
            self._complete_later(session)
        if session is None and (next_id := self._successors.get(claim.key)):
            session = self.get(next_id)
        return session if session is not None and not self._foreign(session, claim.principal) else None

    async def propose(self, claim: Candidate, *, owned: bool | None) -> Session | None:
        """The session that a message would have if the server took it. Asks; writes and opens nothing."""
        if (session := self.peek(claim)) is not None:
            return session
        if claim.inferred:
            agreed = await self._directory.consult(_agreement(claim))
            return self._draft(claim, agreed or new_id(), limit=self._gap, known=agreed is not None)
        if claim.derived or (owned and claim.transport) or self.get(claim.key) is not None:
            return self._draft(claim, self._owned_id(claim))
        known = await self._directory.recall(claim.key)
        forged = self._is_forged(claim)
        if known is not None and known.exists and not known.ended:
            return self._draft(claim, claim.key, known=True)
        if not forged and (known is None or self._is_fresh(claim, known) or (owned is None and claim.transport)):
            return self._draft(claim, claim.key)
        successor = known.successor if known is not None else None
        return self._draft(
            claim, successor or self._successor_id(claim), previous=claim.key, known=successor is not None
        )

    def _draft(
        self,
        claim: Candidate,
        session_id: str,
        *,
        limit: float | None = None,
        previous: str | None = None,
        known: bool = False,
    ) -> Session | None:
        if not known and not self._may_open():
            return None
        ends_after = limit or self._settings.session_ttl
        facts = SessionFacts(session_id, self._clock(), ends_after, source=claim.source, previous_id=previous)
        return Session(facts, self._clock())

    def again(self, claim: Candidate) -> Session | None:
        """The session that this very claim has led to before, if it still would."""
        session = claim.session
        if session is None or session.ended or self._sessions.get(session.facts.session_id) is not session:
            return None
        if self._clock() - session.last_activity >= session.facts.limit:
            return None
        if session.principal is not None and self._foreign(session, claim.principal):
            return None
        self._sessions.move_to_end(session.facts.session_id)
        return session

    async def resolve(self, claim: Candidate, *, owned: bool | None, proposed: Session | None = None) -> Session | None:
        """The session of a message that the server has taken; opens one where needed.

        Args:
            claim: what the request says.
            owned: the server itself gives out transport ids; ``None`` = not known.
            proposed: what `propose` answered for this very message.

        Returns:
            ``None`` where the limit on new sessions is reached.
        """
        session = self.peek(claim)
        if session is None:
            if claim.inferred:
                session = await self._infer(claim, proposed)
            elif claim.derived or (owned and claim.transport) or self.get(claim.key) is not None:
                session = self._bound(claim, claim.key)
            else:
                session = await self._recall(claim, owned, proposed)
        if session is not None:
            self._bind(session, claim)
            self._sessions.move_to_end(session.id)
        if claim.session is not session:
            claim.session, claim.attributes = session, None
        return session

    def calls_of(self, session_id: str) -> list[SpanContext]:
        """Sampled calls of a session in this process, also of one that has ended."""
        session = self._sessions.get(session_id)
        return list(session.sampled) if session is not None and session.sampled is not None else []

    def open(self, session_id: str, source: str, *, previous: str | None = None) -> Session | None:
        """Begin a session under an id that the protocol has just given out, within the limit."""
        if (known := self.get(session_id)) is not None:
            return known
        return self._admit(session_id, source, previous=previous)

    def forget(self, session: Session) -> None:
        """The session has ended; its id opens nothing any more."""
        session.ended = True

    def _bound(self, claim: Candidate, session_id: str, *, previous: str | None = None) -> Session | None:
        # Under another user the same id is another session.
        held = self.get(session_id)
        if held is not None and self._foreign(held, claim.principal):
            self._rejected("principal")
            session_id = self._for_principal(session_id, claim.principal)
            held = self.get(session_id)
        return held or self._admit(session_id, claim.source, previous=previous)

    def _for_principal(self, session_id: str, principal: Principal | None) -> str:
        return f"p_{self._keys.digest('bound', session_id, principal.digest if principal else '')}"

    async def _infer(self, claim: Candidate, proposed: Session | None) -> Session | None:
        agreement = _agreement(claim)
        if not self._may_open():
            # Another replica's session may still be joined: that opens none.
            agreed = await self._directory.consult(agreement)
            if agreed is None:
                self._rejected("limit")
                return None
            session_id = agreed
        else:
            candidate = proposed.id if proposed is not None else new_id()
            session_id = await self._directory.agree(agreement, candidate, self._gap)
            session_id = self._first(self._fingerprints, claim, session_id, candidate)
        self._remember(self._fingerprints, claim.key, session_id)
        session = self.get(session_id) or self._admit(session_id, claim.source, limit=self._gap)
        if session is not None:
            session.agreement = agreement
        return session

    def _first(self, table: OrderedDict[str, str], claim: Candidate, answer: str, candidate: str) -> str:
        """Of two requests that asked a store which answered neither, the first one's id stands."""
        if answer == candidate:
            for rival in (table.get(claim.key), claim.key):
                if rival is not None and self.get(rival) is not None:
                    return rival
        return answer

    async def _recall(self, claim: Candidate, owned: bool | None, proposed: Session | None) -> Session | None:
        known = await self._directory.recall(claim.key)
        if (told := self.peek(claim)) is not None:
            return told  # Another request has asked the same, and was answered.
        forged = self._is_forged(claim)
        if not forged and (known is None or self._is_fresh(claim, known)):
            # Nobody can be asked now, or nobody has written it yet: the id itself is the best there is.
            session = self._bound(claim, claim.key)
            if session is not None and session.facts.client_name is None:
                session.facts_due = self._clock() + 2 * self._settings.flush_interval
            return session
        if known is not None and known.exists and known.facts is not None and not known.ended:
            return self._adopt(claim, known.facts)
        if known is not None and owned is None and claim.transport and not known.ended and not forged:
            # Perhaps the server's own, met first by this replica; it has accepted it.
            return self._bound(claim, claim.key)
        return await self._succeed(claim, known, proposed)

    async def _succeed(self, claim: Candidate, known: Known | None, proposed: Session | None) -> Session | None:
        """The one session that continues an unknown or ended id, on all replicas."""
        successor = known.successor if known is not None else None
        if successor is None:
            if not self._may_open():
                self._rejected("limit")
                return None
            candidate = proposed.id if proposed is not None else self._successor_id(claim)
            successor = await self._directory.succeed(claim.key, candidate)
            successor = self._first(self._successors, claim, successor, candidate)
        self._remember(self._successors, claim.key, successor)
        return self._bound(claim, successor, previous=claim.key)

    def _is_forged(self, claim: Candidate) -> bool:
        """It looks like an id that we gave out, and is none."""
        return claim.key.startswith(OURS) and not self._keys.is_ours(claim.key)

    def _complete_later(self, session: Session) -> None:
        """Learn in the background what ``initialize`` told another replica."""
        session.facts_due = inf
        task = asyncio.get_running_loop().create_task(self._complete(session))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _complete(self, session: Session) -> None:
        with guarded("session facts"):
            known = await self._directory.recall(session.id)
            if known is not None and known.facts is not None:
                for name, value in known.facts.known().items():
                    if getattr(session.facts, name) is None:
                        setattr(session.facts, name, value)

    def _is_fresh(self, claim: Candidate, known: Known) -> bool:
        unknown = not known.exists and not known.ended and known.successor is None
        return unknown and self._keys.age(claim.key) < _FRESH + self._settings.flush_interval

    def _successor_id(self, claim: Candidate) -> str:
        # One that a client may be told of, where the protocol has a way to.
        return self._keys.mint() if claim.transport else new_id()

    def _owned_id(self, claim: Candidate) -> str:
        held = self.get(claim.key)
        if held is not None and self._foreign(held, claim.principal):
            return self._for_principal(claim.key, claim.principal)
        return claim.key

    def _adopt(self, claim: Candidate, facts: SessionFacts) -> Session:
        session = Session(replace(facts, source=facts.source or claim.source), self._clock())
        self._store(session)
        return session

    def _foreign(self, session: Session, principal: Principal | None) -> bool:
        if session.principal is None:
            return False
        return principal is None or not principal.binds or session.principal != principal.digest

    def _bind(self, session: Session, claim: Candidate) -> None:
        if session.principal is None and claim.principal is not None and claim.principal.binds:
            session.principal = claim.principal.digest
        if claim.conversation_id and session.facts.conversation_id is None:
            session.facts.conversation_id = claim.conversation_id

    def _admit(
        self, session_id: str, source: str, *, limit: float | None = None, previous: str | None = None
    ) -> Session | None:
        if not self._may_open():
            self._rejected("limit")
            return None
        self._opened += 1
        now = self._clock()
        facts = SessionFacts(session_id, now, limit or self._settings.session_ttl, source=source, previous_id=previous)
        session = Session(facts, now)
        self._store(session)
        return session

    def _may_open(self) -> bool:
        now = self._clock()
        if now - self._window_began >= _MINUTE:
            self._window_began, self._opened = now, 0
        return self._opened < self._settings.max_new_sessions

    def _store(self, session: Session) -> None:
        self._sessions[session.id] = session
        while len(self._sessions) > self._settings.max_sessions:
            self._sessions.popitem(last=False)

    def _remember(self, table: OrderedDict[str, str], key: str, value: str) -> None:
        table[key] = value
        while len(table) > self._settings.max_sessions:
            table.popitem(last=False)


def _agreement(claim: Candidate) -> str:
    return f"client:{claim.key}"
