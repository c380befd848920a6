"""Documents of the user's while the store is away."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from otel_mcp.model.delta import Flush, SessionDelta
from otel_mcp.model.state import SessionState
from otel_mcp.settings import Settings
from otel_mcp.store.memory import MemoryStore


class LocalDocuments:
    """What ``save()`` and ``delete()`` were asked for and the store does not know yet; bounded."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.clear()

    def clear(self) -> None:
        """Forget all: after a fork they are the parent's."""
        self._wishes: OrderedDict[str, SessionState | float] = OrderedDict()
        """A document to save, or when (Unix seconds) one was deleted."""

    def __len__(self) -> int:
        return len(self._wishes)

    def keep(self, state: SessionState) -> None:
        """Save this later."""
        self._wish(state.session_id, state.model_copy(deep=True))

    def doom(self, session_id: str, at: float) -> None:
        """Delete this later; `at` is when that was asked for."""
        self._wish(session_id, at)

    def is_doomed(self, session_id: str) -> bool:
        """Whether it is to be deleted."""
        return isinstance(self._wishes.get(session_id), float)

    def _wish(self, session_id: str, wanted: SessionState | float) -> None:
        self._wishes[session_id] = wanted
        self._wishes.move_to_end(session_id)
        while len(self._wishes) > self._settings.max_sessions:
            self._wishes.popitem(last=False)

    def fulfilled(self, session_id: str) -> None:
        """The store has been updated, or need not be any more."""
        self._wishes.pop(session_id, None)

    def oldest(self) -> tuple[str, SessionState | float] | None:
        """The next wish to fulfil."""
        return next(iter(self._wishes.items()), None)

    def load(self, session_id: str, waiting: Iterable[SessionDelta]) -> SessionState | None:
        """The document as far as this process knows it: what was saved, and what waits over it."""
        memory = MemoryStore(self._settings)
        wanted = self._wishes.get(session_id)
        if isinstance(wanted, SessionState):
            memory.put(wanted)
        elif wanted is not None:
            return None
        for sequence, delta in enumerate(waiting):
            memory.write(Flush(delta, "", sequence))
        return memory.read(session_id)
