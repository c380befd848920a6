"""Decide whether a transport id is the server's or ours, and when its session has ended or was refused."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from functools import partial
from time import time
from typing import Final

from otel_mcp import loops
from otel_mcp.bounded import Paths, remember
from otel_mcp.exchange.inflight import InFlight
from otel_mcp.hashing import OURS
from otel_mcp.identity.resolver import Resolver
from otel_mcp.model.call import MODERN, Exchange
from otel_mcp.model.delta import SessionDelta, SessionFacts
from otel_mcp.model.session import Refusal
from otel_mcp.model.state import EndReason
from otel_mcp.sessions.service import Sessions
from otel_mcp.settings import Settings
from otel_mcp.telemetry.recorder import Recorder
from otel_mcp.types import Scope
from otel_mcp.wire import headers as wire_headers

MAX_KEPT: Final = 10_000
_KEEPS_NONE: Final = frozenset({404, 405})
_UNKNOWN: Final = frozenset({400, 404})
"""Answers to an unknown id: 404 by the protocol; 400 by the SDK up to 1.12 and some hand-written servers."""
_DELAY: Final = 2.0
"""Flush intervals: delay of an end if several replicas may serve the session."""
_HANDSHAKE: Final = 4.0
"""Flush intervals from its start to its end, at least: another replica may keep the handshake back for two."""


class SessionIds:
    """Knows for each path whether the server gives out session ids; submits each end once, after earlier calls."""

    def __init__(
        self, settings: Settings, resolver: Resolver, recorder: Recorder, inflight: InFlight, sessions: Sessions
    ) -> None:
        self._interval = settings.flush_interval
        self._ttl = settings.session_ttl
        self._hashes = resolver.hashes
        self._resolver = resolver
        self._recorder = recorder
        self._inflight = inflight
        self._sessions = sessions
        self.owners: Paths[bool] = Paths()
        self._late: dict[int, tuple[SessionDelta, asyncio.TimerHandle | loops.Timer]] = {}
        self._gone: OrderedDict[tuple[str, str | None], None] = OrderedDict()
        """Session ids that were closed, each with the user who closed it."""

    def learn(self, exchange: Exchange, *, owns: bool, named: bool = False) -> None:
        """Learn whether the server gives out ids.

        Args:
            exchange: the answer, or the SDK that serves it, has shown this.
            owns: whether the server gives out ids.
            named: the client sent an id; this is weaker evidence, since many servers repeat what they are sent.
        """
        if not named or self.owners.use(exchange.path) is None:
            self.owners.learn(exchange.path, owns)

    async def claim(self, exchange: Exchange, scope: Scope) -> Scope:
        """Find out whether the server or we gave out the id of a request. Returns the scope for the app."""
        if (wire_id := exchange.wire_session_id) and wire_id.startswith(OURS):
            await self._resolver.prepare(exchange)
            hashes = self._hashes
            # The second case: another replica made the id with another key.
            if hashes.is_ours(wire_id) or (hashes.is_shaped(wire_id) and not self.owners.use(exchange.path)):
                exchange.owns_sessions = False
                # The app must not see an id that it did not give out.
                exchange.scope = scope = wire_headers.without(scope, wire_headers.SESSION_ID)
        elif (exchange.protocol_version or "") < MODERN:  # Later revisions have no transport sessions.
            exchange.owns_sessions = self.owners.get(exchange.path)
            if exchange.owns_sessions is not None:
                self.owners.move_to_end(exchange.path)
            if not self._hashes.ready:
                await self._resolver.prepare(exchange)
        return scope

    def ended(self, exchange: Exchange, transport_id: str) -> None:
        """End the session if a finished request shows that: by DELETE, by 404, or because it was its event stream."""
        if exchange.stream is not None:
            self._inflight.stream_closed(exchange.stream)
        if exchange.modern:
            return
        status = exchange.status or 500
        if exchange.sse_endpoint:
            # A client cannot resume it.
            self._end(exchange, transport_id, "client_delete" if exchange.disconnected else "server_closed")
        elif exchange.http_method == "DELETE" and (
            200 <= status < 300
            # Of a server that keeps no sessions: only we know this one.
            or (exchange.owns_sessions is False and status in _KEEPS_NONE and self._hashes.is_ours(transport_id))
        ):
            # A DELETE that the server refuses ends nothing.
            self._end(exchange, transport_id, "client_delete")
        if status in _UNKNOWN and exchange.http_method != "DELETE":
            self._refused(exchange, transport_id, status)
        if status == 404 and exchange.owns_sessions:
            self._end(exchange, transport_id, "server_closed")

    def _refused(self, exchange: Exchange, transport_id: str, status: int) -> None:
        """Submit a refusal: the store decides whether the session was cut."""
        hashes, resolver = self._hashes, self._resolver
        if not hashes.ready or exchange.owns_sessions is False or hashes.is_ours(transport_id):
            return  # This server keeps no sessions: it refused something else.
        session = resolver.registry.sessions.get(resolver.storable(transport_id))
        served = session is not None
        user = resolver.user(exchange)
        if session is not None and session.facts.lasting:
            return  # The client closed this transport session earlier.
        if (session is None or session.ended) and (resolver.named_by(exchange, transport_id), user) in self._gone:
            return
        if served and (status == 400 or not exchange.owns_sessions):
            return  # This process serves the session, or its path has none.
        if status == 400 and exchange.parsed and not exchange.calls:
            return  # Not a message. (Some servers refuse an id before they read the body.)
        conversation = resolver.conversation_of(exchange)
        named = conversation or resolver.named_by(exchange, transport_id)
        at = exchange.started_ns / 1e9
        self._sessions.refused(Refusal(named, at, user, None if conversation and not served else served))

    def _end(self, exchange: Exchange, transport_id: str, reason: EndReason) -> None:
        """Submit the end of a session. The store counts each end once, even if several processes submit it."""
        if not self._hashes.ready:
            return
        # Each user of an id has a session of its own, and only that one ends.
        session_id, user = self._resolver.named_by(exchange, transport_id), self._resolver.user(exchange)
        session = self._resolver.registry.get(session_id)
        if session is None and (reason == "server_closed" or (session_id, user) in self._gone):
            # Another process of this server may keep the session: the others answer 404.
            return
        if session is not None and session.facts.lasting and reason == "server_closed":
            return  # The client closed this transport session earlier.
        remember(self._gone, (session_id, user), None, MAX_KEPT)
        at = time() if reason != "client_delete" or exchange.stream is not None else exchange.started_ns / 1e9
        if session_id == self._resolver.storable(transport_id) and (session is not None or exchange.sse_endpoint):
            self._inflight.session_closed(transport_id)
        self._recorder.drain()  # Count the earlier calls first.
        if session is None:
            # The store checks whether the session is this user's.
            facts = SessionFacts(session_id, at, self._ttl, principal=user)
            self._resolver.per_call.closed_elsewhere(session_id)
        elif reason == "client_delete" and self._resolver.per_call.closed(session):
            return
        else:
            facts = session.facts
            session.ended = True
        delta = SessionDelta(facts, at, ended=(at, reason))
        if session is None or not exchange.owns_sessions:
            # Any replica may have served it: wait until all have flushed their calls.
            begun = min(facts.created_at, at)
            self._submit_later(delta, max(_DELAY * self._interval, begun + _HANDSHAKE * self._interval - at))
        else:
            self._sessions.submit(delta)

    def _submit_later(self, delta: SessionDelta, delay: float) -> None:
        if (loop := loops.home()) is None:
            self._sessions.submit(delta)
            return
        self._late[id(delta)] = delta, loops.call_later(loop, delay, partial(self._submit_late, id(delta)))
        if len(self._late) > MAX_KEPT:
            self._submit_late(next(iter(self._late)))

    def _submit_late(self, key: int) -> None:
        if (late := self._late.pop(key, None)) is not None:
            late[1].cancel()
            self._sessions.submit(late[0])

    def close(self) -> None:
        """Submit all delayed ends: the process is about to end."""
        for key in list(self._late):
            self._submit_late(key)
