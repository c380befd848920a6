"""Which requests of a client are rounds of one logical call (2026-07-28).

A result may ask for input; the client gets it, perhaps from a person, and sends the request again with it, perhaps
to another replica. What the two have in common is the opaque ``requestState`` that the client repeats byte by byte,
or, where there is none, tool and arguments; always within one session.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from time import monotonic
from typing import Final, NamedTuple

from opentelemetry.trace import SpanContext, TraceFlags

from otel_mcp.bounded import remember
from otel_mcp.guard import guarded
from otel_mcp.hashing import KeyedHashes
from otel_mcp.identity.reconcile import Later
from otel_mcp.model.call import Call
from otel_mcp.model.rounds import Round
from otel_mcp.sessions.service import Sessions
from otel_mcp.settings import Settings
from otel_mcp.telemetry.spans import mark_round
from otel_mcp.wire.uris import resource_uri

_GUARD: Final = guarded("rounds")
_ASKING: Final = frozenset({"tools/call", "prompts/get", "resources/read"})
"""Requests whose results may ask for input."""
_LOOKS: Final = 4
_PAUSE: Final = 0.05
"""Further looks for what another replica has asked, and the seconds before each."""
_MOST: Final = 10_000
"""Calls that wait for input and are remembered here."""
_LONGEST: Final = 3600.0
"""Seconds that they are, at most; servers take no state that is older than some minutes (ten, in the SDK)."""


class _Asked(NamedTuple):
    """A result that has asked for input."""

    number: int
    """Of the round that answers it."""
    first: SpanContext | None
    """The span of the first round."""
    until: float = 0.0
    """Monotonic seconds."""


class Rounds:
    """Results of this process that have asked for input, and a look at those of other replicas."""

    def __init__(self, settings: Settings, hashes: KeyedHashes, sessions: Sessions, later: Later) -> None:
        self._kept = min(settings.session_ttl, _LONGEST)
        self._hashes = hashes
        self._sessions = sessions
        self._later = later
        self._asked: OrderedDict[str, _Asked] = OrderedDict()

    def arrived(self, call: Call) -> None:
        """Note that a request looks like one that brings input; what it goes on with only its session shows."""
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
            known = self._asked.get(name)
            if known is not None and known.until > monotonic():
                this.number, this.first = known.number, known.first
            elif self._sessions.is_shared:
                self._later.run(partial(self._look, call, this, name))

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
            number = (this.number or 2) + 1
            asked = _Asked(number, this.first or call.span_context, monotonic() + self._kept)
            name = _name(call, this.waits)
            remember(self._asked, name, asked, _MOST)
            if self._sessions.is_shared:
                self._later.run(partial(self._sessions.set_value, name, _text(asked), self._kept))

    async def _look(self, call: Call, this: Round, name: str, again: int = _LOOKS) -> None:
        """Ask what another replica has asked; while the call lasts more than once, since that may be on its way."""
        if (found := _read(await self._sessions.get(name))) is None:
            if again and not call.finished:
                self._later.run(partial(self._look, call, this, name, again - 1), _PAUSE)
            return
        this.number, this.first = found.number, found.first
        if call.span is not None and call.span.is_recording():
            mark_round(call, call.span)

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
