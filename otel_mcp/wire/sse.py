"""Incremental decoder of server-sent events.

Callers forward the bytes first and feed them afterwards. Memory is bounded: of an
event beyond the limit, only the size is kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

# Not `splitlines`, which also splits at U+2028 and others.
_LINE_END: Final = re.compile(rb"\r\n|\n|\r")
_WHOLE_EVENT: Final = re.compile(rb"(?:event: ([^\r\n]{1,64})\r?\n)?data: ([^\r\n]*)\r?\n\r?\n")
_RESULT: Final = re.compile(
    rb"(?:event: message\r?\n)?data: "
    rb'(\{"jsonrpc":"2\.0","id":(?:(\d{1,18})|"([^"\\]{1,128})"),"result":[^\r\n]*)\r?\n\r?\n'
)
_BOM: Final = b"\xef\xbb\xbf"
_DATA: Final = b"data:"
_SLICE: Final = 64 * 1024


class Event(NamedTuple):
    """One dispatched event."""

    name: bytes
    """Empty = ``message``."""
    data: bytes | None
    """``None`` = larger than the limit."""
    size: int
    """Bytes of data, kept or not."""


def whole(chunk: bytes | memoryview, limit: int) -> Event | None:
    """Return the event of a chunk that is exactly one event, as servers usually send; ``None`` = use a `Decoder`.

    Only valid if no event is incomplete before the chunk.
    """
    found = _WHOLE_EVENT.fullmatch(chunk)
    if found is None:
        return None
    size = found.end(2) - found.start(2)
    return Event(found[1] or b"", found[2] if size <= limit else None, size)


def result_size(chunk: bytes | memoryview, request_id: int | str | None) -> int | None:
    """Return the bytes of data of a chunk that is exactly the result of that request; ``None`` = parse the chunk."""
    found = _RESULT.fullmatch(chunk)
    if found is None:
        return None
    found_id = int(found[2]) if found[2] is not None else found[3].decode("utf-8", "replace")
    return found.end(1) - found.start(1) if found_id == request_id else None


class Decoder:
    """Turns the chunks of one stream into events."""

    __slots__ = (
        "_after_cr", "_data", "_first", "_limit", "_line", "_long", "_long_data", "_name", "_size", "_too_large",
    )  # fmt: skip

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._line = bytearray()
        """The incomplete last line."""
        self._long = False
        """Whether that line is beyond the limit, so that its bytes are dropped."""
        self._long_data = False
        """Whether that line is data, so that its bytes are counted."""
        self._data: list[bytes] = []
        self._name = b""
        self._size = 0
        self._too_large = False
        self._first = True
        self._after_cr = False

    def feed(self, chunk: bytes | memoryview) -> Iterator[Event]:
        """Yield the events that this chunk completes."""
        if len(chunk) <= _SLICE:
            yield from self._feed(bytes(chunk))
            return
        # In slices, so that a huge chunk is neither copied whole nor split into millions of lines at once.
        for start in range(0, len(chunk), _SLICE):
            yield from self._feed(bytes(chunk[start : start + _SLICE]))

    def _feed(self, chunk: bytes) -> Iterator[Event]:
        if not chunk:
            return
        if self._after_cr and chunk[:1] == b"\n":
            # A CRLF was split between chunks, and its CR has ended the line.
            chunk = chunk[1:]
        self._after_cr = chunk[-1:] == b"\r"
        pieces = _LINE_END.split(chunk)
        rest = pieces.pop()
        for piece in pieces:
            line = self._complete(piece)
            if line:
                self._field(line)
            elif line is not None:
                if self._data or self._too_large:
                    yield self._dispatch()
                self._name = b""
        self._hold(rest)

    def _complete(self, piece: bytes) -> bytes | None:
        """Return the line that ends with `piece`; ``None`` = its bytes were dropped."""
        if self._long:
            self._drop(piece)
            self._long = False
            return None
        if self._line:
            piece = bytes(self._line) + piece
            self._line.clear()
        if self._first:
            self._first = False
            piece = piece.removeprefix(_BOM)
        return piece

    def _hold(self, rest: bytes) -> None:
        if self._long:
            self._drop(rest)
            return
        self._line += rest
        if len(self._line) > self._limit + len(_BOM) + len(b"data: "):
            # The value is beyond the limit. Of a long event name, the part so far is kept.
            line = self._complete(b"") or b""
            self._long = True
            self._long_data = line.startswith(_DATA)
            self._field(line)

    def _drop(self, piece: bytes) -> None:
        if self._long_data:
            self._size += len(piece)

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if name == b"data":
            value = value.removeprefix(b" ")
            # Count the line feeds that join lines, so that empty lines are bounded, too.
            self._size += len(value) + bool(self._data or self._too_large)
            if self._too_large or self._size > self._limit:
                self._too_large = True
                self._data.clear()
            else:
                self._data.append(value)
        elif name == b"event":
            self._name = value.removeprefix(b" ")[:64]

    def _dispatch(self) -> Event:
        event = Event(self._name, None if self._too_large else b"\n".join(self._data), self._size)
        self._data, self._size, self._too_large = [], 0, False
        return event
