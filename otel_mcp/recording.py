"""From finished calls to measurements, session deltas and observers. The only consumer of the queue."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from contextvars import Context
from typing import Any, Final

from opentelemetry.trace import SpanContext
from pydantic_core import to_json

from otel_mcp.content import redactor
from otel_mcp.guard import guarded, quietly
from otel_mcp.identity.keys import Keys
from otel_mcp.identity.session import Session
from otel_mcp.metrics import Batch, Metrics
from otel_mcp.observers.queue import Observers
from otel_mcp.request import Call
from otel_mcp.sessions.delta import CallRecord, SessionDelta
from otel_mcp.sessions.state import ToolCall
from otel_mcp.settings import Settings
from otel_mcp.spans import Spans

REFUSED_STATUS: Final = frozenset({401, 403, 404, 405, 406, 413, 415, 421})
REFUSED_CODES: Final = frozenset({"-32600", "-32700"})
_GUARD: Final = guarded("record")
_MAX_QUEUE: Final = 10_000
_MAX_WAITING: Final = 1000
"""Calls that wait for turns of the loop; more are drained where they end."""
_DRAIN_SHARE: Final = 0.25
"""Part of the flush interval after which the queue is drained: the rest is the store's."""
_SLICE: Final = 4
"""Calls that are drained in one turn of the loop: a fraction of a millisecond."""
_MAX_LINKS: Final = 100
"""Calls that the span of a session leads to."""
_MAX_DIGESTED: Final = 64 * 1024


def was_taken(call: Call) -> bool:
    """Whether the server accepted the message: only then may it open or prolong a session."""
    if call.taken:
        return True
    if call.method == "server/discover" and call.outcome is not None and call.outcome.error_type is not None:
        return False  # A probe that failed: the client goes on with a handshake, in a session of its own.
    status = call.exchange.status
    if status is None or status in REFUSED_STATUS or status >= 500:
        return False
    return call.outcome is None or call.outcome.status_code not in REFUSED_CODES


