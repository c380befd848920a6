"""Turns finished calls into spans, measurements, session deltas and observations; drains the queue of calls."""

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
"""Maximum number of calls that wait for a timer; more are drained at once, by the call that ended last."""
_MAX_WITH_CONTENT: Final = 64
"""The same if calls keep their arguments and results."""
_DRAIN_SHARE: Final = 0.25
"""Fraction of the flush interval after which the queue is drained."""
_SLICE: Final = 16
"""Calls drained, or records made, in one turn of the loop: this takes a fraction of a millisecond."""
_MEANWHILE: Final = 0.01
"""Seconds until the loop tries again while another thread is recording."""
_MAX_LINKS: Final = 100
"""Maximum number of calls that a session span links to."""
_GIVEN: Final = frozenset({"tools/list", "tools/call", "tasks/result", "prompts/get", "resources/read"})
"""Methods whose results hosts pass to the model."""


class Recorder:
    """Queues finished calls and records them in batches."""

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
        """Start empty after a fork: the calls are the parent's, and one of its threads may have held the lock."""
        self._timer_loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | loops.Timer | None = None
        self._hurries = False
        """Whether the timer is due at once."""
        self._queue: deque[Call] = deque(maxlen=_MAX_QUEUE)
        self._lock = threading.Lock()
        self._instance = ""
        """Name of this process in its telemetry; read late, when there is a tracer provider."""
        self._wanted = False
        """Whether the recording thread has to drain everything."""
        self._open = 0
        """Calls in the current batch. The state of a batch is only touched under the lock."""
        self._deltas: dict[Session, tuple[SessionDelta, deque[Call | CallRecord]]] = {}
        """Delta and newest tool calls of each session; calls for which a document has no room need no record."""
        self._closed: deque[tuple[Session, tuple[SessionDelta, deque[Call | CallRecord]]]] = deque()
        """Deltas of the previous batch, not yet submitted; the next batch begins after them."""
        self.metrics.forget()

    def add(self, call: Call) -> None:
        """Queue a finished call. A full batch is drained from the next turn of the loop on, otherwise by a timer.

        A round is queued once its logical call is known.
        """
        if call.round is not None and call.round.looking:
            call.round.when_known(partial(self.add, call))
            return
        self._queue.append(call)
        waiting = len(self._queue)
        if waiting >= self._most:
            # Many calls ended within one turn, for example when a process stops: drain before the queue is full.
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
            return  # The process is ending, and its last flush drains.
        if self._timer is not None and self._timer_loop is loop:
            self._timer.cancel()  # It is due later.
        self._timer_loop, self._hurries = loop, delay < self._delay
        self._timer = loops.call_later(loop, delay, self._on_timer)

    def _on_timer(self) -> None:
        """Drain a part of the queue, and the rest in later turns, so that requests need not wait for all of it."""
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
        """Record all finished calls. Thread-safe; if another thread is recording, leave it to that one."""
        if self._queue or self._open or self._closed:
            self._wanted = True
            self._drain(0)
        with _GUARD:
            self.metrics.settle()

    def _drain(self, most: int) -> bool:
        """Do up to `most` steps, oldest calls first, or all if `_wanted`. Return whether this thread did them."""
        drained = False
        # Repeats if `_wanted` was set between the last check and the release of the lock.
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
        """Record a call in all signals. An error in one does not affect the others."""
        self._open += 1
        outcome = call.outcome
        try:
            if call.tenant is None and (tenant_of := call.exchange.tenant_of) is not None:
                call.tenant = tenant_of(call.exchange)
            if outcome is None or outcome is FINE or not outcome.failed:
                call.failure = None  # A patch saw a failure, but the app handled it.
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
        """Complete a batch, or continue to: submit one delta for each session of its calls.

        Returns the steps left of `most`; one step makes a record, or submits a delta without records.
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
        """Add a call to the delta of its session."""
        found = self._deltas.get(session)
        if found is None:
            delta = SessionDelta(session.facts, session.last_activity)
            found = self._deltas[session] = delta, deque[Call | CallRecord](maxlen=self._newest)
        delta, newest = found
        started = call.exchange.started_ns / 1e9
        ended = started + call.duration  # The end of this call: by now the session may have ended.
        if ended - session.last_activity >= session.facts.limit:
            session.ended = True  # It expired during this call: the next request with its id asks the store.
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
            # A hash with a key that replicas do not share would count as another caller on each replica.
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
