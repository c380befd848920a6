"""What may be shown of a URI that a client names: where a resource is, never what opens it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from otel_mcp.wire.jsonrpc import text

RESOURCE_METHODS: Final = frozenset({"resources/read", "resources/subscribe", "resources/unsubscribe"})
"""Requests that name a resource."""
_MAX_READ: Final = 2048
"""Characters; a longer URI is not shown, since who knows what it begins with."""
_SCHEME: Final = r"[a-z][a-z0-9+.-]*:"
_PARTS: Final = re.compile(rf"((?:{_SCHEME})+(?=[/\\])|{_SCHEME})?([/\\]*)(.*)", re.IGNORECASE | re.DOTALL)
_ENDS: Final = re.compile(r"[?#;]")
"""Where query, fragment or parameters begin."""
_HOST: Final = re.compile(r"(?:\[[0-9a-f:.%]*\]|[^:@%/\\?#;]*)(?::\d*)?(?=[/\\?#;]|$)", re.IGNORECASE)


def resource_uri(params: Mapping[str, Any]) -> str | None:
    """Return the resource that a request asks for, without what may be secret in a URI.

    Left out are user and password, query, fragment, parameters, and the content of a ``data:`` URI. Where a URI is not
    well formed, rather too much is left out: a password with a slash in it would end the authority early.

    Returns:
        At most 256 characters; ``None`` where the request names none.
    """
    uri: Any = params.get("uri")
    if not isinstance(uri, str) or len(uri) > _MAX_READ or (parts := _PARTS.match(uri)) is None:
        return None
    scheme, slashes, rest = parts[1] or "", parts[2], parts[3]
    is_data = scheme.lower() == "data:"
    rest = rest.partition(",")[0] if is_data else _without_user(rest, hierarchical=bool(slashes))
    path = _ENDS.split(rest, maxsplit=1)[0].split("/")
    return text(f"{scheme}{slashes}{'/'.join(map(_without_password, path))}") or None


def _without_user(rest: str, *, hierarchical: bool) -> str:
    """Return what follows the user, if there is one: an ``@`` behind a plausible host is of the path."""
    while not (hierarchical and _HOST.match(rest)):
        authority = re.split(r"[/\\?#]", rest, maxsplit=1)[0]
        end = (_last_at(authority) if hierarchical else 0) or _last_at(rest)
        if not end:
            break
        rest, hierarchical = rest[end:], True
    return rest


def _without_password(segment: str) -> str:
    """Cut the password off a part of a path, which may be that of a URI within the URI."""
    before = segment[: _last_at(segment)]
    return segment[len(before) :] if ":" in before or "%3a" in before.lower() else segment


def _last_at(text: str) -> int:
    """Return where the last ``@`` ends; 0 = there is none."""
    escaped = text.rfind("%40")
    return max(text.rfind("@") + 1, escaped + 3 if escaped >= 0 else 0)
