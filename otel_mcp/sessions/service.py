"""Offers sessions to the rest of the package: submit deltas, look up ids, read and write documents.

On the path of a request only lookups wait for the store, 50 ms at most in total. The
parts do the work: `buffer` keeps deltas, `flusher` writes them, `worker` runs both in
the background, `lookups` asks the store.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from asyncio import get_running_loop
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from otel_mcp import loops
from otel_mcp.guard import guarded, quietly, report
from otel_mcp.model.delta import Known, SessionDelta, SessionFacts
from otel_mcp.model.session import Refusal
from otel_mcp.model.state import SessionState
from otel_mcp.sessions.buffer import Buffer
from otel_mcp.sessions.documents import SessionDocuments
from otel_mcp.sessions.flusher import Flusher
from otel_mcp.sessions.health import SessionEvents, StoreHealth
from otel_mcp.sessions.lookups import Lookups, SharedKey
from otel_mcp.sessions.worker import Worker
from otel_mcp.settings import Settings
from otel_mcp.store import choose, is_divided
from otel_mcp.store.base import ProducerId, SessionStore
from otel_mcp.store.memory import MemoryStore
from otel_mcp.types import Asker

logger = logging.getLogger("otel_mcp")
T = TypeVar("T")


class Sessions:
    """Connects the parts that keep this process's sessions in the configured store."""

    def __init__(self, settings: Settings, events: SessionEvents, *, store: SessionStore | None = None) -> None:
        self._settings = settings
        self._events = events
        self._given = store
        if store is None and settings.redis_url is None:
            logger.warning(
                "otel_mcp: no Redis is configured (OTEL_PYTHON_MCP_REDIS_URL): "
                "sessions live in the memory of this process only"
            )
        self._parents: list[SessionStore] = []
        """Stores of parent processes, referenced so that their connections are not closed in this fork."""
        self._build()
        loops.leave_to_parent(self)

    def _build(self) -> None:
        """Build the parts, which hold the state of this process."""
        settings, events = self._settings, self._events
        self._producer = ProducerId()
        self._store: SessionStore = choose(settings, self._producer) if self._given is None else self._given
        self._in_memory = isinstance(self._store, MemoryStore)
        self.buffer = Buffer(settings)
        """Deltas to write."""
        self._health = StoreHealth(events, divided=is_divided(settings))
        self._flusher = Flusher(settings, self.buffer, self._store, events, self._producer, self._health)
        self._lookups = Lookups(self._health)
        self._documents = SessionDocuments(settings, self._store, self._flusher, self._health)
        self.shared_key = SharedKey(settings.hash_key, self._store, events, self._health)
        self.worker = Worker(
            settings, self._store, events, self._health, self._flusher, self._documents, self._lookups, self.shared_key
        )
        self._turnover = loops.Turnover()
        self._loops: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()
        """Loops that have served since their last `aclose`."""

    def clear(self) -> None:
        """Start with new parts after a fork: calls, task, connections and locks belong to the parent."""
        self._parents.append(self._store)
        self.worker.clear()
        self.buffer.pending.clear()
        self._flusher.frozen.clear()
        key = self.shared_key
        self._build()
        self.shared_key.take_over(key)

    # Submitting: thread-safe; never waits, never raises.

    def submit(self, delta: SessionDelta) -> None:
        """Buffer a delta. The caller must not use it afterwards."""
        try:
            worker, callers = self.worker, self._flusher.callers
            if not delta.callers <= callers.counted or delta.last_activity >= callers.until:
                callers.add(delta.callers, self.shared_key.secret)
                self._flusher.has_news = True
            urgent = self.buffer.add(delta)
            if not worker.woken or (urgent and not worker.asked):
                worker.notify(now=urgent and not self._health.is_away)
        except Exception as error:
            report("session submit", error)

    def refused(self, refusal: Refusal) -> None:
        """Note a request that the server refused because it does not know the session."""
        with guarded("session refused"):
            if self._flusher.interruptions.refused(refusal) and not self.worker.woken:
                self.worker.notify()

    def follow_tasks(self) -> None:
        """Make the background task write news of tasks. Thread-safe."""
        self._flusher.tasks.due = True
        if not self.worker.woken:
            self.worker.notify()

    def list_catalogues(self) -> None:
        """Make the background task write a newly listed catalogue. Thread-safe."""
        self.worker.listed()

    # The background task.

    def ensure_running(self) -> None:
        """Ensure that the background task runs: on the running loop, another one of the host, or our own."""
        try:
            if self.worker.loop() is get_running_loop():
                return
        except RuntimeError:
            pass
        with guarded("session background"):
            self._run_at_home(loops.home() or loops.own())

    def _run_at_home(self, loop: asyncio.AbstractEventLoop) -> None:
        if self.worker.loop() is loop:
            return
        if loops.elsewhere() is None and self._turnover.is_high(loop):
            loop = loops.own()
        self._loops.add(loop)
        if loops.running() is loop:
            self.worker.start(loop)
        else:
            loop.call_soon_threadsafe(quietly, "session background", lambda: self.worker.start(loop))

    @property
    def is_running(self) -> bool:
        """Whether requests have come since the last `aclose`."""
        return self.worker.loop() is not None

    async def flush(self) -> None:
        """Flush now, unless the breaker is open."""
        if not self._health.wait:
            with guarded("session flush"):
                await self._flusher.flush()

    async def aclose(self, timeout: float = 2.0) -> None:
        """Flush within `timeout` seconds, and stop; the next request starts again.

        The rest is counted as dropped, unless another loop of this process still serves.
        """
        self._turnover.forget()
        await self.worker.aclose(timeout)
        self._loops.discard(get_running_loop())
        if not any(loop.is_running() for loop in list(self._loops)):
            self._flusher.abandon()

    def flush_at_exit(self) -> None:
        """Flush within two seconds after the last loop has stopped."""
        with guarded("last session flush"):
            self.worker.write_at_exit()

    # Documents: the public API.

    async def save(self, state: SessionState) -> None:
        """Write the user's document at once; during an outage, keep it in memory and write it later."""
        await self._document(state.session_id, lambda: self._documents.save(state))

    async def load(self, session_id: str) -> SessionState | None:
        """Read the document, with this process's calls; during an outage, return what this process knows."""
        return await self._document(session_id, lambda: self._documents.load(session_id))

    async def get_or_create(self, session_id: str, *, user_agent: str | None = None) -> SessionState:
        """Read the document, or create it."""
        return await self._document(
            session_id, lambda: self._documents.get_or_create(session_id, user_agent=user_agent)
        )

    async def delete(self, session_id: str) -> bool:
        """End a session and delete its document at once; return whether it existed."""
        return await self._document(session_id, lambda: self._documents.delete(session_id))

    async def _document(self, session_id: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        self.buffer.release(session_id)
        try:
            return await loops.at_home(work)
        finally:
            self._wake()

    # Lookups: an `asker` (a request) waits for 50 ms at most, over all its lookups.

    async def describe(self, session_id: str, asker: Asker | None = None) -> Known | None:
        """Describe an id that is new to this process; `None` = unknown."""
        return await self._ask("recall", session_id, lambda: self._store.describe(session_id), None, asker)

    async def bind(self, facts: SessionFacts) -> None:
        """Publish the owner and the client of a session after its handshake."""
        await self._ask("bind", facts.session_id, lambda: self._store.bind(facts), None)

    async def get(self, key: str, asker: Asker | None = None) -> str | None:
        """Return the agreed value of `key`; `None` = none or unknown."""
        return await self._ask("consult", key, lambda: self._store.get(key), None, asker)

    async def get_or_set(self, key: str, candidate: str, ttl: float, asker: Asker | None = None) -> str:
        """Return the value of `key` on all replicas, set to `candidate` if there is none; `candidate` if unknown."""
        return await self._ask("agree", key, lambda: self._store.get_or_set(key, candidate, ttl), candidate, asker)

    async def set_value(self, key: str, value: str, ttl: float) -> None:
        """Set the value of `key` on all replicas; do nothing during an outage."""
        await self._ask("agree", f"{key} {value}", lambda: self._store.set_value(key, value, ttl), None)

    async def get_or_set_successor(
        self, old_id: str, candidate: str, user: str | None = None, asker: Asker | None = None
    ) -> str:
        """Return the session that continues `old_id` on all replicas; `candidate` if unknown."""
        # Users do not share an answer: the session may belong to one of them only.
        key = old_id if user is None else f"{old_id} {user}"
        return await self._ask(
            "succeed", key, lambda: self._store.get_or_set_successor(old_id, candidate, user), candidate, asker
        )

    async def hash_key(self, asker: Asker | None = None) -> bytes:
        """Return the key of our hashes (see `SharedKey`); ask the store if it is not agreed yet."""
        if not self.shared_key.is_agreed:
            agreed = await self._ask("agree", self.shared_key.name, self.shared_key.ask, None, asker)
            if agreed is not None:
                self.shared_key.learn(agreed)
            else:
                self.worker.notify(now=not self._health.is_away)
        return self.shared_key.secret

    async def _ask(
        self,
        operation: str,
        key: str,
        question: Callable[[], Awaitable[T]],
        otherwise: T,
        asker: Asker | None = None,
    ) -> T:
        if self._health.is_away:
            return otherwise
        if self._in_memory:
            return await question()
        answer, home, was_slow = otherwise, loops.elsewhere(), self._health.is_slow
        if home is not None and loops.running() is None:
            return otherwise  # Requests on trio do not wait for the store; replicas agree later.
        with guarded("session lookup"):
            asked = self._lookups.ask(operation, key, question, otherwise, asker)
            if home is None:
                answer = await asked
            else:
                answer = await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(asked, home))
            self._wake(now=self._health.is_slow and not was_slow)
        return answer

    def _wake(self, *, now: bool = False) -> None:
        """Wake the task if the store is degraded, so that it probes the store."""
        if now or (self.degraded and not self.worker.woken):
            self.worker.notify(now=now)

    # The state of the store.

    @property
    def is_shared(self) -> bool:
        """Whether other processes may use the same store."""
        return not self._in_memory

    @property
    def degraded(self) -> bool:
        """Whether lookups are answered locally, since the store is away or slow."""
        return self._health.is_away or self._health.is_slow

    @property
    def active(self) -> int | None:
        """Number of live sessions in all processes; `None` = unknown."""
        return None if self._health.is_away else self._flusher.active

    @property
    def callers(self) -> int | None:
        """Number of today's callers in all processes; `None` = unknown."""
        return None if self._health.is_away else self._flusher.callers.number

    @property
    def local(self) -> int:
        """Number of sessions in this process's memory: without a store, or not yet written."""
        held = len(self._store) if isinstance(self._store, MemoryStore) else 0
        sent = sum(1 for session_id in list(self._flusher.frozen) if session_id not in self.buffer.pending)
        return held + len(self.buffer.pending) + sent + len(self._documents.unwritten)

    @property
    def pending(self) -> int:
        """Number of tool calls that the store has not confirmed."""
        return self._flusher.calls
