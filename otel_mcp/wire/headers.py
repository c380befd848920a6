"""Is this HTTP request MCP traffic? Decided from the ASGI scope alone.

Streamable HTTP requests carry an ``mcp-*`` header, except ``initialize``, which
only its body tells; 2024-11-05 requests carry nothing at all. So there are three
answers, and *maybe* is settled by the body or by the response.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast
from urllib.parse import parse_qs

NO: Final = 0
MAYBE: Final = 1
"""A JSON POST whose body has to tell, or a GET whose event stream has to."""
YES: Final = 2

SESSION_ID: Final = b"mcp-session-id"
PROTOCOL_VERSION: Final = b"mcp-protocol-version"
METHOD: Final = b"mcp-method"
NAME: Final = b"mcp-name"

HTTP_VERSIONS: Final = {"1.0": "1.0", "1.1": "1.1", "2": "2", "2.0": "2", "3": "3", "3.0": "3"}
"""Versions of HTTP that exist, as servers write them and as the conventions do. Clients can make up any."""

_BYTES: Final = (bytes, bytearray, memoryview)
HeaderMap = Mapping[bytes, bytes]


def by_name(scope: Mapping[str, Any]) -> dict[bytes, bytes]:
    """The headers of an ASGI scope by lower-case name. Of a repeated one the first stands, as frameworks read it.

    Adapters and tests make scopes whose headers are missing, text, in mixed case,
    or an iterator: the last is replaced by a list, for the app has still to read it.
    """
    given: Any = scope.get("headers") or ()
    lines = cast("list[Any]", given)
    if type(given) is not list and type(given) is not tuple:
        lines = cast("dict[str, Any]", scope)["headers"] = list(given)
    try:
        named: dict[bytes, bytes] = dict(reversed(lines))
        if b"".join(named).islower():
            b"".join(named.values())
            return named
    except (TypeError, ValueError):
        pass
    return dict(reversed(pairs(scope)))


def pairs(scope: Mapping[str, Any]) -> list[tuple[bytes, bytes]]:
    """Every line of the headers that can be read, in their order, with lower-case names."""
    found = [pair for line in scope.get("headers") or () if (pair := _as_bytes(line)) is not None]
    return [(name.lower(), value) for name, value in found]


def without(scope: Mapping[str, Any], unwanted: bytes) -> dict[str, Any]:
    """The scope without a header, whose name is in lower case; all else is as it was."""
    lines = [line for line in scope["headers"] if (pair := _as_bytes(line)) is None or pair[0].lower() != unwanted]
    return {**scope, "headers": lines}


def _as_bytes(line: Any) -> tuple[bytes, bytes] | None:
    try:
        name, value = line
    except (TypeError, ValueError):
        return None
    return _encoded(name), _encoded(value)


def _encoded(part: Any) -> bytes:
    return bytes(part) if type(part) in _BYTES else str(part).encode("latin-1", "replace")


def recognise(method: str, headers: HeaderMap) -> int:
    """Tell whether a request is MCP: `NO`, `MAYBE` or `YES`."""
    if method == "POST":
        if headers.get(b"content-type", b"").lstrip()[:16].lower() != b"application/json":
            return NO
        return YES if METHOD in headers or PROTOCOL_VERSION in headers or SESSION_ID in headers else MAYBE
    if method == "GET":
        if SESSION_ID in headers:
            return YES
        if b"text/event-stream" not in headers.get(b"accept", b""):
            return NO
        return YES if PROTOCOL_VERSION in headers else MAYBE
    if method == "DELETE":
        return YES if SESSION_ID in headers else NO
    return NO


def takes_streams(headers: HeaderMap) -> bool:
    """Whether a client takes JSON and event streams, as MCP asks; who is refused at once says no more."""
    accept = headers.get(b"accept", b"")
    return b"application/json" in accept and b"text/event-stream" in accept


def query_session_id(scope: Mapping[str, Any]) -> str | None:
    """The ``session_id`` of the query, where 2024-11-05 posts name their session."""
    query: bytes = scope.get("query_string", b"")
    return _session_id(query) if b"session" in query else None


def endpoint_session_id(data: bytes) -> str | None:
    """The session id in the data of an ``endpoint`` event: a path or URL to post to."""
    return _session_id(data.partition(b"?")[2])


def _session_id(query: bytes) -> str | None:
    fields = parse_qs(query[:2048].decode("latin-1"))
    found = fields.get("session_id") or fields.get("sessionId")
    return found[0][:512] if found else None


def text(headers: HeaderMap, name: bytes, limit: int = 256) -> str | None:
    """A header as text of at most `limit` characters, `None` if absent or empty."""
    value = headers.get(name)
    return value[:limit].decode("latin-1") if value else None
