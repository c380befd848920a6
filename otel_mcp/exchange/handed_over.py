"""Match messages that reach an SDK without their HTTP request with the calls that were read from requests."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from otel_mcp.bounded import Paths, remember
from otel_mcp.model.call import Call, current_exchange
from otel_mcp.wire.jsonrpc import JsonId

_MOST: Final = 10_000
"""Entries of the table."""


class HandedOver:
    """Calls that were read from requests, for an SDK that a custom transport passes them to."""

    def __init__(self) -> None:
        self.calls: OrderedDict[tuple[JsonId | None, str], list[Call]] = OrderedDict()
        self.paths: Paths[bool] = Paths()
        """Paths of apps that pass their messages to an SDK, which decides about their spans."""

    def add(self, call: Call) -> None:
        """Add a call that was read."""
        key = call.id, call.method
        remember(self.calls, key, [*self.calls.get(key, ()), call], _MOST)

    def drop(self, call: Call) -> None:
        """Remove a call that has its outcome."""
        key = call.id, call.method
        if call in (waiting := self.calls.get(key, ())):
            self.calls[key] = [other for other in waiting if other is not call]
            if not self.calls[key]:
                del self.calls[key]

    def find(self, request_id: JsonId | None, method: str, params: object) -> list[Call]:
        """Find the calls that may be this message; several = it is not certain which.

        Calls of the request that the current task began in come first, then those of its transport session.
        """
        waiting = self.calls.get((request_id, method), ())
        found = [call for call in waiting if not call.accepted and _asks_for(call, params)]
        around = current_exchange.get()
        if around is None or not found:
            return found
        known = around.transport_id or around.server_session_id or around.minted
        own = [call for call in found if call.exchange is around]
        return own or [call for call in found if known is None or call.exchange.transport_id in (None, known)]


def _asks_for(call: Call, params: object) -> bool:
    """Return whether a call has the same name and arguments as `params`, a dictionary or model."""
    for name in ("name", "arguments"):
        given: object = params.get(name) if isinstance(params, dict) else getattr(params, name, None)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        if name in call.params and call.params[name] != given and not (given is None and not call.params[name]):
            return False
    return True
