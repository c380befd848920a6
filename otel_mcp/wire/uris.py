"""Strip secrets from the URIs of resources."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from otel_mcp.wire.jsonrpc import text

RESOURCE_METHODS: Final = frozenset({"resources/read", "resources/subscribe", "resources/unsubscribe"})
"""Requests that name a resource."""
_MAX_URI: Final = 2048
"""Characters; a longer URI is not shown at all."""
_SCHEME: Final = r"[a-z][a-z0-9+.-]*:"
_PARTS: Final = re.compile(rf"((?:{_SCHEME})+(?=[/\\])|{_SCHEME})?([/\\]*)(.*)", re.IGNORECASE | re.DOTALL)
_ENDS: Final = re.compile(r"[?#;]")
"""Where query, fragment or parameters begin."""
_HOST: Final = re.compile(r"(?:\[[0-9a-f:.%]*\]|[^:@%/\\?#;]*)(?::\d*)?(?=[/\\?#;]|$)", re.IGNORECASE)


def resource_uri(params: Mapping[str, Any]) -> str | None:
    """Return the URI of the requested resource without the parts that may be secret.

    Removes user and password, query, fragment, parameters, and the content of a ``data:`` URI. Of a malformed URI it
    may remove more: a slash in a password would otherwise end the authority early.

    Returns:
        At most 256 characters; ``None`` = the request names no resource.
    """
    uri: Any = params.get("uri")
    if not isinstance(uri, str) or len(uri) > _MAX_URI or (parts := _PARTS.match(uri)) is None:
        return None
    scheme, slashes, rest = parts[1] or "", parts[2], parts[3]
    is_data = scheme.lower() == "data:"
    rest = rest.partition(",")[0] if is_data else _without_user(rest, hierarchical=bool(slashes))
    path = _ENDS.split(rest, maxsplit=1)[0].split("/")
    return text(f"{scheme}{slashes}{'/'.join(map(_without_password, path))}") or None


def _without_user(rest: str, *, hierarchical: bool) -> str:
    """Remove user and password; an ``@`` after a plausible host belongs to the path."""
    while not (hierarchical and _HOST.match(rest)):
        authority = re.split(r"[/\\?#]", rest, maxsplit=1)[0]
        end = (_last_at(authority) if hierarchical else 0) or _last_at(rest)
        if not end:
            break
        rest, hierarchical = rest[end:], True
    return rest


def _without_password(segment: str) -> str:
    """Remove user and password from a segment of the path, which may contain another URI."""
    before = segment[: _last_at(segment)]
    return segment[len(before) :] if ":" in before or "%3a" in before.lower() else segment


def _last_at(text: str) -> int:
    """Return the index after the last ``@``, escaped or not; 0 = there is none."""
    escaped = text.rfind("%40")
    return max(text.rfind("@") + 1, escaped + 3 if escaped >= 0 else 0)
