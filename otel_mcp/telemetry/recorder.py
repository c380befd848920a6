"""From finished calls to spans, measurements, session deltas and observers. The only consumer of the queue."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final

from otel_mcp import loops, semconv
from otel_mcp.guard import guarded, report
from otel_mcp.hashing import KeyedHashes
from otel_mcp.model.call import Call
from otel_mcp.model.delta import CallRecord, SessionDelta
from otel_mcp.model.outcomes import CALLERS_FAULT, was_accepted
from otel_mcp.model.session import Session
from otel_mcp.observers import Observers
from otel_mcp.settings import Settings
from otel_mcp.telemetry.audit import Audit
from otel_mcp.telemetry.content import redactor
from otel_mcp.telemetry.metrics import Metrics
from otel_mcp.telemetry.spans import Spans
from otel_mcp.wire.jsonrpc import FINE

_GUARD: Final = guarded("record")
_MAX_QUEUE: Final = 10_000
_MAX_WAITING: Final = 1000
"""Calls that wait for turns of the loop; more are drained where they end."""
_MAX_WITH_CONTENT: Final = 64
"""The same where they hold their arguments and results."""
_DRAIN_SHARE: Final = 0.25
"""Part of the flush interval after which the queue is drained: the rest is the store's."""
_SLICE: Final = 16
"""Calls that are drained, or records that are made, in one turn of the loop: a fraction of a millisecond."""
_MEANWHILE: Final = 0.01
"""Seconds until the loop looks again for what another thread is recording."""
_MAX_LINKS: Final = 100
"""Calls that the span of a session leads to."""
_GIVEN: Final = frozenset({"tools/list", "tools/call", "tasks/result", "prompts/get", "resources/read"})
"""Methods whose results hosts give to the model."""


