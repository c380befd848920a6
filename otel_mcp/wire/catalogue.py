"""Parse the answer to ``tools/list``: the size of each definition in bytes, and digests that show changes.

Sizes are bytes on the wire. Digests depend neither on the order of keys nor on white space. No text is kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from hashlib import blake2b
from math import inf
from typing import Any, Final, NamedTuple, cast

from otel_mcp.wire.jsonrpc import text

LONGEST_NAME: Final = 128
"""Characters that are kept of the name of a tool."""
MOST_TOOLS: Final = 5000
"""Tools that are read of a catalogue; the largest known servers list a few hundred."""
OWN_LIMIT: Final = "anthropic/maxResultSizeChars"
"""Key in the ``_meta`` of a tool: length up to which Claude Code passes on a whole result, in characters."""

_FRAME: Final = rb'(?:"jsonrpc"\s*:\s*"2\.0"|"id"\s*:\s*(?:\d+|"[^"\\]*"))\s*'
_HEAD: Final = re.compile(rb"\s*\{\s*(?:" + _FRAME + rb",\s*)*")
_TAIL: Final = re.compile(rb"(?:,\s*" + _FRAME + rb")+\}\s*$")
_LONGEST_TAIL: Final = 256
"""Bytes after the result. ``jsonrpc`` and ``id`` may come before or after it, and the id differs in each answer."""
_SPACE: Final = re.compile(r"[ \t\r\n]*")
_decode: Final = json.JSONDecoder(strict=False).raw_decode


class _TooMany(Exception):
    """There are more than `MOST_TOOLS`."""


class Definition(NamedTuple):
    """One listed tool."""

    name: str
    size: int
    """Bytes."""
    digest: bytes
    limit: int | None
    """Characters of a result that the tool asks hosts to accept; ``None`` = none."""


class Page(NamedTuple):
    """One answer, the catalogue or a part of it."""

    tools: tuple[Definition, ...] | None
    """``None`` = not read: the answer is too large or lists too many tools."""
    size: int
    """Bytes of the definitions; of the whole answer if it was not read."""
    next_cursor: str | None
    digest: bytes


class PageReader:
    """Reads one answer tool by tool, as much at a time as the caller wants: 100 KB take 4 ms and more."""

    __slots__ = ("_steps", "is_read", "page")

    def __init__(self, data: bytes | bytearray) -> None:
        self.page: Page | None = None
        """``None`` = not read yet, or no answer that makes sense."""
        self.is_read = False
        self._steps = self._read(data)

    def read(self, most: float = inf) -> int:
        """Read on for so many characters, or a tool more, or to the end; returns how many."""
        read = 0
        for size in self._steps:
            read += size
            if read >= most:
                break
        return read

    def _read(self, data: bytes | bytearray) -> Iterator[int]:
        try:
            message, _ = yield from _fields(data.decode(), 0, {"result": _result})
            self.page = _page(message)
        except _TooMany:
            self.page = unread_page(len(data))
        except (ValueError, LookupError, TypeError, RecursionError):
            pass
        finally:
            self.is_read = True


class Listing(NamedTuple):
    """A page and the cursor of its request; ``None`` = the first page."""

    cursor: str | None
    page: PageReader | Page


def fingerprint(data: bytes | bytearray) -> int:
    """Hash an answer without its id, so that an answer equal to an earlier one is not parsed again."""
    head = _HEAD.match(data)
    tail = None if data[-2:] == b"}}" else _TAIL.search(data, max(0, len(data) - _LONGEST_TAIL))
    # Only one copy: the answer may have 1 MB.
    return hash(bytes(memoryview(data)[head.end() if head else 0 : tail.start() if tail else len(data)]))


def _page(message: Mapping[str, Any]) -> Page | None:
    found = message.get("result")
    if found is None or found.get("tools") is None:
        return None
    tools, cursor = tuple(found["tools"]), found.get("nextCursor")
    # An empty cursor is the last page, as for the clients of the SDKs.
    following = text(cursor, 1024) if isinstance(cursor, str) and cursor else None
    return Page(tools, sum(tool.size for tool in tools), following, digest_of(tools))


def unread_page(size: int) -> Page:
    """Make the page of an answer of `size` bytes that is too large to read."""
    return Page(None, size, None, b"")


def digest_of(tools: Iterable[Definition]) -> bytes:
    """Digest a catalogue, independently of the order of its tools."""
    whole = blake2b(digest_size=16)
    for name, digest in sorted((tool.name, tool.digest) for tool in tools):
        whole.update(digest + name.encode("utf-8", "replace") + b"\0")
    return whole.digest()


_Reading = Generator[int, None, tuple[Any, int]]
"""Parses the value at an index. Yields the sizes of its parts; returns it with the index of its end."""


def _fields(data: str, at: int, readers: Mapping[str, Callable[[str, int], _Reading]]) -> _Reading:
    """Parse an object; `readers` has the functions for some of its keys."""
    found: dict[str, Any] = {}
    at = _past(data, at, "{")
    while data[at] != "}":
        key, at = _decode(data, at)
        at, read = _past(data, at, ":"), readers.get(key)
        found[key], at = _decode(data, at) if read is None else (yield from read(data, at))
        at = _next(data, at)
    return found, at + 1


def _result(data: str, at: int) -> _Reading:
    return _fields(data, at, {"tools": _tools})


def _tools(data: str, at: int) -> _Reading:
    tools: list[Definition] = []
    at, left = _past(data, at, "["), MOST_TOOLS
    while data[at] != "]":
        left -= 1
        if left < 0:
            raise _TooMany
        value, end = _decode(data, at)
        if isinstance(value, dict):
            tools.append(_definition(cast("dict[str, Any]", value), data[at:end]))
        yield end - at
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
    """Return the index after the required `sign` and the white space around it."""
    at = _space(data, at)
    if data[at] != sign:
        raise ValueError(f"not {sign}")
    return _space(data, at + 1)


def _next(data: str, at: int) -> int:
    """Return the index of the next member, or of the closing bracket."""
    at = _space(data, at)
    return _space(data, at + 1) if data[at] == "," else at


def _space(data: str, at: int) -> int:
    found = _SPACE.match(data, at)
    return at if found is None else found.end()
