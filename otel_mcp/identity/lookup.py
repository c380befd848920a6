"""The rules that turn a claim into a session.

In steady state this is a look-up in a dictionary. Only an id or a client that
this process meets for the first time asks the shared store, for 50 ms at most
in all, so that replicas agree; while the store is degraded it is answered from here.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Final

from opentelemetry.trace import SpanContext

from otel_mcp.hashing import NAMED, OURS, KeyedHashes, new_id
from otel_mcp.identity.directory import Directory, Later
from otel_mcp.identity.inference import Inference
from otel_mcp.identity.principal import bind, id_for, is_foreign, is_of_another, user_of
from otel_mcp.identity.reconcile import Learning
from otel_mcp.identity.registry import Table
from otel_mcp.identity.standing import Standing
from otel_mcp.model.delta import Known
from otel_mcp.model.session import Claim, Principal, Session
from otel_mcp.settings import Settings
from otel_mcp.types import Asker

_LOOK_AGAIN: Final = 2.0
"""Flush intervals after which the store knows what other replicas knew at the time."""


class Tracker:
    """Sessions by what requests claim."""

    def __init__(
        self,
        settings: Settings,
        directory: Directory,
        keys: KeyedHashes,
        rejected: Callable[[str], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._directory = directory
        self._keys = keys
        self._rejected = rejected
        self._clock = clock
        self.table = Table(settings, rejected, clock)
        self._sessions = self.table.sessions
        self._successors: OrderedDict[str, str] = OrderedDict()
        self.later = Later()
        gap = min(settings.session_idle_gap, settings.session_ttl)
        self._learning = Learning(directory, self.later, _LOOK_AGAIN * settings.flush_interval, self._continued)
        self._standing = Standing(keys, settings.flush_interval)
        self._inference = Inference(self.table, directory, gap, rejected)

    def get(self, session_id: str) -> Session | None:
        """A live session that this process knows, by the id that keys it."""
        return self.table.get(session_id)

    def peek(self, claim: Claim) -> Session | None:
        """What `resolve` would answer, if it is known without asking or creating."""
        if claim.inferred:
            return self._inference.peek(claim)
        session = self.get(claim.key)
        if session is None and (next_id := self._successors.get(claim.key)):
            session = self.get(next_id)
        if session is None or is_foreign(session.facts, claim.principal):
            return None
        whole = session.conversation or session
        return None if is_foreign(whole.facts, claim.principal) else whole

    async def propose(self, claim: Claim, *, owned: bool | None, asker: Asker | None = None) -> Session | None:
        """The session that a message would have if the server took it. Asks; writes and opens nothing."""
        if (session := self.again(claim) or self.peek(claim)) is not None:
            return session
        if claim.inferred:
            return await self._inference.propose(claim, asker)
        if self.get(claim.key) is not None:
            return self.table.proposal(id_for(self._keys, claim.key, claim.principal), claim.source)
        known = await self._directory.describe(claim.key, asker)
        if (session := await self._proposed(claim, owned, known, asker)) is not None:
            session.known = known
        return session

    async def _proposed(
        self, claim: Claim, owned: bool | None, known: Known | None, asker: Asker | None
    ) -> Session | None:
        if is_of_another(known, claim.principal):
            return self.table.proposal(id_for(self._keys, claim.key, claim.principal), claim.source)
        successor = self._standing.continued_as(claim, known, owned)
        if known is not None and known.live is not None and successor is None:
            return self.table.proposal(claim.key, claim.source, known=True)
        if successor is None and self._standing.stands(claim, known, owned):
            return self.table.proposal(claim.key, claim.source)
        if successor is not None:
            held = await self._directory.describe(successor, asker)
            if held is not None and held.live is not None and is_foreign(held.live, claim.principal):
                return self.table.proposal(id_for(self._keys, successor, claim.principal), claim.source)
        is_known, successor = successor is not None, successor or self._successor_id(claim)
        return self.table.proposal(successor, claim.source, previous=claim.key, known=is_known)

    def again(self, claim: Claim) -> Session | None:
        """The session that this very claim has led to before, if it still would."""
        session = claim.session
        if session is None or session.ended or self._sessions.get(session.facts.session_id) is not session:
            return None
        if self._clock() - session.last_activity >= session.facts.limit or session.conversation is not None:
            return None
        if session.facts.principal is not None and is_foreign(session.facts, claim.principal):
            return None
        self._sessions.move_to_end(session.facts.session_id)
        return session

    async def resolve(
        self, claim: Claim, *, owned: bool | None, proposed: Session | None = None, asker: Asker | None = None
    ) -> Session | None:
        """The session of a message that the server has taken; opens one where needed.

        Args:
            claim: what the request says.
            owned: the server itself gives out transport ids; ``None`` = not known.
            proposed: what `propose` answered for this very message.
            asker: the request that waits for what is asked.

        Returns:
            ``None`` where the limit on new sessions is reached.
        """
        session = self.peek(claim)
        if session is None:
            if claim.inferred:
                session = await self._inference.resolve(claim, proposed, asker)
            elif self.get(claim.key) is not None:
                session = self._instead(claim)
            else:
                session = await self._recall(claim, owned, proposed, asker)
        if session is not None:
            if claim.conversation_id and session.facts.conversation_id is None:
                session.facts.conversation_id = claim.conversation_id
            if session.id in self._sessions:
                self._sessions.move_to_end(session.id)
        if claim.session is not session:
            claim.session, claim.attributes = session, None
        return session

    def calls_of(self, session_id: str) -> list[SpanContext]:
        """Sampled calls of a session in this process, also of one that has ended."""
        session = self._sessions.get(session_id)
        return list(session.sampled) if session is not None and session.sampled is not None else []

    def open(self, session_id: str, source: str, principal: Principal | None = None) -> Session | None:
        """Begin a session under an id that the protocol has just given out, within the limit.

        It is bound at once: another user who learns the id must not be the first to use it.
        """
        if (mine := self.owned_id(session_id, principal)) != session_id:
            self._rejected("principal")
        session = self.get(mine)
        if session is None and (session := self.table.admit(mine, source)) is not None:
            bind(session, principal)
            session.facts.opened = True
            if not session_id.startswith(OURS):  # Which says so itself.
                # Its handshake is written later: until then other processes must not take it for somebody else's.
                self.later.run(partial(self._directory.bind, session.id, session.facts.principal))
        return session

    def hold(self, session_id: str, source: str, owner: str) -> None:
        """The store has a session that this process took for another one: it is that of `owner`."""
        session = self.table.draft(session_id, source)
        session.facts.principal = owner
        self.table.put(session)
        self._learning.later(session)

    def forget(self, session: Session) -> None:
        """The session has ended; its id opens nothing any more."""
        session.ended = True

    def _instead(self, claim: Claim) -> Session | None:
        """Under another user the same id is another session."""
        self._rejected("principal")
        session_id = id_for(self._keys, claim.key, claim.principal)
        if (session := self.get(session_id)) is not None:
            return session
        return self._bound(self.table.admit(session_id, claim.source), claim)

    def _bound(self, session: Session | None, claim: Claim) -> Session | None:
        """A session that begins with this claim."""
        if session is not None:
            bind(session, claim.principal)
            if claim.whose == "nobody":
                session.facts.principal = None
        return session

    def _begin(
        self,
        claim: Claim,
        session_id: str,
        *,
        previous: str | None = None,
        joined: bool = False,
        blindly: bool = False,
    ) -> Session | None:
        held = self.get(session_id)
        if held is not None:
            # A successor, which somebody else was the first to need.
            return self._instead(replace(claim, key=session_id)) if is_foreign(held.facts, claim.principal) else held
        if joined:
            # Another replica's, which has counted it.
            session = self.table.draft(session_id, claim.source, previous=previous)
            self.table.put(session)
        else:
            session = self.table.admit(session_id, claim.source, previous=previous)
        self._bound(session, claim)
        if claim.whose == "another":
            self._rejected("principal")
        if session is not None and blindly:
            self._learning.at_last(session)
        elif session is not None:
            self._learning.later(session)
        return session

    def _continued(self, session: Session, successor: str) -> None:
        """Replicas had continued the id under which this one has begun a session since nobody could be asked."""
        self.follow(session.id, successor)
        self.forget(session)

    async def _recall(
        self, claim: Claim, owned: bool | None, proposed: Session | None, asker: Asker | None
    ) -> Session | None:
        known = await self._directory.describe(claim.key, asker)
        if known is None and proposed is not None:
            known = proposed.known  # The request has asked before, and may have no time left for asking again.
        if (told := self.peek(claim)) is not None:
            return told  # Another request has asked the same, and was answered.
        if self.get(claim.key) is not None or is_of_another(known, claim.principal):
            return self._instead(claim)
        if self._standing.continued_as(claim, known, owned) is not None:
            return await self._succeed(claim, known, proposed, asker)
        if known is not None and known.live is not None:
            return self._adopt(claim, known)
        if self._standing.stands(claim, known, owned):
            blindly = known is None and not claim.derived and not owned
            if known is not None and known.opened:
                claim = replace(claim, whose="nobody" if known.principal is None else claim.whose)
            return self._begin(claim, claim.key, blindly=blindly)
        return await self._succeed(claim, known, proposed, asker)

    async def _succeed(
        self, claim: Claim, known: Known | None, proposed: Session | None, asker: Asker | None
    ) -> Session | None:
        """The one session that continues an unknown or ended id, on all replicas."""
        successor = known.successor if known is not None else None
        joined = successor is not None
        if successor is None:
            if not self.table.may_open():
                self._rejected("limit")
                return None
            candidate = proposed.id if proposed is not None else self._successor_id(claim)
            with self.table.room():
                successor = await self._directory.get_or_set_successor(
                    claim.key, candidate, user_of(claim.principal), asker
                )
            joined = successor != candidate
            successor = self.table.first(self._successors, claim.key, successor, candidate)
        self.follow(claim.key, successor)
        if (held := self.peek(claim)) is not None:
            return held
        known = await self._directory.describe(successor, asker) if joined or successor.startswith(NAMED) else None
        if known is not None and known.live is not None:
            if is_foreign(known.live, claim.principal):
                return self._instead(replace(claim, key=successor))
            return self._adopt(claim, known)
        joined = joined and not (known is not None and known.ended)
        return self._begin(claim, successor, previous=claim.key, joined=joined)

    def follow(self, old_id: str, successor: str) -> None:
        """From now on, what names `old_id` means `successor`."""
        self.table.remember(self._successors, old_id, successor)

    def _successor_id(self, claim: Claim) -> str:
        # One that a client may be told of, where the protocol has a way to.
        return self._keys.mint(user_of(claim.principal)) if claim.transport else new_id()

    def owned_id(self, session_id: str, principal: Principal | None) -> str:
        """The id of the session that this caller means by an id: under another user it is another session."""
        held = self.get(session_id)
        if held is not None and is_foreign(held.facts, principal):
            return id_for(self._keys, session_id, principal)
        return session_id

    def _adopt(self, claim: Claim, known: Known) -> Session:
        facts = known.live
        assert facts is not None
        session = Session(
            replace(facts, source=facts.source or claim.source), self._clock(), has_tool_calls=known.worked
        )
        session.caller = claim.principal.digest if claim.principal is not None else ""
        self.table.put(session)
        return session