class Recorder:
    """The queue of finished calls, and what becomes of them."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        spans: Spans,
        keys: KeyedHashes,
        observers: Observers,
        submit: Callable[[SessionDelta], None],
        audit: Audit | None = None,
    ) -> None:
        self.metrics = metrics
        self._spans = spans
        self._keys = keys
        self._observers = observers if observers else None
        self._submit = submit
        self.audit = audit
        self._batch = settings.flush_calls
        self._delay = settings.flush_interval * _DRAIN_SHARE
        self._content = settings.store_content
        self._links = settings.session_span
        self._newest = settings.max_tool_calls
        self._redact = redactor(settings.redaction_hook)
        self._idle_gap = min(settings.session_idle_gap, settings.session_ttl)
        self._most = min(settings.flush_calls, _MAX_WITH_CONTENT) if settings.store_content else _MAX_WAITING
        self.clear()
        loops.leave_to_parent(self)

    def clear(self) -> None:
        """Start again: after a fork the calls are the parent's, and a thread of its may have held the lock."""
        self._timer_loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | loops.Timer | None = None
        self._hurries = False
        """That timer is due at once."""
        self._queue: deque[Call] = deque(maxlen=_MAX_QUEUE)
        self._lock = threading.Lock()
        self._instance = ""
        """Name of this process in its telemetry, once it is needed: by then there is a tracer provider."""
        self._wanted = False
        """The recording thread goes on until nothing waits."""
        self._open = 0
        """Calls of the batch that is being recorded; with what is known of it, only touched under the lock."""
        self._deltas: dict[Session, tuple[SessionDelta, deque[Call | CallRecord]]] = {}
        """By session, with its newest tool calls: as many as a document has room for, the others need no record."""
        self._closed: deque[tuple[Session, tuple[SessionDelta, deque[Call | CallRecord]]]] = deque()
        """Of the batch before, what is still to be submitted; the next one begins after it."""
        self.metrics.forget()

    def add(self, call: Call) -> None:
        """Take a finished call. A full batch is drained from the next turn of the loop on, else a timer drains.

        A round of another call waits until it is known of which.
        """
        if call.round is not None and call.round.looking:
            call.round.when_known(partial(self.add, call))
            return
        self._queue.append(call)
        waiting = len(self._queue)
        if waiting >= self._most:
            # Very many have ended within one turn, as where a process stops: none may fall off the end.
            self.drain()
            if len(self._queue) >= _MAX_QUEUE:  # Another thread has been recording for very long.
                with _GUARD:
                    if self._queue.popleft().method == "tools/call":
                        self.metrics.store_dropped(1, "full")
                        if self.audit is not None:
                            self.metrics.audit_dropped(1, "full")
        elif (
            self._timer is None
            or self._timer_loop is None
            or not self._timer_loop.is_running()
            or (waiting >= self._batch and not self._hurries)
        ):
            self._schedule(0.0 if waiting >= self._batch else self._delay)

    def _schedule(self, delay: float) -> None:
        if (loop := loops.home()) is None:
            if len(self._queue) >= self._batch:
                self.drain()
            return  # The process is ending: the one that ends it drains.
        if self._timer is not None and self._timer_loop is loop:
            self._timer.cancel()  # It would come later.
        self._timer_loop, self._hurries = loop, delay < self._delay
        self._timer = loops.call_later(loop, delay, self._on_timer)

    def _on_timer(self) -> None:
        """Drain a part, so that requests under way do not wait for all of it; the rest in the turns that follow."""
        try:
            self._timer, self._hurries = None, False
            drained = self._drain(max(_SLICE, len(self._queue) // 8))
            if self._observers is not None:
                self._observers.ensure_running()
            if self._queue or self._open or self._closed:
                self._schedule(0.0 if drained else _MEANWHILE)
        except Exception as failure:
            report("record", failure)

    def drain(self) -> None:
        """Record everything that has finished. From any thread; a second caller leaves it to the first."""
        if self._queue or self._open or self._closed:
            self._wanted = True
            self._drain(0)
        with _GUARD:
            self.metrics.settle()

    def _drain(self, most: int) -> bool:
        """Take so many steps, oldest calls first, or all where that is wanted. Returns whether this caller did it."""
        drained = False
        # Once more where it was wanted while the lock was held, but after the last look.
        while not drained or (self._wanted and (self._queue or self._open or self._closed)):
            if not self._lock.acquire(blocking=False):
                break
            try:
                while most > 0 or self._wanted:
                    if self._queue and self._open < self._batch and not self._closed:
                        most -= 1
                        self._record(self._queue.popleft())
                    elif self._open or self._closed:
                        most = self._close(most)
                    else:
                        self._wanted = False
                        break
            finally:
                self._lock.release()
            drained = True
        return drained

    def _record(self, call: Call) -> None:
        """Record all that a call leaves behind; an error in one part costs no other."""
        self._open += 1
        outcome = call.outcome
        try:
            if call.tenant is None and (tenant_of := call.exchange.tenant_of) is not None:
                call.tenant = tenant_of(call.exchange)
            if outcome is None or outcome is FINE or not outcome.failed:
                call.failure = None  # Whatever a seam has seen, it was mended.
            else:
                self.metrics.classify(call, outcome)
            if call.open_span is not None or not call.dispatched:
                self._spans.finish(call)
        except Exception as failure:
            report("record", failure)
        self.metrics.record(call)
        if call.task is not None:
            with _GUARD:
                self.metrics.tasks.finished(call, call.task.seen)
        try:
            if call.session is not None and (call.accepted or was_accepted(call)):
                self._add_to(call.session.conversation or call.session, call)
        except Exception as failure:
            report("record", failure)
        if self.audit is not None and call.method == "tools/call":
            self.audit.record(call)

    def _close(self, most: int) -> int:
        """Complete a batch, or go on with it: submit one delta for each session that its calls belong to.

        Returns how many of the steps are left; one makes a record, or submits a delta that has none.
        """
        if not self._closed:
            self._open = 0
            self.metrics.close()
            self._closed.extend(self._deltas.items())
            self._deltas.clear()
        while self._closed and (most > 0 or self._wanted):
            most -= 1
            session, (delta, newest) = self._closed[0]
            try:
                if newest:
                    call = newest.popleft()
                    delta.calls.append(call if isinstance(call, CallRecord) else self._call_record(call))
                if not newest:
                    self._closed.popleft()
                    if delta.requests and session.agreement is not None:
                        delta.touch_key = (session.agreement, self._idle_gap)
                    self._submit(delta)
            except Exception as failure:
                report("record", failure)
        return most

    def _add_to(self, session: Session, call: Call) -> None:
        """Add a call to what its session is to be written."""
        found = self._deltas.get(session)
        if found is None:
            delta = SessionDelta(session.facts, session.last_activity)
            found = self._deltas[session] = delta, deque[Call | CallRecord](maxlen=self._newest)
        delta, newest = found
        started = call.exchange.started_ns / 1e9
        ended = started + call.duration  # Its own end: by now the session may have ended.
        if ended - session.last_activity >= session.facts.limit:
            session.ended = True  # Before this call did: what names it next is to be asked about.
        if ended > session.last_activity:
            session.last_activity = delta.last_activity = ended
        session.facts.tenant = session.facts.tenant or call.tenant
        is_tool = call.method == "tools/call"
        if self._links and is_tool:
            self._slow_link(session, call)
        if call.id is None:
            return
        delta.requests += 1
        delta.began = started if started > delta.began else delta.began
        outcome = call.outcome or FINE
        if outcome.error_type is not None and call.failure not in CALLERS_FAULT:
            delta.errors += 1
        if call.method in _GIVEN and call.result_bytes and outcome.status_code is None and outcome.asks is None:
            delta.context += call.result_bytes
            delta.listed += call.result_bytes if call.method == "tools/list" else 0
        if is_tool and call.target is not None:
            session.tool_calls += 1
            delta.call_count += 1
            if delta.first_activity is None or started < delta.first_activity:
                delta.first_activity = started
            caller, address = call.exchange.caller, None if call.exchange.client_is_shared else call.exchange.client
            # One whose hash is by a key that the replicas do not share would be another caller to each.
            if self._keys.is_agreed and (caller is None or caller[1] == self._keys.generation):
                delta.callers.add((caller[2].digest if caller is not None else "") or address or "")
            delta.has_rounds = delta.has_rounds or call.round is not None
            if self._observers is None:
                newest.append(call)
            else:
                newest.append(record := self._call_record(call))
                self._observers.deliver(record, session)

    def _slow_link(self, session: Session, call: Call) -> None:
        if call.span_context is not None and call.span_context.trace_flags.sampled:
            session.sampled = session.sampled if session.sampled is not None else deque(maxlen=_MAX_LINKS)
            session.sampled.append(call.span_context)

    def _call_record(self, call: Call) -> CallRecord:
        context = call.span_context if call.span_context is not None and call.span_context.is_valid else None
        arguments = call.arguments if call.arguments is not None else call.params.get("arguments")
        self._instance = self._instance or self._spans.instance()
        record = CallRecord(
            call.target or "",
            call.id,
            call.exchange.started_ns / 1e9,
            call.duration,
            call.outcome.error_type if call.outcome else None,
            call.failure,
            call.result_bytes,
            self._keys.digest_json(arguments) if arguments else None,
            f"{context.trace_id:032x}" if context is not None else None,
            f"{context.span_id:016x}" if context is not None else None,
            self._instance,
        )
        if call.round is not None:
            record.answers, record.waiting = call.round.key, call.round.waits
        if call.task is not None:
            record.task = call.task.attributes.get(semconv.TASK_ID)
        if self._content:
            record.arguments = self._redact(arguments)
            record.result = self._redact(call.result)
        return record
