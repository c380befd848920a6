"""Filter trace context from clients before OpenTelemetry's propagators read it.

The propagators log malformed values with their text, so that a client could
write to the server's log. Malformed values are therefore left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from otel_mcp.wire.jsonrpc import text

_MAX_LENGTH: Final = 8192
"""Characters; W3C's limit for baggage."""
_LONGEST: Final = {"traceparent": 512}
"""Characters; the limit of OpenTelemetry's propagator."""
_LIMITS: Final = {"baggage": (180, 4096), "tracestate": (32, 513)}
"""Greatest number of members, and characters of each."""
_NAME: Final = r"[a-z][_0-9a-z\-*/]"
_MEMBERS: Final = {
    "baggage": re.compile(
        r"[ \t]*[!#$%&'*+\-.^_`|~0-9A-Za-z]+[ \t]*=[ \t]*[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*[ \t]*"
        r"(?:;[!#$%&'*+\-.^_`|~0-9A-Za-z]+(?:=[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*)?)*"
    ),
    "tracestate": re.compile(
        rf"[ \t]*(?:{_NAME}{{0,255}}|[a-z0-9][_0-9a-z\-*/]{{0,240}}@{_NAME}{{0,13}})="
        r"[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e][ \t]*"
    ),
}


_SPACE: Final = {"baggage": re.compile(r"[ \t]*([,;=])[ \t]*"), "tracestate": re.compile(r"[ \t]*(,)[ \t]*")}
"""Optional whitespace, which older propagators do not expect."""


def carried(fields: Iterable[tuple[str, object]]) -> dict[str, str]:
    """Return the well-formed fields, without optional whitespace."""
    return {
        name: text(_without_space(name, value), _MAX_LENGTH)
        for name, value in fields
        if isinstance(value, str) and len(value) <= _LONGEST.get(name, _MAX_LENGTH) and _is_readable(name, value)
    }


def _without_space(name: str, value: str) -> str:
    space = _SPACE.get(name)
    return value if space is None else space.sub(r"\1", value).strip(" \t")


def _is_readable(name: str, value: str) -> bool:
    pattern = _MEMBERS.get(name)
    if pattern is None:
        return True
    max_members, max_length = _LIMITS[name]
    members = value.split(",", max_members)
    return len(members) <= max_members and all(
        len(member) <= max_length and pattern.fullmatch(member) is not None for member in members
    )
