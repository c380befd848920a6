"""Which requests of a client are rounds of one logical call (2026-07-28).

A result may ask for input; the client gets it, perhaps from a person, and sends the request again with it, perhaps
to another replica. What the two have in common is the opaque ``requestState`` that the client repeats byte by byte,
or, where there is none, tool and arguments; always within one session.
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
"""Seconds before the second look for what another replica has asked, which may be on its way."""
_MOST_LOOKS: Final = 100
"""Looks that are under way: anybody may forge what has to be looked up."""
_MOST_NOTES: Final = 1000
"""Notes for other replicas that are under way."""
_LOST: Final = 1.0
"""Seconds after which a look or note is taken for lost, as where the loop that it ran on has ended."""
_MOST: Final = 10_000
"""Calls that wait for input and are remembered here."""
_LONGEST: Final = 600.0
"""Seconds that they are, at most; the SDK takes no older state either."""
_MOST_OF_ONE: Final = 64
"""Notes for other replicas of one session in that time: a client can have the store keep no more."""


@dataclass(slots=True)
class _Asked:
    """A result that has asked for input."""

    number: int
    """Of the round that answers it."""
    first: SpanContext | None
    """The span of the first round."""
    until: float = 0.0
    """Monotonic seconds."""
    answered: bool = False
    """A round has brought what it asks for, as far as this process knows: any other is a call of its own."""


class Rounds:
    """Results of this process that have asked for input, and a look at those of other replicas."""

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
        """What is under way, and until when at most (monotonic seconds)."""
        self._noted: OrderedDict[str, tuple[float, int]] = OrderedDict()
        """By session: until when notes are counted (monotonic seconds), and how many there are."""
        loops.leave_to_parent(self)

    def clear(self) -> None:
        """Start again in a forked child: what is under way is the parent's."""
        for table in (self._asked, self._looks, self._notes, self._noted):
            table.clear()

    def close(self) -> None:
        """Wait for no look any longer: the process is about to end."""
        for this in list(self._looks):
            this.looked()

    def arrived(self, call: Call) -> None:
        """Note that a request looks like one that brings input.

        Which call it continues is clear only once the session is known.
        """
        state, given = call.params.get("requestState"), call.params.get("inputResponses")
        if call.method in _ASKING and (isinstance(state, str) or given is not None):
            call.round = Round(state if isinstance(state, str) else "")

    def resume(self, call: Call) -> None:
        """Find what a request goes on with, once it has its session; what another replica has asked comes later."""
        with _GUARD:
            this = call.round
            if this is None or this.state is None or this.key is not None:
                return
            this.key = self._key(call, this.state)
            if this.key is None:
                return
            name = _name(call, this.key)
            if self._find(this, name) or _failed(call) or not self._asks_others():
                return
            if _has_room(self._looks, this, _MOST_LOOKS):
                this.looking = True
                if not self._later.run(partial(self._look, call, this, name)):
                    self._looked(call, this)

    def finished(self, call: Call) -> None:
        """Note that a call has its outcome: it may ask for input, or be a round that no seam has seen."""
        self.resume(call)
        outcome = call.outcome
        if outcome is None or outcome.asks is None:
            return
        with _GUARD:
            this = call.round = call.round or Round(None, number=1)
            this.waits = self._key(call, outcome.asks)
            if this.waits is None:
                return
            this.when_known(partial(self._note, call, this, _name(call, this.waits)))

    def _note(self, call: Call, this: Round, name: str) -> None:
        """Remember what a round has asked for, here and for other replicas."""
        # Without a number, what it continues was not found; since it brings input, it is at least the second.
        asked = _Asked((this.number or 2) + 1, this.first or call.span_context, monotonic() + self._kept)
        remember(self._asked, name, asked, _MOST)
        if not self._asks_others():
            return
        if self._may_note(name.rpartition(":")[0]) and _has_room(self._notes, this, _MOST_NOTES):
            self._later.run(partial(self._write, this, name, _text(asked)))
        else:
            self._metrics.store_dropped(1, "rounds")

    def _may_note(self, session: str) -> bool:
        """Count a note of a session; returns whether that may be."""
        until, count = self._noted.get(session, (0.0, 0))
        if until <= (now := monotonic()):
            until, count = now + self._kept, 0
        remember(self._noted, session, (until, count + 1), _MOST)
        return count < _MOST_OF_ONE

    async def _write(self, this: Round, name: str, text: str) -> None:
        try:
            await self._sessions.set_value(name, text, self._kept)
        finally:
            self._notes.pop(this, None)

    def _find(self, this: Round, name: str) -> bool:
        """Have a round go on with what is remembered here."""
        asked = self._asked.get(name)
        if asked is None or asked.until <= monotonic():
            return False
        this.number, this.first, this.continues = asked.number, asked.first, not asked.answered
        asked.answered = True
        return True

    async def _look(self, call: Call, this: Round, name: str, *, is_last: bool = False) -> None:
        """Ask what another replica has asked."""
        goes_on = False
        try:
            asked = _read(await self._sessions.get(name))
            if not self._find(this, name):
                if asked is not None:
                    asked.until = monotonic() + self._kept
                    remember(self._asked, name, asked, _MOST)
                    self._find(this, name)
                elif not is_last and this.looking and self._asks_others() and not _failed(call):
                    goes_on = self._later.run(partial(self._look, call, this, name, is_last=True), _PAUSE)
        finally:
            if not goes_on:
                self._looked(call, this)

    def _looked(self, call: Call, this: Round) -> None:
        self._looks.pop(this, None)
        this.looking = False
        if call.span is not None and call.span.is_recording():
            this.mark(call.span)
        this.looked()

    def _asks_others(self) -> bool:
        """Whether other replicas may know more, and the store answers."""
        return self._sessions.is_shared and not self._sessions.degraded

    def _key(self, call: Call, state: str) -> str | None:
        """Hash what the rounds have in common; ``None`` where that cannot be known, or compared between replicas."""
        if call.session is None or not self._hashes.ready:
            return None
        target = call.target or resource_uri(call.params) or ""
        if state:
            return self._hashes.digest("round", call.method, target, state, size=8)
        arguments = call.arguments if call.arguments is not None else call.params.get("arguments")
        digest = self._hashes.digest_json(arguments) if arguments else ""
        return None if digest is None else self._hashes.digest("round", call.method, target, "", digest, size=8)


def _has_room(under_way: dict[Round, float], this: Round, limit: int) -> bool:
    """Take a round up among those under way, unless there are too many."""
    now = monotonic()
    while under_way and (oldest := next(iter(under_way.items())))[1] < now:
        under_way.pop(oldest[0], None)
        oldest[0].looked()
    if len(under_way) >= limit:
        return False
    under_way[this] = now + _LOST
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
    """Read what another replica has written."""
    number, *span = (text or "").split(".")
    if not number.isdecimal():
        return None
    if len(span) != 3:
        return _Asked(int(number), None)
    trace_id, span_id, flags = (int(part, 16) for part in span)
    return _Asked(int(number), SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags)))
