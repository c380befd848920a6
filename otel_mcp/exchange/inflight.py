"""Calls whose answer comes, if it comes, on another stream than the request's own response.

In 2024-11-05 every answer does; later revisions may deliver one on a later GET.
Kept by session, user and JSON-RPC id: ids are only unique for one client of a
session, and a stranger may say any.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from time import perf_counter
from typing import Final

from otel_mcp.model.call import Call, Exchange
from otel_mcp.wire.jsonrpc import JsonId

PATIENCE: Final = 600.0
"""Seconds that an answer may take; tools run on after their client has gone."""
_MAX: Final = 10_000
_MAX_BYTES: Final = 64 * 1024 * 1024
"""Of the requests of all that wait, as they came."""
_SHARE: Final = 8
"""One user of one session may have a part of that, so many times smaller."""

Party = tuple[str, str | None]
"""A transport session, and a user of it."""


class _Waiting(OrderedDict[JsonId, Call]):
    """Calls of one party, oldest first."""

    size = 0
    """Bytes of their requests."""


class Pending:
    """Unanswered calls, oldest first, bounded. Nobody's call is given up for another's."""

    def __init__(self, user: Callable[[Exchange], str | None], give_up: Callable[[Call], None]) -> None:
        """Begin with nothing that waits.

        Args:
            user: tells who calls.
            give_up: takes a call whose answer is not waited for any longer.
        """
        self._user = user
        self._give_up = give_up
        self.calls: OrderedDict[Call, Party] = OrderedDict()
        self._sessions: dict[str, dict[str | None, _Waiting]] = {}
        self._streams: Counter[Party] = Counter()
        self._bytes = 0

    def add(self, session_id: str, call: Call) -> bool:
        """Wait for the answer to `call` on another stream of its session; returns whether there is room for it."""
        if call.id is None:
            return False
        party = session_id, self._user(call.exchange)
        users = self._sessions.setdefault(session_id, {})
        waiting = users.get(party[1])
        if waiting is None:
            waiting = users[party[1]] = _Waiting()
        size, given_up = call.exchange.body_size, [waiting[call.id]] if call.id in waiting else []
        for earlier in given_up:
            self._take(earlier)
        while waiting and self._is_full(waiting, size):
            given_up.append(next(iter(waiting.values())))
            self._take(given_up[-1])
        has_room = not self._is_full(waiting, size)
        if has_room:
            # What was taken last has perhaps taken its table along.
            self._sessions.setdefault(session_id, {})[party[1]] = waiting
            waiting[call.id], self.calls[call] = call, party
            waiting.size += size
            self._bytes += size
        elif not waiting:
            self._drop(party)
        for earlier in given_up:
            self._give_up(earlier)
        return has_room

    def _is_full(self, waiting: _Waiting, size: int) -> bool:
        return (
            len(self.calls) >= _MAX
            or self._bytes + size > _MAX_BYTES
            or len(waiting) >= _MAX // _SHARE
            or waiting.size + size > _MAX_BYTES // _SHARE
        )

    def _take(self, call: Call) -> Call:
        session_id, user = party = self.calls.pop(call)
        waiting = self._sessions[session_id][user]
        if call.id is not None:
            del waiting[call.id]
        waiting.size -= call.exchange.body_size
        self._bytes -= call.exchange.body_size
        if not waiting:
            self._drop(party)
        return call

    def _drop(self, party: Party) -> None:
        session_id, user = party
        if (users := self._sessions.get(session_id)) is not None:
            users.pop(user, None)
            if not users:
                del self._sessions[session_id]

    def find(self, exchange: Exchange, request_id: JsonId) -> Call | None:
        """The call that an answer on this stream belongs to: of its own user, or else of another one of the session."""
        users = self._sessions.get(exchange.transport_id or "")
        if not users:
            return None
        own = users.get(self._user(exchange))
        if own is not None and (call := own.get(request_id)) is not None:
            return call
        return next((waiting[request_id] for waiting in users.values() if request_id in waiting), None)

    def settled(self, call: Call) -> None:
        """The call has its outcome."""
        if call in self.calls:
            self._take(call)

    def stream_opened(self, exchange: Exchange, session_id: str) -> None:
        exchange.stream = session_id, self._user(exchange)
        self._streams[exchange.stream] += 1

    def stream_closed(self, exchange: Exchange) -> None:
        if (stream := exchange.stream) is None:
            return
        self._streams[stream] -= 1
        if not self._streams[stream]:
            del self._streams[stream]

    def awaits(self, call: Call) -> bool:
        """Whether the answer to `call` may still pass by on a stream that is open now."""
        return self.calls.get(call) in self._streams

    def session_closed(self, session_id: str) -> None:
        """No answer can come any more on this session's streams."""
        for waiting in list(self._sessions.get(session_id, {}).values()):
            for call in list(waiting.values()):
                self._take(call)
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
            call = next(iter(self.calls))
            if call.exchange.started > limit:
                return
            self._give_up(self._take(call))
