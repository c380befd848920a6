"""One request, though it goes through several hands before an SDK gets it.

Frameworks that are not ASGI take a request apart and make a scope of their own
for the SDK; other transports hand the message over without any scope, and to a
task that is older than the request. A server that asks another one in the same
process does much the same, but for a request of its own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final

from otel_mcp.bounded import Paths, remember
from otel_mcp.model.call import Call, Exchange, current_exchange
from otel_mcp.wire import headers as wire_headers
from otel_mcp.wire.jsonrpc import JsonId

_SAID: Final = (b"host", b"user-agent", b"authorization", b"cookie", b"content-type", b"accept")
"""What an adapter may leave out, but has no reason to change. (It may well write the same message in other bytes.)"""
_MCP: Final = (wire_headers.SESSION_ID, wire_headers.PROTOCOL_VERSION, wire_headers.METHOD, wire_headers.NAME)
_MAX_CALLS: Final = 10_000


def is_same(around: Exchange, scope: Mapping[str, Any], headers: wire_headers.HeaderMap) -> bool:
    """Whether a scope without our mark is that of the request which its task works for already.

    It is, where no SDK has got that request yet, and whatever both say of it agrees.
    """
    if around.at_sdk or around.closed or around.responded or around.http_method != scope.get("method"):
        return False
    outer, inner = around.path.rstrip("/"), str(scope.get("path", "")).rstrip("/")
    if not (outer.endswith(inner) or inner.endswith(outer)):
        return False
    return all(name not in headers or headers[name] == around.headers.get(name) for name in _SAID + _MCP)


class HandedOver:
    """Requests that were read on their way to an app, until an SDK takes them out of its hands."""

    def __init__(self) -> None:
        self._calls: OrderedDict[tuple[JsonId | None, str], dict[Call, None]] = OrderedDict()
        self._paths: Paths[bool] = Paths()

    def add(self, call: Call) -> None:
        """Keep a call that has been read."""
        key = (call.id, call.method)
        if (waiting := self._calls.get(key)) is not None:
            waiting[call] = None
        else:
            remember(self._calls, key, {call: None}, _MAX_CALLS)

    def drop(self, call: Call) -> None:
        """Forget a call that has its outcome."""
        if (waiting := self._calls.get((call.id, call.method))) is None:
            return
        waiting.pop(call, None)
        if not waiting:
            del self._calls[call.id, call.method]

    def find(self, request_id: JsonId | None, method: str, params: object) -> list[Call]:
        """The calls that a message may be which an SDK got without its HTTP request; more than one = it is not certain.

        The request that the task was started in decides: it is this one, or an earlier one of its transport session.
        """
        waiting = self._calls.get((request_id, method))
        if not waiting:
            return []
        found = [call for call in waiting if not call.accepted and _says(call, params)]
        around = current_exchange.get()
        if around is None or not found:
            return found
        own = [call for call in found if call.exchange is around]
        return own or [call for call in found if _may_share(around, call.exchange)]

    def learn(self, exchange: Exchange) -> None:
        """The app at this path hands its messages over to an SDK, which decides on their spans."""
        self._paths.learn(exchange.path, True)

    def hands_over(self, exchange: Exchange) -> bool:
        return self._paths.get(exchange.path) is True


def _says(call: Call, params: object) -> bool:
    """Whether a call asks for what the parameters say that an SDK has got, as dictionary or model."""
    for name in ("name", "arguments"):
        said: object = params.get(name) if isinstance(params, dict) else getattr(params, name, None)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        if name in call.params and call.params[name] != said and not (said is None and not call.params[name]):
            return False
    return True


def _may_share(first: Exchange, other: Exchange) -> bool:
    """Whether two requests may be of one transport session, as far as it is known."""
    known = first.transport_id or first.server_session_id or first.minted
    return known is None or other.transport_id is None or other.transport_id == known
