"""Requests of one logical call, and how they become one entry of a document, in whatever order (2026-07-28).

A result may ask for input, and the request is sent again with it, perhaps to another replica. Entries know each other
by a keyed hash: what the one waits for, the other answers.
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
    """One request of a logical call of several: its result asks for input, or it brings some."""

    state: str | None
    """The ``requestState`` that it repeats, empty where it has none; ``None`` = it is the first."""
    number: int = 0
    """From 1 on; 0 = it is not known what it goes on with."""
    first: SpanContext | None = None
    """The span of the first round, for the others."""
    key: str | None = None
    """Keyed hash of what it has in common with the round before it; ``None`` = not known yet."""
    waits: str | None = None
    """The same of the next round, where its result asks for input."""
    continues: bool = False
    """It is known to be the first to bring what was asked for, so it is no call of its own. A request that only says so
    is one."""
    looking: bool = False
    """It is being looked up what it goes on with."""
    _acts: list[Callable[[], object]] = field(default_factory=list[Callable[[], object]])

    def when_known(self, act: Callable[[], object]) -> None:
        """Act once no look is under way any more: at once where none is."""
        self._acts.append(act)
        if not self.looking:
            self.looked()

    def mark(self, span: Any) -> None:
        """Put on the open span of the request which round it is, where that is known, and a link to the first.

        While that is being looked up, have the span, of whatever library, end only once the look is over, with its
        true end time; this comes again before.
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
        """End the look, whatever it has found, and do what has waited for it. From any thread."""
        self.looking = False
        with suppress(IndexError):  # Whichever thread takes the last one.
            while True:
                act = self._acts.pop(0)
                with guarded("rounds"):
                    act()


def add_calls(calls: list[CallRecord], more: Sequence[CallRecord]) -> list[tuple[str, float]]:
    """Append calls to a document; a round takes the entry of the one before it, or after it, along.

    Returns:
        Tool and seconds of each wait for input that is over with it: one for each entry that is no longer there.
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
    """Return whether a request can bring what an answer has asked for: it began after that, by whichever clocks."""
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
