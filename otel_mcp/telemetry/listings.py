"""Answers to ``tools/list``: each is read once, by its bytes, and a new one in turns of the loop, never on the path."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from functools import partial
from math import inf
from time import monotonic
from typing import Final

from otel_mcp import loops
from otel_mcp.bounded import remember
from otel_mcp.guard import guarded, quietly
from otel_mcp.model.call import Call
from otel_mcp.wire.catalogue import Listing, Page, PageReader, fingerprint, unread_page

_GUARD: Final = guarded("record")
_SLICE: Final = 16 * 1024
"""Characters that are read in one turn: about a millisecond."""
_MAX_KNOWN: Final = 128
"""Answers that are known by their bytes."""
_MAX_READ: Final = 16 * 1024 * 1024
"""Bytes of new answers that are read in a minute, which takes half a second."""

Take = Callable[[str | None, Page], None]
"""Takes what was listed, and by which cursor."""


class Listings:
    """The answers that clients got lately, and those that are still to be read."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._minute, self._new = -60.0, 0
        """When the current minute began, and bytes of answers since then that were new."""
        self._readers: OrderedDict[int, PageReader] = OrderedDict()
        """By the fingerprints of the answers."""
        self.forget()

    def forget(self) -> None:
        """Start again in a forked child: the calls that wait are the parent's, and a thread may have held the lock."""
        self._lock = threading.Lock()
        self._waiting: deque[tuple[Listing, Take]] = deque()
        """Of finished calls, in their order."""
        self._turn: asyncio.AbstractEventLoop | None = None
        """The loop that reads on in its next turn."""
        for key in [key for key, reader in self._readers.items() if not reader.is_read]:
            del self._readers[key]

    def see(self, call: Call, data: bytes | bytearray) -> bool:
        """Take an answer from the wire. Returns whether one that says the same was read before."""
        key = fingerprint(data)
        if (reader := self._readers.get(key)) is None:
            page = self._slow_new(key, data)
        else:
            self._readers.move_to_end(key)
            page = reader
        cursor = call.params.get("cursor")
        call.listing = Listing(cursor if isinstance(cursor, str) and cursor else None, page)
        return reader is not None and reader.page is not None

    def _slow_new(self, key: int, data: bytes | bytearray) -> PageReader | Page:
        """Have an answer read that is new; too many of them are only measured."""
        now = self._clock()
        if now - self._minute >= 60.0:
            self._minute, self._new = now, 0
        self._new += len(data)
        if self._new > _MAX_READ:
            return unread_page(len(data))
        # The buffer is the server's, which may use it again.
        reader = PageReader(bytes(data))
        remember(self._readers, key, reader, _MAX_KNOWN)
        return reader

    def when_read(self, listing: Listing, take: Take) -> None:
        """Have `take` called with what a finished call has listed, in the order of the calls. From any thread."""
        self._waiting.append((listing, take))
        is_new = isinstance(listing.page, PageReader) and not listing.page.is_read
        is_free = self._turn is None or not self._turn.is_running()
        # What follows in the same turn waits for the next one, also where a slice is enough for this one.
        self._read(_SLICE if is_new and is_free else 0)
        if is_free and (is_new or self._waiting):
            self._schedule()

    def finish(self) -> None:
        """Read all that waits, at once."""
        self._read(inf)

    def _schedule(self) -> None:
        self._turn = loops.home()
        if self._turn is None:
            self.finish()  # The process is ending.
        else:
            loops.call_later(self._turn, 0.0, partial(quietly, "record", self._on_turn))

    def _on_turn(self) -> None:
        self._turn = None
        self._read(_SLICE)
        if self._waiting:
            self._schedule()

    def _read(self, most: float) -> None:
        """Read so many characters, and pass on what is complete."""
        with self._lock:
            while self._waiting:
                (cursor, page), take = self._waiting[0]
                if isinstance(page, PageReader):
                    if not page.is_read and most > 0:
                        most -= page.read(most)
                    if not page.is_read:
                        return
                    page = page.page
                self._waiting.popleft()
                if page is not None:
                    with _GUARD:
                        take(cursor, page)
