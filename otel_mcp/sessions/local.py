"""Documents of the user's while the store is away."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from otel_mcp.sessions.delta import Flush, SessionDelta
from otel_mcp.sessions.memory import MemoryStore
from otel_mcp.sessions.state import SessionState
from otel_mcp.settings import Settings


class LocalDocuments:
    """What ``save()`` was given and the store has not got; bounded like everything in memory."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._unsaved: OrderedDict[str, SessionState] = OrderedDict()

    def __len__(self) -> int:
        return len(self._unsaved)

    def keep(self, state: SessionState) -> None:
        """Keep a document until the store is back."""
        self._unsaved[state.session_id] = state.model_copy(deep=True)
        self._unsaved.move_to_end(state.session_id)
        while len(self._unsaved) > self._settings.max_sessions:
            self._unsaved.popitem(last=False)

    def drop(self, session_id: str) -> bool:
        """Forget a document; `False` where there is none."""
        return self._unsaved.pop(session_id, None) is not None

    def take(self) -> SessionState | None:
        """A document to save, the oldest first."""
        return self._unsaved.popitem(last=False)[1] if self._unsaved else None

    def load(self, session_id: str, waiting: Iterable[SessionDelta]) -> SessionState | None:
        """The document as far as this process knows it: what was saved, and what waits over it."""
        memory = MemoryStore(self._settings)
        saved = self._unsaved.get(session_id)
        if saved is not None:
            memory.put(saved)
        for sequence, delta in enumerate(waiting):
            memory.write(Flush(delta, "", sequence))
        return memory.read(session_id)
