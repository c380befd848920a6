"""Join the transport sessions of a client that opens one for each tool call and names no conversation.

LangChain's adapters do so by default: ``initialize``, one call, DELETE. From the second on, these transport sessions
form one *lasting* session, which ends like an inferred one, after the idle gap. The end of a session with at most one
call is delayed, and the next transport session cancels it. If a transport session makes a second call, it becomes a
session again, and later ones are not joined until the client again makes one call in one.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import replace
from functools import partial
from math import inf
from typing import Final

from otel_mcp.bounded import remember
from otel_mcp.hashing import OURS, minted_at
from otel_mcp.identity.reconcile import Conversations, Later
from otel_mcp.identity.registry import Registry
from otel_mcp.model.delta import SessionDelta, SessionFacts
from otel_mcp.model.session import Claim, Principal, Session
from otel_mcp.sessions.service import Sessions
from otel_mcp.settings import Settings
from otel_mcp.store.base import BRIEF

_SEVERAL: Final = "several"
"""Value for a closed session with more than one call."""
_NONE: Final = "none"
"""Value for a client that no longer has a lasting session."""


class PerCall:
    """Joins successive transport sessions of one client."""

    def __init__(
        self, settings: Settings, registry: Registry, sessions: Sessions, conversations: Conversations, later: Later
    ) -> None:
        self._registry = registry
        self._sessions = sessions
        self._conversations = conversations
        self._later = later
        self._gap = min(settings.session_idle_gap, settings.session_ttl)
        self._ttl = settings.session_ttl
        self._is_on = "inferred" in settings.session_sources
        self._most = settings.max_sessions
        self._last: OrderedDict[str, tuple[Session, float]] = OrderedDict()
        """By visitor: the session closed here last, and until when (Unix seconds) it continues without the store."""
        self._open: OrderedDict[str, tuple[Session, float]] = OrderedDict()
        """By visitor: the last transport session joined here, and until when (Unix seconds) it counts as open."""
        self._called: OrderedDict[str, None] = OrderedDict()
        """Joined transport sessions that have made a call."""

    def opened(self, session: Session, caller: Principal) -> None:
        """Join a new transport session to the client's earlier one if this process knows it; ask the store later."""
        visitor = session.facts.visitor
        if not self._is_on or visitor is None or session.conversation is not None:
            return
        last, until = self._last.get(visitor, (None, 0.0))
        # Only the store decides that a lasting session has ended.
        is_free = self._open_of(visitor) is None
        if is_free and last is not None and self._registry.clock() < until and not (last.facts.lasting and last.ended):
            self._join(session, last.facts, caller)
        self._later.run(partial(self._ask, session, caller))

    async def _ask(self, session: Session, caller: Principal) -> None:
        before, visitor = await self._sessions.get(_calls(session)), session.facts.visitor or ""
        if session.conversation is not None:
            if before is not None and before != session.conversation.id:
                self._last.pop(visitor, None)  # Other replicas continue another one.
            return
        if (other := self._open_of(visitor)) is not None:
            closed = await self._sessions.get(_closed(other.id)) if other.id.startswith(OURS) else None
            if closed is None:
                return  # Sessions that overlap are of different clients.
            if closed == _SEVERAL:
                self._last.pop(visitor, None)
                before = _NONE
        goes_on = before not in (None, _NONE, session.id) and await self._look(session, before, caller)
        if not goes_on and session.id.startswith(OURS):
            # Another replica, which does not know the visitor, may get the call and the DELETE.
            await self._sessions.set_value(_calls(session), session.id, self._gap)

    async def _look(self, session: Session, before: str, caller: Principal) -> bool:
        """Join the client's earlier session if that may continue. Returns whether it does."""
        known, is_closed = await asyncio.gather(self._sessions.describe(before), self._sessions.get(_closed(before)))
        held = self._registry.sessions.get(before)
        if known is None or session.ended or session.tool_calls > 1 or session.conversation is not None:
            return False
        if is_closed == _SEVERAL and held is None:
            return False
        facts = known.facts or (held.facts if held is not None and not known.ended else None)
        is_new = before.startswith(OURS) and not known.ended
        if facts is None and not (is_new and is_closed):
            session.continues = before
            return False
        is_short = held is None or held.facts.lasting or held.tool_calls <= 1
        may_go_on = known.may_go_on or (not known.exists and is_short)
        if facts is None:
            facts = SessionFacts(before, self._registry.clock(), self._gap)
        elif not facts.lasting:
            is_closed = is_closed or known.ended or (held is not None and held.ended)
            has_calls = known.has_tool_calls or (held is not None and held.tool_calls > 0)
            # The call of a new session may be on another replica, not written yet.
            may_go_on = may_go_on and bool(is_closed) and (has_calls or is_new)
        if not may_go_on or not self._join(session, facts, caller):
            return False
        await self._sessions.set_value(_calls(session), before, self._gap)
        return True

    def _join(self, session: Session, facts: SessionFacts, caller: Principal) -> bool:
        """Make a transport session part of the session with these facts, unless its calls were already written."""
        lasting = self._registry.get(facts.session_id)
        if lasting is None or not lasting.facts.lasting:
            lasting = Session(self._as_lasting(facts, session), self._registry.clock(), tool_calls=1)
            lasting.caller = caller.digest
        if session.tool_calls and not self._sessions.buffer.hand_over(session.id, lasting.facts, called=True):
            return False
        self._remember(self._registry.put(lasting), self._gap)
        if session.tool_calls:
            remember(self._called, session.id, None, self._most)
        session.tool_calls = 0
        # Another replica may get the DELETE of an id of ours.
        until = self._registry.clock() + BRIEF if session.id.startswith(OURS) else inf
        remember(self._open, session.facts.visitor or "", (session, until), self._most)
        claim = Claim(lasting.source, _calls(session), principal=caller)
        self._conversations.absorb(session.id, lasting, claim, owned=not session.id.startswith(OURS))
        return True

    def _open_of(self, visitor: str) -> Session | None:
        """Return the visitor's joined transport session that is still open."""
        session, until = self._open.get(visitor, (None, 0.0))
        if session is None or session.conversation is None or self._registry.clock() >= until:
            return None
        return session if self._registry.get(session.id) is session else None

    def called(self, claim: Claim, lasting: Session, *, counts: bool = True) -> Session:
        """Return the session of a tool call whose transport session is part of `lasting`.

        On its second call, the transport session becomes a session again. Without `counts`, the call may be refused.
        """
        transport = self._registry.get(claim.key)
        is_part = transport is None or transport.conversation is lasting
        if not (claim.transport and is_part) or claim.key == lasting.id:
            return lasting
        if not lasting.facts.lasting:
            if not _was_joined(claim, lasting):
                return lasting
            source = "inferred" if lasting.caller else "inferred_weak"
            lasting.facts.limit, lasting.facts.source, lasting.facts.lasting = self._gap, source, True
        if claim.key not in self._called:
            if counts:
                remember(self._called, claim.key, None, self._most)
            return lasting
        now, visitor = self._registry.clock(), lasting.facts.visitor or ""
        if transport is None:  # Another replica served its handshake.
            its = {"source": claim.source, "previous_id": None, "opened": False, "lasting": False}
            facts = replace(lasting.facts, session_id=claim.key, limit=self._ttl, **its)
            transport = self._registry.put(Session(facts, now))
            transport.caller = lasting.caller
        transport.conversation, transport.last_activity, transport.facts.created_at = None, now, now
        transport.tool_calls = 2  # This call counts even if it fails.
        self._last.pop(visitor, None)
        self._later.run(partial(self._sessions.set_value, _calls(lasting), _NONE, self._gap))
        return transport

    def _remember(self, session: Session, seconds: float) -> None:
        until = self._registry.clock() + seconds
        remember(self._last, session.facts.visitor or "", (session, until), self._most)

    def _as_lasting(self, facts: SessionFacts, session: Session) -> SessionFacts:
        source = "inferred" if session.caller else "inferred_weak"
        shared = {"principal": session.facts.principal, "visitor": session.facts.visitor}
        return replace(facts, limit=self._gap, source=source, lasting=True, **shared)

    def closed_elsewhere(self, session_id: str, calls: int = 0) -> None:
        """Tell other replicas that the client has closed a session, which had `calls` tool calls here."""
        if self._is_on and session_id.startswith(OURS):
            value = _SEVERAL if calls > 1 else "1"
            self._later.run(partial(self._sessions.set_value, _closed(session_id), value, BRIEF))

    def closed(self, session: Session) -> bool:
        """Handle that the client has closed a transport session. Returns whether its session continues."""
        self.closed_elsewhere(session.id, session.tool_calls)
        whole = session.conversation or session
        if not self._is_on or session.facts.visitor is None:
            return False
        last, until = self._last.get(session.facts.visitor, (None, 0.0))
        if self._open.get(session.facts.visitor, (None,))[0] is session:
            del self._open[session.facts.visitor]
        if whole.facts.lasting:
            if last is whole:
                self._remember(whole, self._gap)
                self._later.run(partial(self._sessions.set_value, _calls(session), whole.id, self._gap))
            return whole is session
        if session.conversation is not None or session.tool_calls > 1:
            return False
        if not session.tool_calls:
            self._later.run(partial(self._sessions.set_value, _lists(session), session.id, BRIEF))
            return False
        now = self._registry.clock()
        if last is not None and last.facts.lasting and now < until and self._registry.get(last.id) is last:
            return False  # It overlapped the lasting session, which continues.
        self._later.run(partial(self._publish, session))
        if session.continues is None:
            self._remember(session, min(BRIEF / 2, self._gap))
            return False
        # The end of its predecessor was already reported.
        session.facts = replace(self._as_lasting(session.facts, session), previous_id=session.continues)
        self._remember(session, self._gap)
        self._sessions.submit(SessionDelta(session.facts, now))
        return True

    def ended(self, facts: SessionFacts) -> None:
        """Forget a session whose end was reported here: no session continues it."""
        last, _ = self._last.get(facts.visitor or "", (None, 0.0))
        if last is not None and last.id == facts.session_id:
            del self._last[facts.visitor or ""]

    async def _publish(self, session: Session) -> None:
        """Let the client's next transport session continue this one, which has one call."""
        if not session.id.startswith(OURS):
            await self._sessions.flush()  # Write it first, so that other replicas find it.
        await self._sessions.set_value(_calls(session), session.id, self._gap)
        # A transport session just before, which only listed the tools, is part of it.
        listing = await self._sessions.get(_lists(session))
        known = await self._sessions.describe(listing) if listing is not None else None
        if known is not None and known.facts is not None and known.may_go_on and not known.has_tool_calls:
            now = self._registry.clock()
            facts = replace(known.facts, lasting=True)
            self._sessions.submit(SessionDelta(facts, now, ended=(now, "replaced")))


def _was_joined(claim: Claim, session: Session) -> bool:
    """Return whether another replica has joined a transport session to this earlier one, but not written that yet."""
    earlier, then = minted_at(session.id), minted_at(claim.key)
    # A successor is later than the id that it continues.
    return -inf < earlier < then or (-inf < earlier == then and session.facts.previous_id != claim.key)


def _calls(session: Session) -> str:
    return f"calls:{session.facts.visitor}"


def _lists(session: Session) -> str:
    return f"lists:{session.facts.visitor}"


def _closed(session_id: str) -> str:
    return f"closed:{session_id}"
