"""Decide from the ASGI scope whether an HTTP request is MCP; read headers and session ids.

Streamable HTTP requests have an ``mcp-*`` header, except ``initialize``; requests of
2024-11-05 have none. So for a JSON POST, or a GET that accepts an event stream, the
body or the answer may have to decide.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any, Final
from urllib.parse import parse_qs

from otel_mcp.types import Message

SESSION_ID: Final = b"mcp-session-id"
PROTOCOL_VERSION: Final = b"mcp-protocol-version"
METHOD: Final = b"mcp-method"
NAME: Final = b"mcp-name"
X_SESSION_ID: Final = b"x-session-id"

HTTP_VERSIONS: Final = {"1.0": "1.0", "1.1": "1.1", "2": "2", "2.0": "2", "3": "3", "3.0": "3"}
"""HTTP versions as servers write them, with their values in the conventions; clients can invent others."""

_JSON: Final = b"application/json"
_HELD: Final = (list, tuple)
_BYTES: Final = (bytes, bytearray, memoryview)
HeaderMap = Mapping[bytes, bytes]
Seen = tuple[HeaderMap, bool]
"""Request headers by lower-case name, and whether they alone show that the request is MCP."""


def recognise(scope: MutableMapping[str, Any]) -> Seen | None:
    """Return the headers of a request that may be MCP; of a repeated header the first counts, as in frameworks.

    Returns:
        ``None`` = not MCP.
    """
    method = scope.get("method")
    if method != "POST" and method != "GET" and method != "DELETE":
        return None
    lines: Any = scope.get("headers") or ()
    if type(lines) not in _HELD:
        # Adapters and tests may pass an iterator, which the app has to read, too.
        scope["headers"] = lines = list(lines)
    try:
        headers: HeaderMap = dict(lines[::-1])
        b"".join(headers.values())
        is_plain = b"".join(headers).islower()  # A middleware may have added one in upper case.
    except (TypeError, ValueError):
        headers, is_plain = {}, False
    if not is_plain:
        headers = by_name(lines[::-1])
    if method == "POST":
        content_type = headers.get(b"content-type", b"")
        if content_type != _JSON and content_type.lstrip()[:16].lower() != _JSON:
            return None
        return headers, METHOD in headers or PROTOCOL_VERSION in headers or SESSION_ID in headers
    if SESSION_ID in headers:
        return headers, True
    if method == "DELETE" or b"text/event-stream" not in headers.get(b"accept", b""):
        return None
    return headers, PROTOCOL_VERSION in headers


def by_name(lines: Iterable[tuple[bytes, bytes]]) -> HeaderMap:
    """Map headers by lower-case name; of a repeated header the last counts.

    ASGI requires bytes and lower-case names; the slow path handles servers that pass text or upper case.
    """
    try:
        named = dict(lines)
        if b"".join(named).islower():
            b"".join(named.values())
            return named
    except (TypeError, ValueError):
        pass
    return dict(pairs({"headers": lines}))


def plain_type(lines: Any) -> bytes | None:
    """Return the unchanged content type of a response, without making a map.

    Returns:
        ``None`` = use `by_name`: the body is encoded, there is an ``X-Session-Id``, or the headers are not valid ASGI.
    """
    if type(lines) not in _HELD:
        return None
    found: bytes | None = None
    for name, value in lines:
        if name == b"content-type":
            found = value
        elif name == b"content-encoding" or name == X_SESSION_ID or not name.islower():
            return None
    return found if type(found) is bytes else None


def media_type(headers: HeaderMap) -> bytes:
    """Return the content type in lower case, with its parameters; empty = none."""
    return headers.get(b"content-type", b"").strip().lower()


def with_headers_at_hand(message: Message) -> Message:
    """Return the start of a response with its headers in a list, since ASGI allows an iterator."""
    headers = message.get("headers", ())
    return message if headers is None or isinstance(headers, (list, tuple)) else {**message, "headers": list(headers)}


def pairs(scope: Mapping[str, Any]) -> list[tuple[bytes, bytes]]:
    """Return all well-formed headers in order, with lower-case names."""
    found = [pair for line in scope.get("headers") or () if (pair := _as_bytes(line)) is not None]
    return [(name.lower(), value) for name, value in found]


def without(scope: Mapping[str, Any], unwanted: bytes) -> dict[str, Any]:
    """Return a copy of the scope without one header, named in lower case."""
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


def takes_streams(headers: HeaderMap) -> bool:
    """Return whether a client accepts JSON and event streams, as MCP requires."""
    accept = headers.get(b"accept", b"")
    return b"application/json" in accept and b"text/event-stream" in accept


def query_session_id(scope: Mapping[str, Any]) -> str | None:
    """Return the ``session_id`` in the query, the transport id of a POST of 2024-11-05."""
    query: bytes = scope.get("query_string", b"")
    return _session_id(query) if b"session" in query else None


def endpoint_session_id(data: bytes) -> str | None:
    """Return the session id in the path or URL of an ``endpoint`` event."""
    return _session_id(data.partition(b"?")[2])


def _session_id(query: bytes) -> str | None:
    fields = parse_qs(query[:2048].decode("latin-1"))
    found = fields.get("session_id") or fields.get("sessionId")
    return found[0][:512] if found else None


def text(headers: HeaderMap, name: bytes, limit: int = 256) -> str | None:
    """Return a header as text of at most `limit` characters; ``None`` = absent or empty."""
    value = headers.get(name)
    return value[:limit].decode("latin-1") if value else None
