"""Find out which requests of a client are rounds of one logical call (2026-07-28).

A result may ask for input. The client obtains it, perhaps from a person, and sends the request again with the input,
perhaps to another replica. The rounds have the same opaque ``requestState``, or if there is none, the same tool and
arguments, within one session.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Final

from opentelemetry.trace import SpanContext, TraceFlags

from otel_mcp import loops
from otel_mcp.bounded import remember
from otel_mcp.guard import guarded
from otel_mcp.hashing import KeyedHashes
from otel_mcp.identity.reconcile import Later
from otel_mcp.model.call import Call
from otel_mcp.model.rounds import Round
from otel_mcp.sessions.service import Sessions
from otel_mcp.settings import Settings
from otel_mcp.telemetry.metrics import Metrics
from otel_mcp.wire.uris import resource_uri

_GUARD: Final = guarded("rounds")
_ASKING: Final = frozenset({"tools/call", "prompts/get", "resources/read"})
"""Requests whose results may ask for input."""
_PAUSE: Final = 0.05
"""Seconds before the second look in the store: the note of another replica may be on its way."""
_MOST_LOOKS: Final = 100
"""Concurrent lookups: a client may send any state, and each has to be looked up."""
_MOST_NOTES: Final = 1000
"""Concurrent writes of notes for other replicas."""
_LOST: Final = 1.0
"""Seconds after which a lookup or write counts as lost, because its event loop has ended."""
_MOST: Final = 10_000
"""Calls that wait for input, in memory."""
_LONGEST: Final = 600.0
"""Seconds that they are kept, at most; the SDK accepts no older state either."""
_MOST_OF_ONE: Final = 64
"""Notes of one session in that time: limits what one client can make the store keep."""


@dataclass(slots=True)
class _Asked:
    """A result that asked for input."""

    number: int
    """Number of the round that answers it."""
    first: SpanContext | None
    """The span of the first round."""
    until: float = 0.0
    """Monotonic seconds."""
    answered: bool = False
    """A round has brought the input, as far as this process knows: a further one is a new call."""


class Rounds:
    """Results that asked for input: in memory those of this process, in the store those of all replicas."""

    def __init__(
        self, settings: Settings, hashes: KeyedHashes, sessions: Sessions, later: Later, metrics: Metrics
    ) -> None:
        self._kept = min(settings.session_ttl, _LONGEST)
        self._hashes = hashes
        self._sessions = sessions
        self._later = later
        self._metrics = metrics
        self._asked: OrderedDict[str, _Asked] = OrderedDict()
        self._looks: dict[Round, float] = {}
        self._notes: dict[Round, float] = {}
        """Lookups and writes in progress, and when each counts as lost (monotonic seconds)."""
        self._noted: OrderedDict[str, tuple[float, int]] = OrderedDict()
        """By session: end of its counting period (monotonic seconds), and its number of notes."""
        loops.leave_to_parent(self)

    def clear(self) -> None:
        """Start empty in a forked child: work in progress belongs to the parent."""
        for table in (self._asked, self._looks, self._notes, self._noted):
            table.clear()

    def close(self) -> None:
        """End all lookups: the process is about to end."""
        for round_ in list(self._looks):
            round_.looked()

    def arrived(self, call: Call) -> None:
        """Mark a request that seems to bring input; `resume` finds the call that it continues."""
        state, given = call.params.get("requestState"), call.params.get("inputResponses")
        if call.method in _ASKING and (isinstance(state, str) or given is not None):
            call.round = Round(state if isinstance(state, str) else "")

    def resume(self, call: Call) -> None:
        """Find the call that a request continues, once its session is known; the store is read later."""
        with _GUARD:
            round_ = call.round
            if round_ is None or round_.state is None or round_.key is not None:
                return
            round_.key = self._key(call, round_.state)
            if round_.key is None:
                return
            name = _name(call, round_.key)
            if self._find(round_, name) or _failed(call) or not self._asks_others():
                return
            if _has_room(self._looks, round_, _MOST_LOOKS):
                round_.looking = True
                if not self._later.run(partial(self._look, call, round_, name)):
                    self._looked(call, round_)

    def finished(self, call: Call) -> None:
        """Handle the outcome of a call: it may ask for input, or be a round that no SDK reported."""
        self.resume(call)
        outcome = call.outcome
        if outcome is None or outcome.asks is None:
            return
        with _GUARD:
            round_ = call.round = call.round or Round(None, number=1)
            round_.waits = self._key(call, outcome.asks)
            if round_.waits is None:
                return
            round_.when_known(partial(self._note, call, round_, _name(call, round_.waits)))

    def _note(self, call: Call, round_: Round, name: str) -> None:
        """Remember a result that asked for input, in memory and for other replicas."""
        # Without a number, its earlier rounds were not found; it brings input, so it is at least the second.
        asked = _Asked((round_.number or 2) + 1, round_.first or call.span_context, monotonic() + self._kept)
        remember(self._asked, name, asked, _MOST)
        if not self._asks_others():
            return
        session, now = name.rpartition(":")[0], monotonic()
        until, count = self._noted.get(session, (0.0, 0))
        if until <= now:
            until, count = now + self._kept, 0
        remember(self._noted, session, (until, count + 1), _MOST)
        if count < _MOST_OF_ONE and _has_room(self._notes, round_, _MOST_NOTES):
            self._later.run(partial(self._write, round_, name, _text(asked)))
        else:
            self._metrics.store_dropped(1, "rounds")

    async def _write(self, round_: Round, name: str, text: str) -> None:
        try:
            await self._sessions.set_value(name, text, self._kept)
        finally:
            self._notes.pop(round_, None)

    def _find(self, round_: Round, name: str) -> bool:
        """Continue a round from memory. Returns whether that had it."""
        asked = self._asked.get(name)
        if asked is None or asked.until <= monotonic():
            return False
        round_.number, round_.first, round_.continues = asked.number, asked.first, not asked.answered
        asked.answered = True
        return True

    async def _look(self, call: Call, round_: Round, name: str, *, is_last: bool = False) -> None:
        """Look in the store for the note of another replica."""
        goes_on = False
        try:
            asked = _read(await self._sessions.get(name))
            if not self._find(round_, name):
                if asked is not None:
                    asked.until = monotonic() + self._kept
                    remember(self._asked, name, asked, _MOST)
                    self._find(round_, name)
                elif not is_last and round_.looking and self._asks_others() and not _failed(call):
                    goes_on = self._later.run(partial(self._look, call, round_, name, is_last=True), _PAUSE)
        finally:
            if not goes_on:
                self._looked(call, round_)

    def _looked(self, call: Call, round_: Round) -> None:
        self._looks.pop(round_, None)
        round_.looking = False
        if call.span is not None and call.span.is_recording():
            round_.mark(call.span)
        round_.looked()

    def _asks_others(self) -> bool:
        """Return whether other replicas may have notes, and the store answers."""
        return self._sessions.is_shared and not self._sessions.degraded

    def _key(self, call: Call, state: str) -> str | None:
        """Hash what the rounds have in common; ``None`` = unknown, or the shared key is not ready."""
        if call.session is None or not self._hashes.ready:
            return None
        target = call.target or resource_uri(call.params) or ""
        if state:
            return self._hashes.digest("round", call.method, target, state, size=8)
        arguments = call.arguments if call.arguments is not None else call.params.get("arguments")
        digest = self._hashes.digest_json(arguments) if arguments else ""
        return None if digest is None else self._hashes.digest("round", call.method, target, "", digest, size=8)


def _has_room(under_way: dict[Round, float], round_: Round, limit: int) -> bool:
    """Add a round to those in progress. Returns whether it is within the limit."""
    now = monotonic()
    while under_way and (oldest := next(iter(under_way.items())))[1] < now:
        under_way.pop(oldest[0], None)
        oldest[0].looked()
    if len(under_way) >= limit:
        return False
    under_way[round_] = now + _LOST
    return True


def _failed(call: Call) -> bool:
    return call.outcome is not None and call.outcome.failed


def _name(call: Call, key: str) -> str:
    session = call.session and (call.session.conversation or call.session)
    return f"round:{session.id if session is not None else ''}:{key}"


def _text(asked: _Asked) -> str:
    first = asked.first
    if first is None:
        return str(asked.number)
    return f"{asked.number}.{first.trace_id:032x}.{first.span_id:016x}.{int(first.trace_flags):02x}"


def _read(text: str | None) -> _Asked | None:
    """Parse the note of another replica."""
    number, *span = (text or "").split(".")
    if not number.isdecimal():
        return None
    if len(span) != 3:
        return _Asked(int(number), None)
    trace_id, span_id, flags = (int(part, 16) for part in span)
    return _Asked(int(number), SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags)))
