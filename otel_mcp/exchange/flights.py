"""Requests that are being served, by the ids under which their clients may cancel them."""

from __future__ import annotations

from collections import Counter
from time import perf_counter
from typing import Final

from otel_mcp.exchange.inflight import PATIENCE
from otel_mcp.identity.resolver import Resolver
from otel_mcp.model.call import Call, Exchange
from otel_mcp.wire.jsonrpc import JsonId, json_id

MAX_FLIGHTS: Final = 10_000
MAX_OF_ONE: Final = 1000
"""Of one user of one transport session."""


class Flights:
    """Unfinished calls of transport sessions, apart for each user: JSON-RPC ids are anybody's to choose.

    What is full takes no more. A call that runs is not forgotten for another's.
    """

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver
        self._calls: dict[tuple[str, str | None, JsonId], Call] = {}
        self._counts: Counter[tuple[str, str | None]] = Counter()

    def note(self, exchange: Exchange, call: Call) -> None:
        """Keep a request that a later ``notifications/cancelled`` of the same session may name; follow such a one."""
        transport_id = exchange.transport_id
        if transport_id is None or exchange.modern:
            return
        party = transport_id, self._resolver.user(exchange)
        if call.id is not None:
            key = *party, call.id
            if (earlier := self._calls.get(key)) is not None:
                self.landed(earlier)
            if self._has_room() and self._counts[party] < MAX_OF_ONE:
                call.cancel_key = key
                self._calls[key] = call
                self._counts[party] += 1
        elif call.method == "notifications/cancelled":
            named = json_id(call.params.get("requestId"))
            other = self._calls.get((*party, named)) if named is not None else None
            if other is not None and not self._resolver.are_strangers(exchange, other.exchange):
                other.cancel_requested = True

    def landed(self, call: Call) -> None:
        """The call has its outcome."""
        key, call.cancel_key = call.cancel_key, None
        if key is None:
            return
        del self._calls[key]
        party = key[0], key[1]
        self._counts[party] -= 1
        if not self._counts[party]:
            del self._counts[party]

    def _has_room(self) -> bool:
        if len(self._calls) >= MAX_FLIGHTS:
            oldest = next(iter(self._calls.values()))
            if oldest.exchange.started < perf_counter() - PATIENCE:
                self.landed(oldest)
        return len(self._calls) < MAX_FLIGHTS
