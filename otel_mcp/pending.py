"""Calls whose answer comes, if it comes, on another stream than the request's own response.

In 2024-11-05 every answer does; later revisions may deliver one on a later GET.
Keyed by session and JSON-RPC id, since ids are only unique within a session.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from time import perf_counter
from typing import Final

from otel_mcp.request import Call
from otel_mcp.wire.jsonrpc import JsonId

PATIENCE: Final = 600.0
"""Seconds that an answer may take; tools run on after their client has gone."""
_MAX: Final = 10_000
_MAX_BYTES: Final = 64 * 1024 * 1024
"""Of the requests of all that wait, as they came."""

Key = tuple[str, JsonId]


class Pending:
    """Unanswered calls, oldest first, bounded."""

    def __init__(self, give_up: Callable[[Call], None]) -> None:
        self._give_up = give_up
        self.calls: OrderedDict[Key, Call] = OrderedDict()
        self._streams: dict[str, int] = {}
        self._bytes = 0

    def add(self, session_id: str, call: Call) -> None:
        """Wait for the answer to `call` on another stream of its session."""
        if call.id is None:
            return
        key = (session_id, call.id)
        earlier = self._take(key) if key in self.calls else None
        self.calls[key] = call
        self._bytes += call.exchange.body_size
        if earlier is not None:
            self._give_up(earlier)
        while len(self.calls) > _MAX or self._bytes > _MAX_BYTES:
            self._give_up(self._take(next(iter(self.calls))))

    def _take(self, key: Key) -> Call:
        call = self.calls.pop(key)
        self._bytes -= call.exchange.body_size
        return call

    def find(self, session_id: str, request_id: JsonId) -> Call | None:
        """The call that an answer on a stream of this session belongs to."""
        return self.calls.get((session_id, request_id))

    def settled(self, session_id: str, call: Call) -> None:
        """The call has its outcome."""
        if call.id is not None and self.calls.get((session_id, call.id)) is call:
            self._take((session_id, call.id))

    def stream_opened(self, session_id: str) -> None:
        self._streams[session_id] = self._streams.get(session_id, 0) + 1

    def stream_closed(self, session_id: str) -> None:
        left = self._streams.get(session_id, 0) - 1
        if left > 0:
            self._streams[session_id] = left
        else:
            self._streams.pop(session_id, None)

    def awaits(self, session_id: str, call: Call) -> bool:
        """Whether the answer to `call` may still pass by on a stream that is open now."""
        return call.id is not None and session_id in self._streams and self.find(session_id, call.id) is call

    def session_closed(self, session_id: str) -> None:
        """No answer can come any more on this session's streams."""
        for key in [key for key in self.calls if key[0] == session_id]:
            call = self._take(key)
            if not call.running:
                self._give_up(call)

    def close(self) -> None:
        """Give up everything that waits."""
        while self.calls:
            self._give_up(self._take(next(iter(self.calls))))

    def expire(self) -> None:
        """Give up the calls that have waited too long. Cheap: looks at the oldest only."""
        limit = perf_counter() - PATIENCE
        while self.calls:
            key, call = next(iter(self.calls.items()))
            if call.exchange.started > limit:
                return
            self._give_up(self._take(key))
