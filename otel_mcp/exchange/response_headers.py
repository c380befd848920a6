"""The two headers that we may add to an answer, and when we must not."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, Final

from otel_mcp.model.call import Exchange
from otel_mcp.settings import Settings
from otel_mcp.wire import headers as wire_headers

X_SESSION_ID: Final = b"x-session-id"


class ResponseHeaders:
    """Chooses and adds response headers; never changes one that the server set."""

    def __init__(self, settings: Settings) -> None:
        self._transport = "mcp-session-id" in settings.response_headers
        self._public = "x-session-id" in settings.response_headers

    def may_mint(self, exchange: Exchange) -> bool:
        """Whether an ``initialize`` that the server answers without a session id may get a new one of ours."""
        return not exchange.wire_session_id and self.may_tell(exchange)

    def may_tell(self, exchange: Exchange) -> bool:
        """Whether the answer to an ``initialize`` may carry an id of ours.

        Not where a browser asks: once the id is exposed to it, its next
        preflight would name a header that the app may not allow.
        """
        return (
            self._transport
            and exchange.http_method == "POST"
            and not exchange.modern
            and b"origin" not in exchange.headers
        )

    def added(
        self,
        exchange: Exchange,
        message: MutableMapping[str, Any],
        present: Mapping[bytes, bytes],
        session_id: str | None,
    ) -> MutableMapping[str, Any]:
        """The start of this answer, with ours beside the headers that the server set; its own message is left alone."""
        status = exchange.status or 500
        if exchange.minted and 200 <= status < 300 and wire_headers.SESSION_ID not in present:
            ours = (wire_headers.SESSION_ID, exchange.minted.encode("ascii"))
            message = {**message, "headers": [*(message.get("headers") or ()), ours]}
        if session_id is not None and status < 400:
            return self.with_public(message, present, session_id)
        return message

    def with_public(
        self, message: MutableMapping[str, Any], present: Mapping[bytes, bytes], session_id: str
    ) -> MutableMapping[str, Any]:
        """The start of a response of a session, with its id where nobody has set one."""
        if not self._public or X_SESSION_ID in present:
            return message
        ours = (X_SESSION_ID, session_id.encode("ascii"))
        return {**message, "headers": [*(message.get("headers") or ()), ours]}


def with_headers_at_hand(message: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """The start of a response whose headers can be read twice: ASGI allows any iterable."""
    headers = message.get("headers", ())
    return message if headers is None or isinstance(headers, (list, tuple)) else {**message, "headers": list(headers)}


def by_name(headers: Sequence[tuple[bytes, bytes]]) -> Mapping[bytes, bytes]:
    """Response headers by lower-case name; of a repeated one the last stands.

    ASGI wants bytes, and names in lower case. Almost everybody heeds it, and some servers take text as well.
    """
    try:
        named = dict(headers)
        if b"".join(named).islower():
            b"".join(named.values())
            return named
    except (TypeError, ValueError):
        pass
    return dict(wire_headers.pairs({"headers": headers}))
