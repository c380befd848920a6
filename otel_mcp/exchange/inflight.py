"""Keep the calls that have no outcome, in tables for each event that may end or cancel them.

The answer may come on another stream of the session (in 2024-11-05 it always does). Another
request may cancel a call. A call may reach its SDK without its HTTP request.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Final

from otel_mcp.exchange.handed_over import HandedOver
from otel_mcp.exchange.outgoing import Outgoing
from otel_mcp.exchange.rounds import Rounds
from otel_mcp.identity.resolver import Resolver
from otel_mcp.model.call import CLIENT_INFO, MODERN, Call, Exchange, Reading, client_info
from otel_mcp.model.outcomes import left_open, merged, was_refused
from otel_mcp.settings import Settings
from otel_mcp.telemetry.recorder import Recorder
from otel_mcp.wire.jsonrpc import FINE, JsonId, Outcome, json_id, other_form

PATIENCE: Final = 600.0
"""Seconds that an answer may take; tools continue after their client has disconnected."""
MAX_CALLS: Final = 10_000
"""Limit of each table: calls that are counted, that can be cancelled, and that wait for an answer."""
MAX_CALLS_OF_ONE: Final = 1000
"""Calls that can be cancelled, of one user of a session."""
_MAX_BYTES: Final = 64 * 1024 * 1024
"""Bytes of the request bodies of all waiting calls."""
_SHARE: Final = 8
"""One user of one session may use 1/8 of the limits on waiting calls."""
_MAX_KEPT: Final = 64 * 1024
"""Bytes of a request body; the arguments of a larger one are not kept until the call is recorded."""
_MAX_META: Final = 1024
_NOTHING: Final[Mapping[str, Any]] = {}


@dataclass(slots=True, eq=False)
class _Party:
    """One user of one transport session: message ids are unique only within it."""

    session_id: str
    user: str | None
    waiting: dict[JsonId, Call] = field(default_factory=dict[JsonId, Call])
    """Calls whose HTTP request is over, oldest first."""
    size: int = 0
    """Bytes of their requests."""
    streams: int = 0
    """Open GET streams, on which answers may come."""


_NO_PARTIES: Final[Mapping[str | None, _Party]] = {}


class InFlight:
    """Every unfinished call of this process. No user can push out the calls of another."""

    def __init__(
        self, settings: Settings, resolver: Resolver, recorder: Recorder, rounds: Rounds, outgoing: Outgoing
    ) -> None:
        self._resolver = resolver
        self._recorder = recorder
        self._keeps_content = settings.store_content
        self.census = recorder.metrics.census
        self.rounds = rounds
        self.outgoing = outgoing
        self.handed_over = HandedOver()
        self._parties: dict[str, dict[str | None, _Party]] = {}
        self._cancellable: dict[tuple[str, str | None, JsonId], Call] = {}
        self._counts: dict[tuple[str, str | None], int] = {}
        """Cancellable calls by transport session and user."""
        self.waiting: dict[Call, _Party] = {}
        """Calls whose answer may come on another stream, oldest first."""
        self._size = 0

    def begin(self, exchange: Exchange, call: Call) -> None:
        """Add a call that has arrived; ``notifications/cancelled`` marks the call that it names."""
        if len(self.census.calls) < MAX_CALLS:
            self.census.calls[call] = None
        if "requestState" in call.params or "inputResponses" in call.params:
            self.rounds.arrived(call)
        session_id = exchange.transport_id
        if session_id is None or (exchange.protocol_version or "") >= MODERN:
            return
        party = session_id, self._resolver.user(exchange)
        if call.id is not None and not call.id_unknown:
            key = *party, call.id
            if (earlier := self._cancellable.get(key)) is not None:
                self._forget(earlier)
            if len(self._cancellable) >= MAX_CALLS:
                oldest = next(iter(self._cancellable.values()))
                if oldest.exchange.started < perf_counter() - PATIENCE:
                    self._forget(oldest)
            count = self._counts.get(party, 0)
            if count < MAX_CALLS_OF_ONE and len(self._cancellable) < MAX_CALLS:
                call.cancel_key = key
                self._cancellable[key] = call
                self._counts[party] = count + 1
        elif call.method == "notifications/cancelled" and (named := json_id(call.params.get("requestId"))) is not None:
            cancelled = self._cancellable.get((*party, named))
            if cancelled is not None and self._resolver.user(cancelled.exchange) == party[1]:
                cancelled.cancel_requested = True

    def _forget(self, call: Call) -> None:
        """Remove a call that can no longer be cancelled, and its requests to the client."""
        if call.exchange.transport_id in self.outgoing.waiting:
            self.outgoing.ended(call.exchange.transport_id, call)
        if call.cancel_key is not None:
            del self._cancellable[call.cancel_key]
            party, call.cancel_key = call.cancel_key[:2], None
            if (count := self._counts.pop(party)) > 1:
                self._counts[party] = count - 1

    def _party(self, session_id: str, user: str | None) -> _Party:
        return self._parties.setdefault(session_id, {}).setdefault(user, _Party(session_id, user))

    def _drop_if_empty(self, party: _Party) -> None:
        users = self._parties.get(party.session_id, {})
        if not party.waiting and not party.streams and users.get(party.user) is party:
            del users[party.user]
            if not users:
                del self._parties[party.session_id]

    def finish(self, call: Call, outcome: Outcome | None, size: int | None = None) -> None:
        """Set the outcome of a call and the size of its answer in bytes, unless it has one."""
        if call.finished:
            return
        exchange, call.finished = call.exchange, True
        self.census.calls.pop(call, None)
        call.duration = perf_counter() - exchange.started
        call.result_bytes = size
        call.outcome = FINE if outcome is FINE and call.handler_outcome is FINE else merged(outcome, call)
        if call.method != "initialize":
            pass
        elif was_refused(call) or (call.outcome is not None and call.outcome.failed):
            # Only a successful handshake begins or continues a session.
            call.session = exchange.session = call.pending_session_id = None
        else:
            self._resolver.opened(call)
        if call.session is not None and not call.accepted and was_refused(call):
            call.session = None
        if call.outcome is not FINE or call.round is not None:
            self.rounds.finished(call)
        if self.handed_over.calls:
            self.handed_over.drop(call)
        if call.cancel_key is not None:
            self._forget(call)
        if call in self.waiting:
            self._take(call)
        if exchange.body_size > _MAX_KEPT:
            self._slow_slim(call)
        if call.dispatched:
            # Keep only what recording the call needs: many may wait for that.
            call.arguments = call.params.get("arguments")
            if call.session is None:
                _slim(call)  # Nothing else has the name of its client.
            else:
                call.params = call.meta = _NOTHING
        self._recorder.add(call)

    def _slow_slim(self, call: Call) -> None:
        # Arguments too large to be digested: many of them must not wait in memory.
        if not self._keeps_content and call.exchange.capture is None:
            _slim(call)

    def handled(self, call: Call) -> None:
        """Finish a call whose handler returned after its request ended, unless a stream may still bring the answer."""
        party = self.waiting.get(call)
        if call.exchange.closed and (party is None or not party.streams):
            self.finish(call, call.handler_outcome)
        call.exchange.forget_calls()

    def leave(self, call: Call) -> None:
        """Let a call whose request has ended wait for its answer if another stream may bring it; else finish it."""
        exchange = call.exchange
        ends_open = exchange.disconnected or exchange.status == 202
        ends_open = ends_open or (exchange.status == 200 and exchange.reading in (Reading.STREAM, Reading.QUIET_STREAM))
        elsewhere = call.id is not None and call.handler_outcome is None and not exchange.modern
        if ends_open and elsewhere and exchange.transport_id:
            if exchange.body_size > _MAX_KEPT:
                self._slow_slim(call)
            if self._wait(exchange.transport_id, call):
                return
        self.finish(call, left_open(call))

    def _wait(self, session_id: str, call: Call) -> bool:
        """Keep a call until its answer comes. Returns whether there was room for it."""
        if call.id is None:
            return False
        size, party = call.exchange.body_size, self._party(session_id, self._resolver.user(call.exchange))
        if (earlier := party.waiting.get(call.id)) is not None:
            self._give_up(earlier)
        while party.waiting and self._is_full(party, size):
            self._give_up(next(iter(party.waiting.values())))
        if self._is_full(party, size):
            self._drop_if_empty(party)
            return False
        party = self._party(session_id, party.user)  # Giving up its last call may have dropped it.
        party.waiting[call.id] = call
        self.waiting[call] = party
        party.size += size
        self._size += size
        return True

    def _is_full(self, party: _Party, size: int) -> bool:
        return (
            len(self.waiting) >= MAX_CALLS
            or self._size + size > _MAX_BYTES
            or len(party.waiting) >= MAX_CALLS // _SHARE
            or party.size + size > _MAX_BYTES // _SHARE
        )

    def _take(self, call: Call) -> None:
        party = self.waiting.pop(call)
        if call.id is not None:
            del party.waiting[call.id]
        party.size -= call.exchange.body_size
        self._size -= call.exchange.body_size
        self._drop_if_empty(party)

    def _give_up(self, call: Call) -> None:
        self._take(call)
        self.finish(call, call.handler_outcome or Outcome(error_type="disconnected"))

    def find(self, exchange: Exchange, request_id: JsonId) -> Call | None:
        """Find the waiting call that a reply on this stream answers: of the same user, or else of another one."""
        users = self._parties.get(exchange.transport_id or "")
        if not users:
            return None
        own = users.get(self._resolver.user(exchange))
        parties = [*([own] if own is not None else ()), *users.values()]
        forms = request_id, other_form(request_id)
        return next((party.waiting[key] for party in parties for key in forms if key in party.waiting), None)

    def only_waiting(self, exchange: Exchange) -> Call | None:
        """Return the only call that the user of this stream waits for; ``None`` if there are none or several."""
        party = self._parties.get(exchange.transport_id or "", _NO_PARTIES).get(self._resolver.user(exchange))
        return next(iter(party.waiting.values())) if party is not None and len(party.waiting) == 1 else None

    def stream_opened(self, exchange: Exchange, session_id: str) -> None:
        """Count a GET stream that has begun: answers of its session may come on it."""
        exchange.stream = session_id, self._resolver.user(exchange)
        self._party(*exchange.stream).streams += 1

    def stream_closed(self, party_key: tuple[str, str | None]) -> None:
        """Count a GET stream that has ended; after the last one, requests to the client stay unanswered."""
        party = self._party(*party_key)
        party.streams -= 1
        if not any(each.streams for each in self._parties[party.session_id].values()):
            self.outgoing.ended(party.session_id, None)
        self._drop_if_empty(party)

    def session_closed(self, session_id: str) -> None:
        """Give up the waiting calls of a closed session: no answer can come, but running ones still finish."""
        self.outgoing.closed(session_id)
        for party in list(self._parties.get(session_id, {}).values()):
            for call in list(party.waiting.values()):
                if call.running:
                    self._take(call)
                else:
                    self._give_up(call)

    def expire(self) -> None:
        """Give up the calls that have waited longer than `PATIENCE`. Cheap: it checks only the oldest."""
        limit = perf_counter() - PATIENCE
        while self.waiting and (call := next(iter(self.waiting))).exchange.started <= limit:
            self._give_up(call)

    def close(self) -> None:
        """Give up everything that waits."""
        while self.waiting:
            self._give_up(next(iter(self.waiting)))
        self.outgoing.close()
        self.rounds.close()


def _slim(call: Call) -> None:
    """Keep only the parts of a large message that its span and its session may need."""
    name, version = client_info(call)
    info = {"name": name, "version": version}
    call.params = {"clientInfo": info} if call.method == "initialize" else {}
    call.meta = {key: value for key, value in call.meta.items() if isinstance(value, str) and len(value) <= _MAX_META}
    if call.method != "initialize":
        call.meta = {**call.meta, CLIENT_INFO: info}
