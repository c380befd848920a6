"""From a request to its session: sources, tracker, and the facts the session learns on the way."""

from __future__ import annotations

from otel_mcp.hashing import KeyedHashes
from otel_mcp.identity.claims import Claims, Rules
from otel_mcp.identity.conversations import Conversations
from otel_mcp.identity.lookup import Tracker
from otel_mcp.identity.principal import CREDENTIALS, caller, id_for, is_foreign, user_of
from otel_mcp.model.call import Call, Exchange, client_info
from otel_mcp.model.delta import SessionFacts
from otel_mcp.model.session import Principal, Session
from otel_mcp.sessions.service import Sessions
from otel_mcp.wire import headers as wire_headers


class Resolver:
    """Decides the session of calls and exchanges."""

    def __init__(
        self, rules: Rules, keys: KeyedHashes, tracker: Tracker, conversations: Conversations, sessions: Sessions
    ) -> None:
        self._hashed = rules.settings.session_id == "hashed"
        self._candidates = Claims(rules, keys)
        self.keys = keys
        self.tracker = tracker
        self._conversations = conversations
        self._sessions = sessions

    def again(self, call: Call) -> bool:
        """Give a call that the server has taken its session, if that was found by the same claim before.

        Returns:
            False where it takes `resolve`.
        """
        exchange = call.exchange
        if call.method == "initialize" or not self.keys.ready:
            return False
        if call.meta and exchange.transport_id:  # Where it may be asked for.
            exchange.transport_session = self._transport(exchange)
        claim = self._candidates.of(exchange, call)
        if claim is None:
            return True  # Nothing can be known of it.
        call.claim, call.conversation_id = claim, claim.conversation_id
        if (known := self.tracker.again(claim)) is None:
            return False
        call.session = exchange.session = known
        call.tentative = False
        if exchange.protocol_version is None:
            exchange.protocol_version = known.facts.protocol_version
        return True

    def rejoin(self, call: Call) -> None:
        """Give a call its session that was read only when its answer came, where that is known without asking."""
        if self.again(call) or call.claim is None:
            return
        session = self.tracker.peek(call.claim)
        if session is not None:
            self._join(call, session)

    async def resolve(self, call: Call) -> None:
        """Give a call that the server has taken its session; asks the store only at first sight.

        A notification joins a session and never opens one. ``initialize`` has no
        session until its answer brings one: see `opened`.
        """
        exchange = call.exchange
        if (
            call.rate_limited
            or (call.session is not None and not call.tentative)
            or (call.method == "initialize" and not exchange.transport_id)
        ):
            return
        if not self.keys.ready:
            await self.keys.prepare(exchange)
        if self.again(call):
            return
        exchange.transport_session = self._transport(exchange)
        claim = self._candidates.of(exchange, call)
        if claim is None:
            return
        call.claim, call.conversation_id = claim, claim.conversation_id
        if call.id is None:
            session = self.tracker.peek(claim)
        else:
            session = await self.tracker.resolve(
                claim, owned=exchange.owns_sessions, proposed=call.session, asker=exchange
            )
            call.rate_limited = session is None
        if call.tentative and session is None:
            call.session = None  # Over the limit: what was proposed may not come in by the back door.
        call.tentative = False
        if session is not None:
            self._join(call, session)
            if claim.derived and call.id is not None and exchange.transport_id and not exchange.modern:
                transport_id, owned = self.storable(exchange.transport_id), bool(exchange.owns_sessions)
                self._conversations.carried(transport_id, session, claim.principal, owned=owned)

    async def propose(self, call: Call) -> None:
        """Tell the session of a call that the server may yet refuse: asks, writes nothing, opens nothing."""
        exchange = call.exchange
        if call.session is not None or call.id is None or call.method == "initialize":
            return
        if not self.keys.ready:
            await self.keys.prepare(exchange)
        exchange.transport_session = self._transport(exchange)
        claim = self._candidates.of(exchange, call)
        if claim is None:
            return
        call.claim, call.conversation_id = claim, claim.conversation_id
        session = await self.tracker.propose(claim, owned=exchange.owns_sessions, asker=exchange)
        if session is not None:
            call.tentative = True
            self._join(call, session)
            exchange.session = None

    def known(self, exchange: Exchange) -> Session | None:
        """The session that an exchange names by its transport id, if this process knows it."""
        if exchange.session is not None or (session := self._transport(exchange)) is None:
            return exchange.session
        whole = session.conversation or session
        return None if whole is not session and self._is_foreign(whole, exchange) else whole

    def _transport(self, exchange: Exchange) -> Session | None:
        """The caller's session of the transport itself, also where a conversation has taken it in."""
        if not exchange.transport_id or exchange.modern or not self.keys.ready:
            return None
        session = self.tracker.table.get(self.storable(exchange.transport_id))
        if session is not None and self._is_foreign(session, exchange):
            return self.tracker.table.get(self.named_by(exchange, exchange.transport_id))
        return session

    def _is_foreign(self, session: Session, exchange: Exchange) -> bool:
        return session.facts.principal is not None and is_foreign(session.facts, self._caller(exchange))

    def is_begun(self, transport_id: str) -> bool:
        """Whether a transport id is known to be one of a session, whosever: this process has met it, or gave it out."""
        if not self.keys.ready:
            return False
        return self.keys.is_ours(transport_id) or self.tracker.table.get(self.storable(transport_id)) is not None

    def storable(self, session_id: str) -> str:
        return self.keys.storable(session_id, hashed=self._hashed)

    def named_by(self, exchange: Exchange, session_id: str) -> str:
        """The session that the caller of this exchange means by a transport id: of another user it is another."""
        caller, key = self._caller(exchange), self.storable(session_id)
        if self.keys.whose(session_id, user_of(caller)) == "another":
            return id_for(self.keys, key, caller)
        return self.tracker.owned_id(key, caller)

    def user(self, exchange: Exchange) -> str | None:
        """The user that speaks on this exchange, as what sessions are bound by."""
        if not self.keys.ready or (exchange.see_user() is None and exchange.headers.keys().isdisjoint(CREDENTIALS)):
            return None
        return user_of(self._caller(exchange))

    def are_strangers(self, one: Exchange, other: Exchange) -> bool:
        """Whether two exchanges are known to be of different users."""
        if not self.keys.ready:
            return False
        first, second = self._caller(one), self._caller(other)
        if not (first is not None and first.binds) and not (second is not None and second.binds):
            return False
        return first is None or second is None or first.digest != second.digest

    def _caller(self, exchange: Exchange) -> Principal | None:
        return caller(exchange, self.keys)

    async def opens(self, call: Call, session_id: str) -> None:
        """The protocol gives out `session_id` with the answer to this ``initialize``: see `opened`."""
        if call.session is None:
            await self.keys.prepare(call.exchange)
            call.pending_session_id = session_id

    def opened(self, call: Call) -> None:
        """An ``initialize`` has succeeded: the session begins whose id it was given."""
        session_id, call.pending_session_id = call.pending_session_id, None
        if session_id is None or call.session is not None:
            return
        session = self.tracker.open(self.storable(session_id), "header", self._caller(call.exchange))
        if session is not None:
            self._join(call, session)

    async def succeeded(self, call: Call) -> None:
        """An ``initialize`` has succeeded, under a new id or one that the client has named."""
        if call.pending_session_id is not None:
            self.opened(call)
        else:
            await self.resolve(call)

    def _inherit(self, call: Call, facts: SessionFacts) -> None:
        """What ``initialize`` said is remembered by the transport session, whichever session the call belongs to."""
        transport = call.exchange.transport_session
        if transport is not None and transport.facts is not facts:
            facts.client_name = facts.client_name or transport.facts.client_name
            facts.client_version = facts.client_version or transport.facts.client_version
            facts.protocol_version = facts.protocol_version or transport.facts.protocol_version
        if call.exchange.protocol_version is None:
            call.exchange.protocol_version = facts.protocol_version

    def _join(self, call: Call, session: Session) -> None:
        call.session = session
        call.exchange.session = session
        if call.claim is not None:
            call.claim.attributes = None
        if call.method == "initialize":
            self._sessions.buffer.hold(session.id)
        facts = session.facts
        self._inherit(call, facts)
        if call.meta or call.method == "initialize":
            name, version = client_info(call)
            if name is not None:
                facts.client_name, facts.client_version = name, version
        if facts.user_agent is None:
            facts.user_agent = wire_headers.text(call.exchange.headers, b"user-agent")
        if facts.protocol_version is None and call.method != "initialize":
            facts.protocol_version = call.exchange.protocol_version
