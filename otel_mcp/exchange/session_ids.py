"""Whose the ids of transport sessions are: the server's own, or ours."""

from __future__ import annotations

from otel_mcp.bounded import Paths
from otel_mcp.hashing import OURS, KeyedHashes
from otel_mcp.model.call import Exchange
from otel_mcp.types import Scope
from otel_mcp.wire import headers as wire_headers


class Owning:
    """By path: whether the server there gives out session ids, as its answers or the SDK itself have shown."""

    def __init__(self, keys: KeyedHashes) -> None:
        self._keys = keys
        self._paths: Paths[bool] = Paths()

    def learn(self, exchange: Exchange, *, owns: bool, named: bool = False) -> None:
        """It has been shown.

        Args:
            exchange: that showed it.
            owns: the server gives out ids.
            named: the client had named an id, so that the answer says less: many servers repeat what they are sent.
        """
        if not named or self._paths.get(exchange.path) is None:
            self._paths.learn(exchange.path, owns)

    async def claimed(self, exchange: Exchange, scope: Scope) -> Scope:
        """Tell whose the id of a transport session is; returns the scope for the app."""
        if (wire_id := exchange.wire_session_id) and wire_id.startswith(OURS):
            await self._keys.prepare(exchange)
            # Also one that another replica seems to have made, with another key: the server has given out neither.
            if self._keys.is_ours(wire_id) or (self._keys.is_shaped(wire_id) and not self._paths.get(exchange.path)):
                exchange.owns_sessions = False
                # As the app would have got it had we not given the client an id.
                exchange.scope = scope = wire_headers.without(scope, wire_headers.SESSION_ID)
        elif not exchange.modern:  # The revision of 2026-07-28 has no transport sessions: an id there says nothing.
            exchange.owns_sessions = self._paths.get(exchange.path)
            if not self._keys.ready:
                await self._keys.prepare(exchange)
        return scope
