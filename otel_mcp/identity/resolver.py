"""Find the session of each request, and add facts from the request to it."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from otel_mcp.hashing import KeyedHashes
from otel_mcp.identity.claims import Claims
from otel_mcp.identity.hosts import synthetic_type
from otel_mcp.identity.lookup import Lookup
from otel_mcp.identity.percall import PerCall
from otel_mcp.identity.principal import CREDENTIALS, caller, is_foreign, own_id
from otel_mcp.identity.reconcile import Conversations, Reconciler
from otel_mcp.identity.registry import Registry
from otel_mcp.model.call import MODERN, Call, Exchange, client_info
from otel_mcp.model.session import Claim, Session
from otel_mcp.sessions.service import Sessions
from otel_mcp.settings import Settings
from otel_mcp.wire import headers as wire_headers


class Resolver:
    """Finds the sessions of calls and exchanges."""

    def __init__(self, settings: Settings, sessions: Sessions, rejected: Callable[[str], None]) -> None:
        """Begin without sessions; `rejected` counts rejected ones by reason."""
        self._sessions = sessions
        self._hides_ids = settings.session_id == "hashed"
        self._own_probes = frozenset(map(str.lower, settings.probe_clients))
        self.hashes = KeyedHashes()
        if (key := sessions.shared_key).is_agreed:
            self.hashes.learn(key.secret)
        self.registry = Registry(settings, rejected, time.time)
        self.reconciler = Reconciler(settings, self.registry, sessions, self.hashes)
        self._claims = Claims(settings, self.hashes)
        self.conversations = self._claims.conversations
        self._lookup = Lookup(settings, self.registry, sessions, self.hashes, self.reconciler)
        self._conversations = Conversations(settings, self.registry, sessions, self.reconciler.later)
        self.per_call = PerCall(settings, self.registry, sessions, self._conversations, self.reconciler.later)

    async def prepare(self, exchange: Exchange | None = None) -> None:
        """Get the hash key; only the first request of the process waits for it."""
        if not self.hashes.ready:
            secret = await self._sessions.hash_key(exchange)
            if not self.hashes.ready:
                self.hashes.learn(secret, agreed=self._sessions.shared_key.is_agreed)

    def cached(self, call: Call) -> bool:
        """Give an accepted call the session that its claim has led to before.

        Returns:
            False = use `resolve`.
        """
        exchange = call.exchange
        if call.method == "initialize" or not self.hashes.ready:
            return False
        if call.meta and exchange.transport_id:  # `Claims` may need it.
            exchange.transport_session = self._transport(exchange)
        claim = call.claim = self._claims.of(call)
        if claim is None:
            return True  # No source identifies a session.
        session = claim.session
        if session is None or session.ended or session.superseded or session.conversation is not None:
            return False
        facts, held = session.facts, self.registry.sessions
        if (
            held.get(session.id) is not session
            or time.time() - session.last_activity >= facts.limit
            or (facts.principal is not None and facts.principal != claim.principal.user)
            or facts.lasting
        ):
            return False
        held.move_to_end(session.id)
        call.session = exchange.session = session
        call.tentative = False
        if exchange.protocol_version is None:
            exchange.protocol_version = facts.protocol_version
        return True

    def rejoin(self, call: Call) -> None:
        """Give a session to a call that was parsed only when its answer came, if this process knows it."""
        if not self.cached(call) and call.claim is not None:
            self._join(call, self._own(call, call.claim, self._lookup.peek(call.claim)))

    async def resolve(self, call: Call) -> None:
        """Give an accepted call its session; asks the store only about new ids and clients.

        A notification never begins a session. ``initialize`` without an id gets its
        session from the answer, see `opened`.
        """
        exchange = call.exchange
        if (
            call.rate_limited
            or (call.session is not None and not call.tentative)
            or (call.method == "initialize" and not exchange.transport_id)
            or self.cached(call)
            or (claim := await self._claim(call)) is None
        ):
            return
        if call.id is None:
            session = self._lookup.peek(claim)
        else:
            owned, proposed = exchange.owns_sessions, call.session
            session = await self._lookup.resolve(claim, owned=owned, proposed=proposed, asker=exchange)
            call.rate_limited = session is None
        if call.tentative:
            call.session = None  # A proposed session does not bypass the limit.
        call.tentative = False
        session = self._own(call, claim, session)
        self._join(call, session)
        transport_id = None if exchange.modern else exchange.transport_id
        if session is not None and claim.derived and call.id is not None and transport_id:
            owned = bool(exchange.owns_sessions)
            self._conversations.absorb(self.storable(transport_id), session, claim, owned=owned)

    async def propose(self, call: Call) -> None:
        """Find the session of a call that the server may still refuse; begins and writes nothing."""
        exchange = call.exchange
        if call.session is not None or call.id is None or call.method == "initialize":
            return
        if not self.cached(call) and (claim := await self._claim(call)) is not None:
            session = await self._lookup.propose(claim, owned=exchange.owns_sessions, asker=exchange)
            self._join(call, self._own(call, claim, session, counts=False))
        if call.session is not None:
            call.tentative, exchange.session = True, None

    def _own(self, call: Call, claim: Claim, session: Session | None, *, counts: bool = True) -> Session | None:
        """Return the session of a call, which may be its transport session, see `PerCall.called`."""
        if session is None or session.id == claim.key or call.method != "tools/call" or call.id is None:
            return session
        session = self.per_call.called(claim, session, counts=counts)
        if claim.session is not session:
            claim.session, claim.attributes = session, None
        return session

    async def _claim(self, call: Call) -> Claim | None:
        await self.prepare(call.exchange)
        call.exchange.transport_session = self._transport(call.exchange)
        call.claim = self._claims.of(call)
        return call.claim

    def known(self, exchange: Exchange) -> Session | None:
        """Return the session of an exchange's transport id, if this process knows it."""
        session, transport_id = exchange.session, exchange.transport_id
        if session is not None or not transport_id or (exchange.protocol_version or "") >= MODERN:
            return session
        if not self._hides_ids:
            session = self.registry.sessions.get(transport_id)
        if (
            session is None
            or session.ended
            or session.conversation is not None
            or session.facts.principal is not None
            or time.time() - session.last_activity >= session.facts.limit
        ):
            return self._slow_known(exchange)
        return session

    def _slow_known(self, exchange: Exchange) -> Session | None:
        session = self._transport(exchange)
        if session is None or session.conversation is None:
            return session
        return None if self._is_foreign(session.conversation, exchange) else session.conversation

    def _transport(self, exchange: Exchange) -> Session | None:
        """Return the caller's transport session, even if it is part of a conversation."""
        if not exchange.transport_id or exchange.modern or not self.hashes.ready:
            return None
        session = self.registry.get(self.storable(exchange.transport_id))
        if session is not None and self._is_foreign(session, exchange):
            return self.registry.get(self.named_by(exchange, exchange.transport_id))
        return session

    def _is_foreign(self, session: Session, exchange: Exchange) -> bool:
        return session.facts.principal is not None and is_foreign(session.facts, caller(exchange, self.hashes))

    def is_begun(self, transport_id: str) -> bool:
        """Return whether a transport id is ours, or leads to a session that this process knows."""
        if not self.hashes.ready:
            return False
        return self.hashes.is_ours(transport_id) or self.registry.get(self.storable(transport_id)) is not None

    def storable(self, session_id: str) -> str:
        """Return the id to store for a transport session."""
        return self.hashes.storable(session_id, hashed=self._hides_ids)

    def named_by(self, exchange: Exchange, session_id: str) -> str:
        """Return the session id for a transport id, or for the caller's separate session if it is another user's."""
        who, key = caller(exchange, self.hashes), self.storable(session_id)
        if self.hashes.whose(session_id, who.user) == "another":
            return own_id(self.hashes, key, who.digest)
        return self._lookup.owned_id(key, who)

    def conversation_of(self, exchange: Exchange) -> str | None:
        """Return the session id of the conversation that a refused request names."""
        claims = map(self._claims.of, exchange.calls)
        return next((claim.key for claim in claims if claim is not None and claim.source == "conversation"), None)

    def user(self, exchange: Exchange) -> str | None:
        """Return the user of an exchange, to whom its session may be bound."""
        user = exchange.user if exchange.scope is None else exchange.scope.get("user")
        if not self.hashes.ready or (user is None and exchange.headers.keys().isdisjoint(CREDENTIALS)):
            return None
        return caller(exchange, self.hashes).user

    async def opens(self, call: Call, session_id: str) -> None:
        """Set the id that the answer to an ``initialize`` gives out, for `opened`."""
        if call.session is None:
            await self.prepare(call.exchange)
            call.pending_session_id = session_id

    def opened(self, call: Call) -> None:
        """Begin the session of an ``initialize`` that succeeded and was given an id."""
        session_id, call.pending_session_id = call.pending_session_id, None
        if session_id is not None and call.session is None:
            who = caller(call.exchange, self.hashes)
            session = self._lookup.open(self.storable(session_id), who)
            self._join(call, session)
            if session is not None:
                if self._sessions.is_shared:
                    # The handshake is written later; until then, other processes need its user and client.
                    self.reconciler.later.run(partial(self._sessions.bind, session.facts))
                self.per_call.opened(session, who)

    async def succeeded(self, call: Call) -> None:
        """Begin the session of an ``initialize`` that succeeded, or join the one that the client named."""
        if call.pending_session_id is not None:
            self.opened(call)
        else:
            await self.resolve(call)

    def _join(self, call: Call, session: Session | None) -> None:
        """Set the session of a call, and add the facts that the call shows."""
        if session is None:
            return
        exchange, facts, is_handshake = call.exchange, session.facts, call.method == "initialize"
        call.session = exchange.session = session
        if call.claim is not None:
            call.claim.attributes = None
        if is_handshake:
            self._sessions.buffer.hold(session.id)
        # The transport session has the facts of `initialize`, even if the call belongs to another session.
        transport = exchange.transport_session
        if transport is not None and transport is not session:
            facts.client_name = facts.client_name or transport.facts.client_name
            facts.client_version = facts.client_version or transport.facts.client_version
            facts.protocol_version = facts.protocol_version or transport.facts.protocol_version
        if exchange.protocol_version is None:
            exchange.protocol_version = facts.protocol_version
        if call.meta or is_handshake:
            name, version = client_info(call)
            if name is not None:
                facts.client_name, facts.client_version = name, version
        if is_handshake and facts.visitor is None:
            facts.visitor = self._claims.visitor(call, caller(exchange, self.hashes))
        if facts.user_agent is None:
            facts.user_agent = wire_headers.text(exchange.headers, b"user-agent")
        if facts.synthetic_type is None:
            facts.synthetic_type = synthetic_type(facts.client_name, facts.user_agent, self._own_probes)
        if facts.protocol_version is None and not is_handshake:
            facts.protocol_version = exchange.protocol_version