class Recorder:
    """The queue of finished calls, and what becomes of them."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        spans: Spans,
        keys: Keys,
        observers: Observers,
        submit: Callable[[SessionDelta], None],
    ) -> None:
        self._metrics = metrics
        self._spans = spans
        self._keys = keys
        self._observers = observers
        self._submit = submit
        self._content = settings.store_content
        self._links = settings.session_span
        self._redact = redactor(settings.redaction_hook)
        self._batch = settings.flush_calls
        self._delay = settings.flush_interval * _DRAIN_SHARE
        self._timer_loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._hurries = False
        """That timer is due at once."""
        self._idle_gap = min(settings.session_idle_gap, settings.session_ttl)
        self._queue: deque[Call] = deque(maxlen=_MAX_QUEUE)
        self._lock = threading.Lock()
        self._open = 0
        """Calls of the batch that is being recorded; with what is known of it, only touched under the lock."""
        self._measured = Batch()
        self._deltas: dict[Session, SessionDelta] = {}

    def add(self, call: Call) -> None:
        """Take a finished call. A full batch is drained from the next turn of the loop on, else a timer drains."""
        self._queue.append(call)
        if len(self._queue) >= _MAX_WAITING:
            self.drain()  # Very many have ended within one turn, as where a process stops: none may fall off the end.
        elif (
            self._timer is None
            or self._timer_loop is None
            or self._timer_loop.is_closed()
            or (len(self._queue) >= self._batch and not self._hurries)
        ):
            self._schedule()

    def _schedule(self, *, at_once: bool = False) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            if len(self._queue) >= self._batch:
                self.drain()
            return  # The process is ending: whoever ends it drains.
        if self._timer is not None and self._timer_loop is loop:
            self._timer.cancel()  # It would come later.
        self._timer_loop, self._hurries = loop, at_once or len(self._queue) >= self._batch
        # Not in the context of the request that happens to be the first.
        delay = 0.0 if self._hurries else self._delay
        self._timer = Context().run(loop.call_later, delay, quietly, "record", self._on_timer)

    def _on_timer(self) -> None:
        """Drain a part, so that requests under way do not wait for all of it; the rest in the turns that follow."""
        self._timer, self._hurries = None, False
        drained = self._drain(max(_SLICE, len(self._queue) // 8))
        self._observers.ensure_running()
        if self._queue:
            self._schedule(at_once=drained)

    def drain(self) -> None:
        """Record everything that has finished. From any thread; a second caller leaves it to the first."""
        if self._queue or self._open:
            self._drain(_MAX_QUEUE)

    def _drain(self, most: int) -> bool:
        """Record so many calls, oldest first. Returns whether this caller was the one to do it."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            now = time.time()
            while self._queue and most > 0:
                most -= 1
                self._record(self._queue.popleft(), now)
                if self._open >= self._batch:
                    self._close()
            if not self._queue:
                self._close()
        finally:
            self._lock.release()
        return True

    def _record(self, call: Call, now: float) -> None:
        self._open += 1
        if call.open_span is not None or not call.dispatched:
            self._end_span(call)
        self._metrics.record(call, self._measured)
        self._add_to(self._deltas, call, now)

    def _close(self) -> None:
        """A batch is complete: one delta for each session that its calls belong to."""
        measured, deltas = self._measured, self._deltas
        self._open, self._measured, self._deltas = 0, Batch(), {}
        with _GUARD:
            self._metrics.close(measured)
        for delta in deltas.values():
            self._submit(delta)

    def _end_span(self, call: Call) -> None:
        with _GUARD:
            if call.span_context is None and not call.dispatched:
                self._spans.write(call)
            elif call.open_span is not None:
                self._spans.close(call, call.open_span)

    def _add_to(self, deltas: dict[Session, SessionDelta], call: Call, now: float) -> None:
        with _GUARD:
            if call.session is None or not was_taken(call):
                return
            session = call.session.part_of or call.session
            delta = deltas.get(session)
            if delta is None:
                session.last_activity = max(session.last_activity, now)
                deltas[session] = delta = SessionDelta(session.facts, session.last_activity)
            if self._links and call.method == "tools/call" and call.span_context is not None:
                _link(session, call.span_context)
            if call.id is not None:
                self._count(call, session, delta)

    def _count(self, call: Call, session: Session, delta: SessionDelta) -> None:
        delta.requests += 1
        if call.outcome is not None and call.outcome.error_type is not None:
            delta.errors += 1
        if session.agreement is not None and delta.touch_key is None:
            delta.touch_key = (session.agreement, self._idle_gap)
        if call.method != "tools/call":
            return
        if call.target is None:
            return
        session.worked = True
        delta.call_count += 1
        record = self._call_record(call)
        delta.calls.append(record)
        if self._observers:
            self._observers.deliver(lambda: (tool_call(record), session.state()), record)

    def _call_record(self, call: Call) -> CallRecord:
        context = call.span_context
        traced = context is not None and context.is_valid
        arguments = call.arguments if call.arguments is not None else call.params.get("arguments")
        record = CallRecord(
            call.target or "",
            call.id,
            call.exchange.started_ns / 1e9,
            call.duration,
            call.outcome.error_type if call.outcome else None,
            call.result_bytes,
            self._digest(arguments) if arguments else None,
            f"{context.trace_id:032x}" if context is not None and traced else None,
            f"{context.span_id:016x}" if context is not None and traced else None,
        )
        if self._content:
            record.arguments = self._redact(arguments)
            record.result = self._redact(call.result)
        return record

    def _digest(self, arguments: Any) -> str | None:
        try:
            encoded = to_json(arguments)
        except ValueError:
            return None  # Half a surrogate pair, or too deep: a server may take what cannot be written again.
        return self._keys.digest_bytes(encoded) if len(encoded) <= _MAX_DIGESTED else None


def _link(session: Session, context: SpanContext) -> None:
    if context.trace_flags.sampled:
        session.sampled = session.sampled if session.sampled is not None else deque(maxlen=_MAX_LINKS)
        session.sampled.append(context)


def tool_call(record: CallRecord) -> ToolCall:
    """The public form of a finished call."""
    return ToolCall.model_validate({name: getattr(record, name) for name in CallRecord.__slots__})
