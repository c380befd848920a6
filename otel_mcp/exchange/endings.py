"""The ends of sessions that the wire tells of: a DELETE, a 404, a stream that was the session."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from time import time
from typing import Final

from otel_mcp import loops
from otel_mcp.bounded import remember
from otel_mcp.exchange.inflight import Pending
from otel_mcp.identity.resolver import Resolver
from otel_mcp.model.call import Exchange
from otel_mcp.model.delta import SessionDelta, SessionFacts
from otel_mcp.model.state import EndReason
from otel_mcp.settings import Settings

MAX_KEPT: Final = 10_000
_KEEPS_NONE: Final = frozenset({404, 405})
_DELAY: Final = 2.0
"""Flush intervals by which the end of a session waits that several replicas may serve."""
_HANDSHAKE: Final = 4.0
"""The same, but from its beginning: another replica may have kept the handshake back, for two, before it wrote it."""


class Endings:
    """Tells the store of each end once, after the calls that came before it."""

    def __init__(
        self,
        settings: Settings,
        resolver: Resolver,
        pending: Pending,
        drain: Callable[[], None],
        submit: Callable[[SessionDelta], None],
    ) -> None:
        self._interval = settings.flush_interval
        self._ttl = settings.session_ttl
        self._resolver = resolver
        self._pending = pending
        self._drain = drain
        self._submit = submit
        self._late: dict[int, tuple[SessionDelta, asyncio.TimerHandle | loops.Timer]] = {}
        self._gone: OrderedDict[tuple[str, str | None], None] = OrderedDict()
        """Ids of sessions that have been closed, and by whom."""

    def closed(self, exchange: Exchange, transport_id: str) -> None:
        """A request is over: what it says of its transport session."""
        status = exchange.status or 500
        if exchange.sse_endpoint:
            # The stream was the session: there is no way back to it.
            self._end(exchange, transport_id, "client_delete" if exchange.disconnected else "server_closed")
        elif exchange.http_method == "DELETE" and (
            200 <= status < 300 or self._is_goodbye(exchange, transport_id, status)
        ):
            # What a server refuses changes nothing else.
            self._end(exchange, transport_id, "client_delete")
        if status == 404 and exchange.owns_sessions:
            self._end(exchange, transport_id, "server_closed")

    def _is_goodbye(self, exchange: Exchange, transport_id: str, status: int) -> bool:
        """A client closes a session that only we know of: the server's refusal says that it keeps none."""
        keys = self._resolver.keys
        return exchange.owns_sessions is False and status in _KEEPS_NONE and keys.ready and keys.is_ours(transport_id)

    def _end(self, exchange: Exchange, transport_id: str, reason: EndReason) -> None:
        """Tell the store that a session is over. It counts each end once, however many say so."""
        if not self._resolver.keys.ready:
            return
        # Of another user it is another session, and that one alone ends.
        session_id, user = self._resolver.named_by(exchange, transport_id), self._resolver.user(exchange)
        session = self._resolver.tracker.get(session_id)
        if session is None and (reason == "server_closed" or (session_id, user) in self._gone):
            # A server of several processes, one of which keeps the session, answers 404 in the others.
            return
        remember(self._gone, (session_id, user), None, MAX_KEPT)
        at = time() if reason != "client_delete" or exchange.stream is not None else exchange.started_ns / 1e9
        if session is None:
            # It is for the store to say whether it is this user's.
            facts = SessionFacts(session_id, at, self._ttl, principal=user)
        else:
            facts = session.facts
            self._resolver.tracker.forget(session)
        if session_id == self._resolver.storable(transport_id) and (session is not None or exchange.sse_endpoint):
            self._pending.session_closed(transport_id)
        delta = SessionDelta(facts, at, ended=(at, reason))
        if session is None or not exchange.owns_sessions:
            # Any replica may have served it, and has a flush interval to write its calls: the end comes after them.
            begun = min(facts.created_at, at)
            delay = max(_DELAY * self._interval, begun + _HANDSHAKE * self._interval - at)
            loop = loops.home()
            if loop is None:
                self._submit(delta)
                return
            timer = loops.call_later(loop, delay, partial(self._submit_late, id(delta)))
            self._late[id(delta)] = (delta, timer)
            if len(self._late) > MAX_KEPT:
                self._submit_late(next(iter(self._late)))
            return
        self._drain()  # What came before the end is counted before it.
        self._submit(delta)

    def _submit_late(self, key: int) -> None:
        if (late := self._late.pop(key, None)) is not None:
            late[1].cancel()
            self._submit(late[0])

    def close(self) -> None:
        """Wait for nothing any longer: the process is about to end."""
        for key in list(self._late):
            self._submit_late(key)
