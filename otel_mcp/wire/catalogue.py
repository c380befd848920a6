"""The answer to ``tools/list``, byte for byte: what each definition costs its readers, and what changed.

Sizes are those of the text on the wire, digests those of its meaning: neither the order of keys nor spacing changes
them, and nothing of the text is kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from hashlib import blake2b
from typing import Any, Final, NamedTuple, cast

from otel_mcp.wire.jsonrpc import text

LONGEST_NAME: Final = 128
"""Characters that are kept of the name of a tool."""
MOST_TOOLS: Final = 5000
"""That are read of a catalogue; a server with the most tools that is known lists some hundreds."""
OWN_LIMIT: Final = "anthropic/maxResultSizeChars"
"""Key in the ``_meta`` of a tool: the characters of a result that Claude Code passes on whole."""

_FRAME: Final = rb'(?:"jsonrpc"\s*:\s*"2\.0"|"id"\s*:\s*(?:\d+|"[^"\\]*"))\s*'
_HEAD: Final = re.compile(rb"\s*\{\s*(?:" + _FRAME + rb",\s*)*")
_TAIL: Final = re.compile(rb"(?:,\s*" + _FRAME + rb")+\}\s*$")
_LONGEST_TAIL: Final = 256
"""Bytes. Around the result stands what differs between two answers that say the same, in some order."""
_SPACE: Final = re.compile(r"[ \t\r\n]*")
_decode: Final = json.JSONDecoder(strict=False).raw_decode


class _TooMany(Exception):
    """There are more than `MOST_TOOLS`."""


class Definition(NamedTuple):
    """One tool, as it is listed."""

    name: str
    size: int
    """Bytes."""
    digest: bytes
    limit: int | None
    """What the tool itself asks hosts to take of a result, in characters."""


class Page(NamedTuple):
    """One answer, which may be a part of the catalogue."""

    tools: tuple[Definition, ...] | None
    """``None`` = not read, since it is too large or has too many."""
    size: int
    """Bytes of the definitions; of the whole answer where that was not read."""
    next_cursor: str | None
    digest: bytes


class Listing(NamedTuple):
    """A page, and by which cursor it was asked for; ``None`` = the first one."""

    cursor: str | None
    page: Page


def fingerprint(data: bytes | bytearray) -> int:
    """Hash an answer but for its id, fast: one that says the same as an earlier one need not be read again."""
    head = _HEAD.match(data)
    tail = None if data[-2:] == b"}}" else _TAIL.search(data, max(0, len(data) - _LONGEST_TAIL))
    # One copy, even of what is 1 MB large.
    return hash(bytes(memoryview(data)[head.end() if head else 0 : tail.start() if tail else len(data)]))


def parse_page(data: bytes | bytearray) -> Page | None:
    """Read one answer; ``None`` where it is none, or none that makes sense."""
    try:
        message, _ = _fields(data.decode(), 0, {"result": _result})
        found = message.get("result")
        if found is None or found.get("tools") is None:
            return None
        tools, cursor = tuple(found["tools"]), found.get("nextCursor")
    except _TooMany:
        return unread_page(len(data))
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    # An empty one is no further page: the clients of the SDKs stop there.
    following = text(cursor, 1024) if isinstance(cursor, str) and cursor else None
    return Page(tools, sum(tool.size for tool in tools), following, digest_of(tools))


def unread_page(size: int) -> Page:
    """Make the page of an answer that is too large to be read, in bytes."""
    return Page(None, size, None, b"")


def digest_of(tools: Iterable[Definition]) -> bytes:
    """Digest a catalogue; in whichever order it lists the same tools, the digest is the same."""
    whole = blake2b(digest_size=16)
    for name, digest in sorted((tool.name, tool.digest) for tool in tools):
        whole.update(digest + name.encode("utf-8", "replace") + b"\0")
    return whole.digest()


_Read = Callable[[str, int], tuple[Any, int]]
"""Reads the value that begins at an index; returns it with the index of its end."""


def _fields(data: str, at: int, readers: Mapping[str, _Read]) -> tuple[dict[str, Any], int]:
    """Read an object, with functions of their own for some of its values."""
    found: dict[str, Any] = {}
    at = _past(data, at, "{")
    while data[at] != "}":
        key, at = _decode(data, at)
        found[key], at = readers.get(key, _decode)(data, _past(data, at, ":"))
        at = _next(data, at)
    return found, at + 1


def _result(data: str, at: int) -> tuple[dict[str, Any], int]:
    return _fields(data, at, {"tools": _tools})


def _tools(data: str, at: int) -> tuple[list[Definition], int]:
    tools: list[Definition] = []
    at, left = _past(data, at, "["), MOST_TOOLS
    while data[at] != "]":
        left -= 1
        if left < 0:
            raise _TooMany
        value, end = _decode(data, at)
        if isinstance(value, dict):
            tools.append(_definition(cast("dict[str, Any]", value), data[at:end]))
        at = _next(data, end)
    return tools, at + 1


def _definition(tool: dict[str, Any], written: str) -> Definition:
    name, meta = tool.get("name"), tool.get("_meta")
    limit = cast("dict[str, Any]", meta).get(OWN_LIMIT) if isinstance(meta, dict) else None
    plain = json.dumps(tool, sort_keys=True, separators=(",", ":"))
    return Definition(
        text(name, LONGEST_NAME) if isinstance(name, str) else "",
        len(written) if written.isascii() else len(written.encode()),
        blake2b(plain.encode(), digest_size=16).digest(),
        limit if type(limit) is int and limit > 0 else None,
    )


def _past(data: str, at: int, sign: str) -> int:
    """Return where the text goes on after a sign that has to come next, and the spaces around it."""
    at = _space(data, at)
    if data[at] != sign:
        raise ValueError(f"not {sign}")
    return _space(data, at + 1)


def _next(data: str, at: int) -> int:
    """Return where the next member begins, or what closes them all."""
    at = _space(data, at)
    return _space(data, at + 1) if data[at] == "," else at


def _space(data: str, at: int) -> int:
    found = _SPACE.match(data, at)
    return at if found is None else found.end()
