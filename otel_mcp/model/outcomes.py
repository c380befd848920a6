"""How a call ended: the wire, the patch around the handler and the client each know a part."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from otel_mcp.model.call import Call
from otel_mcp.semconv import TOOL_ERROR
from otel_mcp.wire.jsonrpc import FINE, STREAMS, Failure, Outcome

CALLERS_FAULT: Final = frozenset({"unknown_tool", "invalid_arguments"})
"""Failures that are not the fault of the server or its tools."""
LEFT: Final = frozenset({"cancelled", "disconnected"})
_INVALID_PARAMS: Final = "-32602"
_NOT_FOUND: Final = frozenset({_INVALID_PARAMS, "-32601", "-32002"})
"""Codes with which servers answer unknown names."""
_INTERNAL: Final = frozenset({"-32603", "0"})
"""Codes of an uncaught exception."""
REFUSED_STATUS: Final = frozenset({401, 403, 404, 405, 406, 413, 415, 421, 429})
REFUSALS: Final = REFUSED_STATUS | {400}
"""HTTP statuses that refuse a request, whether or not its message was read."""
REFUSED_CODES: Final = frozenset({"-32600", "-32700", "-32020", "-32021", "-32022"})
"""Codes for an invalid message, or for headers, capabilities or a revision that the server does not support."""


def was_refused(call: Call) -> bool:
    """Return whether the server refused the message unread: then it has no session, even if it names one."""
    if call.accepted:
        return False
    status = call.exchange.status or 0
    code = call.outcome.status_code if call.outcome is not None else None
    return status in REFUSED_STATUS or (status == 400 and (code is None or code in REFUSED_CODES))


def was_accepted(call: Call) -> bool:
    """Return whether the server accepted the message: only then may this open or prolong a session."""
    if call.accepted:
        return True
    if call.method == "server/discover" and call.outcome is not None and call.outcome.failed:
        return False  # A failed probe: the client continues with a handshake, which has its own session.
    status = call.exchange.status
    if status is None or status >= 500 or was_refused(call):
        return False
    return call.outcome is None or call.outcome.status_code not in REFUSED_CODES


def merged(outcome: Outcome | None, call: Call) -> Outcome | None:
    """Merge the outcome on the wire with the handler's and with the client's cancellation."""
    handled = call.handler_outcome
    if outcome is FINE and handled is FINE:
        return FINE
    failed = outcome is not None and outcome.failed
    if (call.cancel_requested and failed) or (handled is not None and handled.error_type == "cancelled"):
        if call.method in STREAMS:
            return FINE  # A client ends its subscription by leaving.
        status_code = outcome.status_code if outcome is not None else None
        return Outcome("cancelled", status_code, handled.exception_type if handled is not None else None)
    if handled is None or outcome is None:
        return outcome or handled
    if outcome is handled and handled.exception_type is None:
        return handled
    if outcome.unclassified:
        return handled
    exception_type = handled.exception_type if failed else None
    return Outcome(outcome.error_type, outcome.status_code, exception_type, asks=outcome.asks)


def completed_by(earlier: Outcome | None, later: Outcome | None) -> Outcome | None:
    """Merge the outcome of a handler with the earlier one of its tool."""
    if later is None or earlier is None:
        return later or earlier
    if later.exception_type is None and earlier.exception_type is not None:
        return replace(later, exception_type=earlier.exception_type)
    return later


def left_open(call: Call) -> Outcome:
    """Return the outcome of a call whose answer was not seen, without guessing."""
    exchange = call.exchange
    if call.handler_outcome is not None:
        return call.handler_outcome
    if exchange.status is not None and exchange.status >= 400:
        return Outcome(error_type=str(exchange.status))
    if call.id is None:
        return FINE
    if exchange.disconnected and call.method in STREAMS:
        return FINE
    if exchange.disconnected:
        return Outcome(error_type="cancelled" if exchange.modern else "disconnected")
    if exchange.raised or exchange.status is None:
        return Outcome(error_type="500")
    return Outcome(unclassified=True)


def failure_of(call: Call, outcome: Outcome, *, unlisted: bool) -> Failure | None:
    """Return how a tool call failed; ``None`` = it worked, or this is not known.

    Args:
        call: with the facts that the seams have seen.
        outcome: how it ended.
        unlisted: the server, which lists its tools, has not listed this one.
    """
    code, error_type = outcome.status_code, outcome.error_type
    if not outcome.failed:
        return None
    if error_type in LEFT:
        return "cancelled"
    if call.tool_failure == "unknown_tool":
        return call.tool_failure
    missed = code in _NOT_FOUND or error_type == TOOL_ERROR or call.tool_failure is not None
    if unlisted and missed and call.target is not None and not call.tool_entered:
        return "unknown_tool"
    if call.tool_failure is not None:
        return call.tool_failure
    if code is None:
        return _without_code(call, error_type or "")
    if code == _INVALID_PARAMS and call.target is not None:
        # With an HTTP error, the SDK has not read the arguments yet: it does not support the revision, or batches.
        turned_away = call.exchange.at_sdk and not call.accepted and (call.exchange.status or 0) >= 400
        return "refused" if turned_away else "invalid_arguments"
    if code in _INTERNAL:
        return "exception"
    if call.tool_entered:
        return "tool"
    # If no seam sees the server's tools, errors that are not the caller's count as theirs, so that none is missed.
    seen = call.tools_observed or error_type is None or code in REFUSED_CODES or was_refused(call)
    return "refused" if seen else "tool"


def _without_code(call: Call, error_type: str) -> Failure:
    if error_type == TOOL_ERROR:
        return "refused" if call.tools_observed and not call.tool_entered else "tool"
    return "refused" if error_type.isdigit() and error_type < "500" else "exception"
