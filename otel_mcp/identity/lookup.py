"""Find or begin the session of a claim.

In steady state this is a dictionary lookup. For an id or client that is new to this
process, the shared store is asked, for 50 ms at most in all, so that replicas agree.
While the store is degraded, this process decides alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, auto

from otel_mcp.hashing import KeyedHashes, new_id
from otel_mcp.identity.principal import is_foreign, own_id
from otel_mcp.identity.reconcile import Directory, Reconciler
from otel_mcp.identity.registry import Registry
from otel_mcp.model.delta import Known
from otel_mcp.model.session import Claim, Principal, Session
from otel_mcp.settings import Settings
from otel_mcp.types import Asker


class Decision(Enum):
    """The result of a claim to an id that is new to this process."""

    JOIN = auto()
    """The store has the session, and it is live."""
    BEGIN = auto()
    """A session begins with the id itself."""
    CONTINUE = auto()
    """A successor continues the id, the same one on all replicas."""
    SEPARATE = auto()
    """The id is another user's, so the caller gets a separate session."""


def decide(claim: Claim, known: Known | None, owned: bool | None, now: float) -> Decision:
    """Decide what a claim to an id leads to, without I/O.

    Args:
        claim: of the request; not an inferred one.
        known: what the store knows about the id; ``None`` = the store did not answer.
        owned: whether the server gives out transport ids; ``None`` = unknown.
        now: Unix seconds.
    """
    stands = claim.derived or (bool(owned) and claim.transport)
    if known is not None:
        if known.principal not in (None, claim.principal.user):
            return Decision.SEPARATE
        if known.successor is not None and not stands:
            return Decision.CONTINUE  # Also if a session has begun with the id itself.
        if known.live is not None:
            return Decision.JOIN
    if stands:
        return Decision.BEGIN
    if claim.forged:
        return Decision.CONTINUE
    if known is None:
        return Decision.BEGIN  # Without the store, the id itself is the best choice.
    if known.ended:
        return Decision.CONTINUE
    # Either another replica has just given out the id, or it is the server's own.
    is_fresh = not known.exists and now < claim.fresh_until
    return Decision.BEGIN if is_fresh or (owned is None and claim.transport) else Decision.CONTINUE


@dataclass(slots=True)
class _Plan:
    """The session of a claim, before it is added to the registry."""

    decision: Decision
    session: Session
    """Not in the registry yet."""
    exists: bool = False
    """Another process has begun and counted it."""
    known: Known | None = None
    """What the store knows about the claimed id."""
    must_agree: bool = False
    """The replicas still have to agree on its id; this one is a proposal."""
    is_blind: bool = False
    """It begins before the store answered about its id."""


