"""Deltas that wait for the store, one a session, in bounded memory.

The newest calls of each session are kept, counts of all of them. When memory
runs out, what tools were given and gave goes first (where it is kept at all), then
call records (oldest first; they are still counted), then whole sessions
(oldest first; their calls are dropped, and counted as such).
"""

from __future__ import annotations

import threading
from collections.abc import Container
from dataclasses import replace
from typing import Final

from pydantic_core import to_json

from otel_mcp.model.delta import CallRecord, SessionDelta
from otel_mcp.settings import Settings

_FULL: Final = 16
"""So many times the calls that are worth a flush in one session are worth one in all together."""
_MAX_CONTENT: Final = 32 * 1024 * 1024
"""Bytes of JSON of arguments and results that may wait."""
_RECORD: Final = 4096
"""So many bytes of content count as another record where it matters how long writing takes."""


class Coalescer:
    """Thread-safe; holds its lock for microseconds."""

    def __init__(self, settings: Settings) -> None:
        self._cap = settings.max_tool_calls
        self._max_records = settings.max_pending_calls
        self._max_sessions = settings.max_sessions
        self._enough = settings.flush_calls
        self.clear()

    def clear(self) -> None:
        """Forget everything, the lock too: it may have been held when the process forked."""
        self._lock = threading.Lock()
        self._pending: dict[str, SessionDelta] = {}
        """By the id of the session, and also its user where others speak under that id: they are not of one mind."""
        self._records = 0
        self._content = 0
        self._dropped = 0
        self.calls = 0
        """Calls that wait, with and without a record."""

    def __len__(self) -> int:
        return len(self._pending)

    def __contains__(self, session_id: str) -> bool:
        return session_id in self._pending

    def add(self, delta: SessionDelta) -> bool:
        """Merge `delta` into what waits; it belongs to the coalescer from here on.

        Returns:
            Whether it is worth writing at once: an end, or a session with many
            calls. Many sessions with a call each are not, since each of them
            costs what the many calls of one cost together.
        """
        first = delta.last_activity if delta.first_activity is None else delta.first_activity
        for call in delta.calls:
            if call.started_at < first:
                first = call.started_at
            if call.arguments is not None or call.result is not None:
                delta.content += _size(call)
        session_id = delta.facts.session_id
        with self._lock:
            self._content += delta.content
            self.calls += delta.call_count
            self._records += len(delta.calls)
            key, waiting = session_id, self._pending.get(session_id)
            if waiting is not None and waiting.facts.principal != delta.facts.principal:
                key = f"{session_id} {delta.facts.principal}"
                waiting = self._pending.get(key)
            if waiting is None:
                delta.first_activity = first
                self._pending[key] = waiting = delta
                if len(self._pending) > self._max_sessions:
                    self._drop_session()
            else:
                _merge(waiting, delta, first)
            if len(waiting.calls) > 2 * self._cap:
                self._trim(waiting)
            if self._records > self._max_records:
                self._drop_records()
            if self._content > _MAX_CONTENT:
                self._drop_content()
            return waiting.call_count >= self._enough or self.calls >= _FULL * self._enough or waiting.ended is not None

    def take(self, limit: int, busy: Container[str] = (), *, records: int | None = None) -> list[SessionDelta]:
        """Up to `limit` sessions to write, those that wait longest first, none of `busy`.

        And no more once they have `records` call records together: these are what takes time to write.
        """
        taken: list[SessionDelta] = []
        ids: set[str] = set()
        with self._lock:
            for key, delta in list(self._pending.items()):
                session_id = delta.facts.session_id
                if session_id in busy or session_id in ids:
                    continue
                ids.add(session_id)
                taken.append(self._remove(key))
                if records is not None:
                    records -= len(taken[-1].calls) + taken[-1].content // _RECORD
                if len(taken) == limit or (records is not None and records <= 0):
                    break
        return taken

    def waiting(self, session_id: str) -> SessionDelta | None:
        """What waits of one session."""
        return self._pending.get(session_id)

    def discard(self, session_id: str) -> None:
        """Forget what waits of one session."""
        with self._lock:
            if session_id in self._pending:
                self._remove(session_id)

    def take_dropped(self) -> int:
        """Calls of dropped sessions since this was asked last."""
        with self._lock:
            dropped, self._dropped = self._dropped, 0
            return dropped

    def _remove(self, key: str) -> SessionDelta:
        delta = self._pending.pop(key)
        self.calls -= delta.call_count
        self._records -= len(delta.calls)
        self._content -= delta.content
        return delta

    def _trim(self, delta: SessionDelta) -> None:
        self._records -= len(delta.calls) - self._cap
        del delta.calls[: -self._cap]
        self._weigh(delta)

    def _weigh(self, delta: SessionDelta) -> None:
        if delta.content:
            before, delta.content = delta.content, sum(_size(call) for call in delta.calls)
            self._content += delta.content - before

    def _drop_content(self) -> None:
        for delta in self._pending.values():
            if delta.content:
                # Copies: observers may have still to look at the others.
                delta.calls = [replace(call, arguments=None, result=None) for call in delta.calls]
                self._content -= delta.content
                delta.content = 0
            if self._content <= _MAX_CONTENT * 3 // 4:
                return

    def _drop_session(self) -> None:
        self._dropped += self._remove(next(iter(self._pending))).call_count

    def _drop_records(self) -> None:
        # A quarter at once, so that the search for the oldest is rare.
        excess = self._records - self._max_records * 3 // 4
        started = sorted(call.started_at for delta in self._pending.values() for call in delta.calls)
        limit = started[excess - 1]
        for delta in self._pending.values():
            kept = [call for call in delta.calls if call.started_at > limit]
            self._records -= len(delta.calls) - len(kept)
            delta.calls = kept
            self._weigh(delta)


def _size(call: CallRecord) -> int:
    """Bytes of JSON of what the tool was given and gave; about, where it is no JSON."""
    try:
        return len(to_json((call.arguments, call.result), serialize_unknown=True))
    except ValueError:
        return call.result_bytes or _RECORD


def _merge(waiting: SessionDelta, delta: SessionDelta, first: float) -> None:
    if delta.facts is not waiting.facts:
        waiting.facts = waiting.facts.with_news(delta.facts)
    waiting.last_activity = max(waiting.last_activity, delta.last_activity)
    waiting.first_activity = first if waiting.first_activity is None else min(waiting.first_activity, first)
    waiting.requests += delta.requests
    waiting.errors += delta.errors
    waiting.call_count += delta.call_count
    waiting.calls += delta.calls
    waiting.content += delta.content
    waiting.ended = waiting.ended or delta.ended
    waiting.touch_key = delta.touch_key or waiting.touch_key
