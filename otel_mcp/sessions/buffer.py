"""Buffers deltas for the store, one per session, in bounded memory.

Keeps records of the newest calls of each session, and counts all calls. When memory
runs out, it removes arguments and results first (if they are kept at all), then
call records (oldest first; they are still counted), then whole sessions
(oldest first; their calls are counted as dropped).

Some hosts open a transport session for every call of a conversation. So the buffer
holds a new session until its first tool call, or for `Buffer.hold_time`: only that
call shows whether it belongs to a conversation, and then no session begins.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Container
from dataclasses import replace
from math import inf
from typing import Final

from pydantic_core import to_json

from otel_mcp.model.delta import CallRecord, SessionDelta, SessionFacts
from otel_mcp.settings import Settings

_FULL: Final = 4
"""Flush early at this many times `flush_calls`, over all sessions."""
_MAX_CONTENT: Final = 32 * 1024 * 1024
"""Maximum bytes of JSON of buffered arguments and results."""
_RECORD: Final = 4096
"""Bytes of content that take as long to write as one call record."""
_MAX_HELD: Final = 1000
"""Maximum number of held sessions."""
_HANDSHAKE: Final = 2.0
"""Flush intervals for which a new session is held."""


class Buffer:
    """Merges deltas until they are taken. Thread-safe; holds its lock for microseconds."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._cap = settings.max_tool_calls
        self._max_records = settings.max_pending_calls
        self._max_sessions = settings.max_sessions
        self._enough = settings.flush_calls
        self._clock = clock
        self.hold_time = _HANDSHAKE * settings.flush_interval
        """Seconds for which a session is held after its handshake."""
        self._lock = threading.Lock()
        self.pending: dict[str, SessionDelta] = {}
        """By session id; by session id and user if two users share an id, since their facts must not merge."""
        self._held: dict[str, float] = {}
        """Held sessions without a tool call, and until when (seconds of the clock)."""
        self._records = 0
        self._content = 0
        self.dropped = 0
        """Calls of dropped sessions, not yet reported."""
        self.calls = 0
        """Buffered calls, with and without a record."""

    def add(self, delta: SessionDelta) -> bool:
        """Merge `delta` into the delta of its session. The caller must not use it afterwards.

        Returns:
            Whether to flush at once: after an end, or many calls. The limit for one
            session is lower: writing its many calls costs as much as writing one
            call of one session.
        """
        first = delta.last_activity if delta.first_activity is None else delta.first_activity
        for call in delta.calls:
            if call.started_at < first:
                first = call.started_at
            if call.arguments is not None or call.result is not None:
                delta.content += _size(call)
        key = delta.facts.session_id
        with self._lock:
            if self._held and (delta.call_count or delta.ended is not None):
                self._held.pop(key, None)
            self._content += delta.content
            self.calls += delta.call_count
            self._records += len(delta.calls)
            waiting = self.pending.get(key)
            if waiting is not None and waiting.facts.principal != delta.facts.principal:
                key = f"{key} {delta.facts.principal}"
                waiting = self.pending.get(key)
            if waiting is None:
                delta.first_activity = first
                self.pending[key] = waiting = delta
                if len(self.pending) > self._max_sessions:
                    self.dropped += self._remove(next(iter(self.pending))).call_count
            else:
                _merge(waiting, delta, first)
            if len(waiting.calls) > 2 * self._cap:
                self._records -= len(waiting.calls) - self._cap
                del waiting.calls[: -self._cap]
                self._weigh(waiting)
            if self._records > self._max_records:
                self._drop_records()
            if self._content > _MAX_CONTENT:
                self._drop_content()
            return waiting.call_count >= self._enough or self.calls >= _FULL * self._enough or waiting.ended is not None

    def hold(self, session_id: str) -> None:
        """Hold a new session until its first tool call, or for `hold_time`."""
        now = self._clock()
        with self._lock:
            while self._held and (oldest := next(iter(self._held.items())))[1] <= now:
                del self._held[oldest[0]]
            if session_id not in self.pending and len(self._held) < _MAX_HELD:
                self._held.setdefault(session_id, now + self.hold_time)

    def hand_over(self, session_id: str, facts: SessionFacts, *, called: bool = False) -> bool:
        """Move the held delta of a session to the session with these facts. Return `False` if there is none.

        With `called`, also move a delta that is no longer held because of a tool call.
        """
        with self._lock:
            until = self._held.pop(session_id, None)
            if called and session_id in self.pending:
                until = inf
            if until is None or (until <= self._clock() and session_id not in self.pending):
                return False  # Not held, or already written.
            held = self._remove(session_id) if session_id in self.pending else None
        if held is not None:
            held.facts = facts
            self.add(held)
        return True

    def release(self, session_id: str | None = None) -> None:
        """Stop holding this session; without an id, stop holding all (before the last flush)."""
        with self._lock:
            if session_id is None:
                self._held.clear()
            else:
                self._held.pop(session_id, None)

    def take(self, limit: int, busy: Container[str] = (), records: float = inf) -> list[SessionDelta]:
        """Take the deltas of up to `limit` sessions, oldest first. Skip held sessions and those in `busy`.

        Stop early after `records` call records: these take most of the time to write.
        """
        taken: list[SessionDelta] = []
        ids: set[str] = set()
        now = self._clock()
        with self._lock:
            for key, delta in list(self.pending.items()):
                session_id = delta.facts.session_id
                if session_id in busy or session_id in ids or self._held.get(session_id, 0.0) > now:
                    continue
                ids.add(session_id)
                taken.append(delta)
                del self.pending[key]
                self.calls -= delta.call_count
                self._records -= len(delta.calls)
                self._content -= delta.content
                records -= len(delta.calls) + delta.content // _RECORD
                if len(taken) == limit or records <= 0:
                    break
        return taken

    def discard(self, session_id: str) -> None:
        """Remove the delta of one session without counting it."""
        with self._lock:
            if session_id in self.pending:
                self._remove(session_id)

    def take_dropped(self) -> int:
        """Return the number of calls of dropped sessions, and reset it."""
        with self._lock:
            dropped, self.dropped = self.dropped, 0
            return dropped

    def _remove(self, key: str) -> SessionDelta:
        delta = self.pending.pop(key)
        self.calls -= delta.call_count
        self._records -= len(delta.calls)
        self._content -= delta.content
        return delta

    def _weigh(self, delta: SessionDelta) -> None:
        if delta.content:
            before, delta.content = delta.content, sum(_size(call) for call in delta.calls)
            self._content += delta.content - before

    def _drop_content(self) -> None:
        for delta in self.pending.values():
            if delta.content:
                # Copies: observers may still read the originals.
                delta.calls = [replace(call, arguments=None, result=None) for call in delta.calls]
                self._content -= delta.content
                delta.content = 0
            if self._content <= _MAX_CONTENT * 3 // 4:
                return

    def _drop_records(self) -> None:
        # Removes a quarter at once, so that the search for the oldest records is rare.
        excess = self._records - self._max_records * 3 // 4
        started = sorted(call.started_at for delta in self.pending.values() for call in delta.calls)
        limit = started[excess - 1]
        for delta in self.pending.values():
            kept = [call for call in delta.calls if call.started_at > limit]
            self._records -= len(delta.calls) - len(kept)
            delta.calls = kept
            self._weigh(delta)


def _size(call: CallRecord) -> int:
    """Return the bytes of the JSON of arguments and result; an estimate if they cannot be JSON."""
    try:
        return len(to_json((call.arguments, call.result), serialize_unknown=True))
    except ValueError:
        return call.result_bytes or _RECORD


def _merge(waiting: SessionDelta, delta: SessionDelta, first: float) -> None:
    if delta.facts is not waiting.facts:
        waiting.facts = waiting.facts.with_news(delta.facts)
    waiting.last_activity = max(waiting.last_activity, delta.last_activity)
    waiting.first_activity = first if waiting.first_activity is None else min(waiting.first_activity, first)
    waiting.began = max(waiting.began, delta.began)
    waiting.requests += delta.requests
    waiting.errors += delta.errors
    waiting.call_count += delta.call_count
    waiting.calls += delta.calls
    waiting.has_rounds = waiting.has_rounds or delta.has_rounds
    waiting.context += delta.context
    waiting.listed += delta.listed
    waiting.content += delta.content
    waiting.ended = waiting.ended or delta.ended
    waiting.touch_key = delta.touch_key or waiting.touch_key