class Lookup:
    """Finds and begins the sessions of claims."""

    def __init__(
        self, settings: Settings, registry: Registry, directory: Directory, hashes: KeyedHashes, reconciler: Reconciler
    ) -> None:
        self._registry = registry
        self._sessions = registry.sessions
        self._directory = directory
        self._hashes = hashes
        self._reconciler = reconciler
        self._gap = min(settings.session_idle_gap, settings.session_ttl)

    def peek(self, claim: Claim) -> Session | None:
        """Return the session of a claim if this process knows it; neither asks the store nor begins a session."""
        registry = self._registry
        if claim.inferred:
            session = registry.followed(claim.key)
            # Without an agreement, the session was joined by its id, and replicas may not have agreed on it.
            return session if session is not None and session.agreement is not None else None
        session = registry.get(claim.key) or registry.followed(claim.key)
        if session is None or is_foreign(session.facts, claim.principal):
            return None
        whole = session.conversation or session
        return None if is_foreign(whole.facts, claim.principal) else whole

    async def propose(self, claim: Claim, *, owned: bool | None, asker: Asker | None = None) -> Session | None:
        """Return the session that a message gets if the server accepts it; begins and writes nothing."""
        if (session := self.peek(claim)) is not None:
            return session
        if claim.inferred:
            agreed = await self._directory.get(_agreement(claim), asker)
            plan = self._planned(claim, Decision.BEGIN, agreed or new_id(), exists=agreed is not None)
            plan.session.agreement = _agreement(claim) if agreed is not None else None
        else:
            plan = await self._plan(claim, owned, None, asker)
            plan.session.known = plan.known
        return plan.session if plan.exists or self._registry.may_open() else None

    async def resolve(
        self, claim: Claim, *, owned: bool | None, proposed: Session | None = None, asker: Asker | None = None
    ) -> Session | None:
        """Return the session of an accepted message; begins one if needed, within the limit.

        `proposed` is what `propose` returned for the same message.
        """
        session = self.peek(claim)
        if session is None:
            if claim.inferred:
                plan = await self._infer(claim, proposed, asker)
            else:
                plan = await self._agree(claim, owned, proposed, asker)
            # Another request may have found the session meanwhile.
            session = self.peek(claim) or self._begin(claim, plan)
        if session is not None:
            if claim.conversation_id and session.facts.conversation_id is None:
                session.facts.conversation_id = claim.conversation_id
            if session.id in self._sessions:
                self._sessions.move_to_end(session.id)
        if claim.session is not session:
            claim.session, claim.attributes = session, None
        return session

    def open(self, session_id: str, principal: Principal) -> Session | None:
        """Begin a session with an id that an answer has just given out, within the limit.

        It is bound to its user at once, so that another user who learns the id cannot take it.
        """
        if (mine := self.owned_id(session_id, principal)) != session_id:
            self._registry.rejected("principal")
        session = self._registry.get(mine)
        if session is None and (session := self._registry.begin(self._registry.draft(mine, "header"))) is not None:
            session.bind(principal)
            session.facts.opened = True
        return session

    def owned_id(self, session_id: str, principal: Principal) -> str:
        """Return `session_id`, or the id of the caller's separate session if it is another user's."""
        held = self._registry.get(session_id)
        if held is not None and is_foreign(held.facts, principal):
            return own_id(self._hashes, session_id, principal.digest)
        return session_id

    async def _plan(self, claim: Claim, owned: bool | None, earlier: Known | None, asker: Asker | None) -> _Plan:
        """Ask the store; `earlier` is its last answer to this request, used if there is no time to ask again."""
        if self._registry.get(claim.key) is not None:  # Another user's, or `peek` would have found it.
            return self._separate(claim, claim.key)
        known = await self._directory.describe(claim.key, asker) or earlier
        decision = decide(claim, known, owned, self._registry.clock())
        if decision is Decision.SEPARATE:
            plan = self._separate(claim, claim.key)
        elif decision is not Decision.CONTINUE:
            plan = self._planned(claim, decision, claim.key, known)
            plan.is_blind = known is None and not claim.derived and not owned
        elif known is not None and known.successor is not None:
            plan = await self._continued(claim, known.successor, known, asker)
        else:
            # An id that may be given to the client, if the protocol can do that.
            candidate = self._hashes.mint(claim.principal.user) if claim.transport else new_id()
            plan = self._planned(claim, decision, candidate, known)
            plan.must_agree = True
        plan.known = known
        return plan

    def _planned(
        self, claim: Claim, decision: Decision, session_id: str, known: Known | None = None, *, exists: bool = False
    ) -> _Plan:
        """Plan the session with this id; `known` is what the store knows about it or about the id that it continues."""
        registry = self._registry
        if decision is Decision.JOIN and known is not None and known.facts is not None:
            facts = replace(known.facts, source=known.facts.source or claim.source)
            session = Session(facts, registry.clock(), tool_calls=int(known.has_tool_calls))
            session.caller = claim.principal.digest
            return _Plan(decision, session, exists=True)
        previous = claim.key if decision is Decision.CONTINUE else None
        limit = self._gap if claim.inferred else None
        session = registry.draft(session_id, claim.source, limit=limit, previous=previous)
        session.bind(claim.principal)
        session.facts.visitor = claim.key if claim.inferred else None
        is_opened = decision is Decision.BEGIN and known is not None and known.opened
        if claim.whose == "nobody" or (is_opened and known is not None and known.principal is None):
            session.facts.principal = None
        session.facts = replace(session.facts, **known.client) if known is not None else session.facts
        return _Plan(decision, session, exists)

    def _separate(self, claim: Claim, session_id: str) -> _Plan:
        return self._planned(claim, Decision.SEPARATE, own_id(self._hashes, session_id, claim.principal.digest))

    async def _continued(self, claim: Claim, successor: str, former: Known | None, asker: Asker | None) -> _Plan:
        """Plan the successor that another process chose for an id; `former` is what the store knows about the id."""
        self._registry.follow(claim.key, successor)
        known = await self._directory.describe(successor, asker)
        if known is not None and known.ended and known.may_go_on and known.facts is not None:
            # A lasting session continues after a close, see `percall`.
            known = replace(known, ended=False, facts=replace(known.facts, lasting=True, limit=self._gap))
        if known is None or known.live is None:
            return self._planned(claim, Decision.CONTINUE, successor, former, exists=known is None or not known.ended)
        if is_foreign(known.live, claim.principal):
            return self._separate(claim, successor)
        return self._planned(claim, Decision.JOIN, successor, known)

    async def _agree(
        self, claim: Claim, owned: bool | None, proposed: Session | None, asker: Asker | None
    ) -> _Plan | None:
        """Plan the session that all replicas agree on; ``None`` = over the limit on new sessions."""
        registry = self._registry
        plan = await self._plan(claim, owned, proposed.known if proposed is not None else None, asker)
        if self.peek(claim) is None and registry.get(claim.key) is not None:
            return self._separate(claim, claim.key)
        if not plan.must_agree or self.peek(claim) is not None:
            return plan
        if not registry.may_open():
            return None
        candidate, user = proposed.id if proposed is not None else plan.session.id, claim.principal.user
        with registry.room():
            answer = await self._directory.get_or_set_successor(claim.key, candidate, user, asker)
        successor = registry.agreed(claim.key, answer, candidate)
        if answer != candidate and self.peek(claim) is None:
            return await self._continued(claim, successor, plan.known, asker)
        return self._planned(claim, Decision.CONTINUE, successor, plan.known)

    async def _infer(self, claim: Claim, proposed: Session | None, asker: Asker | None) -> _Plan | None:
        """Plan the session of a client that names none: the same on all replicas, until the idle gap."""
        registry, agreement = self._registry, _agreement(claim)
        if registry.may_open():
            candidate = proposed.id if proposed is not None else new_id()
            with registry.room():
                answer = await self._directory.get_or_set(agreement, candidate, self._gap, asker)
            exists = answer != candidate or (proposed is not None and proposed.agreement is not None)
        else:  # Joining another replica's session begins none.
            candidate, exists, answer = "", True, await self._directory.get(agreement, asker)
        if answer is None:
            return None
        return self._planned(claim, Decision.BEGIN, registry.agreed(claim.key, answer, candidate), exists=exists)

    def _begin(self, claim: Claim, plan: _Plan | None) -> Session | None:
        """Add the session of a plan to the registry, unless it is there."""
        registry = self._registry
        if plan is None:
            registry.rejected("limit")
            return None
        held = registry.get(plan.session.id)
        if held is not None and is_foreign(held.facts, claim.principal):  # Another user took it meanwhile.
            plan = self._separate(claim, plan.session.id)
            held = registry.get(plan.session.id)
        is_new = held is None and plan.decision in (Decision.BEGIN, Decision.CONTINUE)
        if plan.decision is Decision.SEPARATE or (is_new and claim.whose == "another"):
            registry.rejected("principal")
        session = held or (registry.put(plan.session) if plan.exists else registry.begin(plan.session))
        if session is not None and claim.inferred:
            session.agreement = _agreement(claim)
        elif session is not None and is_new:
            self._reconciler.look_later(session, blind=plan.is_blind)
        return session


def _agreement(claim: Claim) -> str:
    return f"client:{claim.key}"
