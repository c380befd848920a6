"""Keeps back for a moment what a transport session does before its first tool call.

Some hosts open one for every call of a conversation. The call, which comes
next, says so: then there is nothing to begin, and nothing to end.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from otel_mcp import loops
from otel_mcp.guard import guarded
from otel_mcp.model.delta import SessionDelta, SessionFacts

_MOST: Final = 1000
"""Handshakes that are kept back at once."""


class Handshakes:
    """Stands before the coalescer: everything that is submitted passes here. Thread-safe."""

    def __init__(self, submit: Callable[[SessionDelta], None], delay: float) -> None:
        """Begin with nothing kept; `delay` in seconds."""
        self._submit = submit
        self.delay = delay
        self.clear()

    def clear(self) -> None:
        """Forget everything: after a fork it is the parent's."""
        self._lock = threading.Lock()
        self._held: dict[str, list[SessionDelta]] = {}

    def begin(self, session_id: str) -> None:
        """A client shakes hands: keep back what comes of this session until it works, or the time is over."""

        def over() -> None:
            with guarded("handshake"):
                self.release(session_id)

        with guarded("handshake"):
            loop = loops.home()
            with self._lock:
                if loop is None or session_id in self._held or len(self._held) >= _MOST:
                    return
                self._held[session_id] = []
            loops.call_later(loop, self.delay, over)

    def submit(self, delta: SessionDelta) -> None:
        """Hand over what happened in a session."""
        if self._held:
            session_id = delta.facts.session_id
            with self._lock:
                held = self._held.get(session_id)
                if held is not None and not delta.call_count and delta.ended is None:
                    held.append(delta)
                    return
            self.release(session_id)
        self._submit(delta)

    def release(self, session_id: str) -> None:
        """It is a session of its own."""
        with self._lock:
            held = self._held.pop(session_id, ())
        for delta in held:
            self._submit(delta)

    def hand_over(self, session_id: str, facts: SessionFacts) -> bool:
        """It is part of the session with these facts; `False` where nothing was kept back."""
        with self._lock:
            held = self._held.pop(session_id, None)
        for delta in held or ():
            delta.facts = facts
            self._submit(delta)
        return held is not None

    def release_all(self) -> None:
        """Keep nothing any longer: the process is about to end."""
        for session_id in list(self._held):
            self.release(session_id)
