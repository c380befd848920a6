"""Requests of one logical call, and how they become one entry of a document, in any order (2026-07-28).

A result may ask for input, and the request is sent again with it, perhaps to another replica. A keyed hash
connects entries: one waits for the input that the other brings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from time import time_ns
from typing import TYPE_CHECKING, Any, Final

from otel_mcp.guard import guarded
from otel_mcp.model.delta import CallRecord
from otel_mcp.semconv import CALL_ROUND

if TYPE_CHECKING:
    from opentelemetry.trace import SpanContext


_SKEW: Final = 1.0
"""Seconds by which the clocks of two replicas may differ."""


@dataclass(slots=True, eq=False)
class Round:
    """One of several requests of a logical call: its result asks for input, or it brings some."""

    state: str | None
    """The ``requestState`` that it repeats, empty if it has none; ``None`` = it is the first."""
    number: int = 0
    """From 1; 0 = it is not known which round it continues."""
    first: SpanContext | None = None
    """The span of the first round, for the others."""
    key: str | None = None
    """Keyed hash that it shares with the previous round; ``None`` = not known yet."""
    waits: str | None = None
    """Keyed hash that it shares with the next round, if its result asks for input."""
    continues: bool = False
    """It is known to be the first that brings the input, so it is no call of its own. A request that only claims this
    is one."""
    looking: bool = False
    """A lookup of the round that it continues is under way."""
    _acts: list[Callable[[], object]] = field(default_factory=list[Callable[[], object]])

    def when_known(self, act: Callable[[], object]) -> None:
        """Call `act` when no lookup is under way: at once if there is none."""
        self._acts.append(act)
        if not self.looking:
            self.looked()

    def mark(self, span: Any) -> None:
        """Put the number of the round on the request's open span, if known, and a link to the first.

        During a lookup, the span of any library ends only after it, with its true end time; this is called again
        before.
        """
        if not (self.looking and span.is_recording()):
            if self.number:
                span.set_attribute(CALL_ROUND, self.number)
                if self.first is not None:
                    span.add_link(self.first)
            return
        end = span.end

        def end_later(end_time: int | None = None) -> None:
            self.when_known(partial(end, time_ns() if end_time is None else end_time))

        span.end = end_later

    def looked(self) -> None:
        """End the lookup, with or without a result, and run the waiting functions. From any thread."""
        self.looking = False
        with suppress(IndexError):  # Empty: another thread may have taken the last one.
            while True:
                act = self._acts.pop(0)
                with guarded("rounds"):
                    act()


def add_calls(calls: list[CallRecord], more: Sequence[CallRecord]) -> list[tuple[str, float]]:
    """Append calls to a document; a round is joined with the entry of the previous or the next one.

    Returns:
        Tool and seconds of each wait for input that this ends: one for each entry that was joined.
    """
    waits: list[tuple[str, float]] = []
    for made in more:
        whole = made
        for at, before in enumerate(calls if made.answers is not None else ()):
            if before.waiting == made.answers and _follows(made, before):
                whole = _joined(calls.pop(at), whole, waits)
                break
        for at, after in enumerate(calls if made.waiting is not None else ()):
            if after.answers == made.waiting and _follows(after, whole):
                whole = _joined(whole, calls.pop(at), waits)
                break
        calls.append(whole)
    return waits


def _asked(call: CallRecord) -> float:
    return call.started_at + call.duration + call.input_wait


def _follows(last: CallRecord, first: CallRecord) -> bool:
    """Return whether a request can bring the input for an answer: it began later, within the skew of clocks."""
    return last.started_at > _asked(first) - _SKEW


def _joined(first: CallRecord, last: CallRecord, waits: list[tuple[str, float]]) -> CallRecord:
    waits.append((last.tool_name, pause := max(last.started_at - _asked(first), 0.0)))
    return replace(
        last,
        request_id=first.request_id,
        started_at=first.started_at,
        duration=first.duration + last.duration,
        rounds=first.rounds + last.rounds,
        input_wait=first.input_wait + pause + last.input_wait,
        answers=first.answers,
    )
