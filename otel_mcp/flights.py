"""Requests that are being served, by the ids under which their clients may cancel them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from otel_mcp.bounded import remember
from otel_mcp.request import Call, Exchange
from otel_mcp.wire.jsonrpc import JsonId, json_id

MAX_FLIGHTS: Final = 10_000


class Flights:
    """Unfinished calls of transport sessions."""

    def __init__(self, are_strangers: Callable[[Exchange, Exchange], bool]) -> None:
        self._are_strangers = are_strangers
        self._calls: OrderedDict[tuple[str, JsonId], Call] = OrderedDict()

    def note(self, exchange: Exchange, call: Call) -> None:
        """Keep a request that a later ``notifications/cancelled`` of the same session may name; follow such a one."""
        transport_id = exchange.transport_id
        if transport_id is None or exchange.modern:
            return
        if call.id is not None:
            remember(self._calls, (transport_id, call.id), call, MAX_FLIGHTS)
        elif call.method == "notifications/cancelled":
            named = json_id(call.params.get("requestId"))
            other = self._calls.get((transport_id, named)) if named is not None else None
            if other is not None and not self._are_strangers(exchange, other.exchange):
                other.cancel_requested = True

    def landed(self, transport_id: str, request_id: JsonId) -> None:
        """The call has its outcome."""
        self._calls.pop((transport_id, request_id), None)
