"""Whether ``initialize`` has succeeded, as far as that is known before the headers of its answer are sent.

Only a handshake that succeeds begins a session. An SDK's seam may have seen its
end, and an answer in JSON is at hand as soon as it is sent: ASGI servers need
not send its start before its body either. A stream is not waited for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from otel_mcp.exchange.answer import LIMIT
from otel_mcp.model.call import Call, Exchange
from otel_mcp.wire.jsonrpc import outcome_of, parse_replies


def is_decided_by_body(exchange: Exchange, status: int, present: Mapping[bytes, bytes]) -> bool:
    """Whether the headers of an answer that begins depend on a body which is about to come."""
    if exchange.http_method != "POST" or status != 200 or len(exchange.calls) != 1:
        return False
    call = exchange.calls[0]
    if call.method != "initialize" or call.handler_outcome is not None:
        return False
    return b"content-encoding" not in present and present.get(b"content-type", b"").startswith(b"application/json")


def foresee(exchange: Exchange, message: Mapping[str, Any]) -> None:
    """Read the first body message of such an answer."""
    body = message.get("body", b"")
    try:
        replies = parse_replies(bytes(body)) if len(body) <= LIMIT else []
    except ValueError:
        return  # Not whole yet, or no JSON.
    for reply in replies:
        if (outcome := outcome_of(reply)) is not None:
            exchange.foreseen = not outcome.failed


def has_succeeded(call: Call) -> bool | None:
    """How a handshake has ended; ``None`` = only the rest of the answer tells."""
    return call.exchange.foreseen if call.handler_outcome is None else not call.handler_outcome.failed
