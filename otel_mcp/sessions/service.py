"""Sessions as the rest of the package uses them: submit what happened, ask what is known.

Nothing here waits for the store on the path of a request but the lookups, 50
ms at most for all of a request. The work is done by the parts: `coalescer` keeps, `flusher`
writes, `background` says when, `lookups` asks, a store remembers.
"""

from __future__ import annotations

import asyncio
import logging
import os
import weakref
from asyncio import get_running_loop
from collections import Counter
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Final, TypeVar

from otel_mcp import loops
from otel_mcp.guard import guarded, quietly, report
from otel_mcp.model.delta import Known, SessionDelta, WriteResult
from otel_mcp.model.state import SessionState
from otel_mcp.sessions.buffer import Coalescer
from otel_mcp.sessions.documents import SessionDocuments
from otel_mcp.sessions.events import SessionEvents
from otel_mcp.sessions.exit_loop import is_running, run_alone
from otel_mcp.sessions.flusher import Flusher
from otel_mcp.sessions.handshakes import Handshakes
from otel_mcp.sessions.health import PATIENCE, StoreHealth
from otel_mcp.sessions.lookups import Lookups
from otel_mcp.sessions.shared_key import SharedKey
from otel_mcp.sessions.sweeper import Sweeper
from otel_mcp.sessions.worker import Background
from otel_mcp.settings import Settings
from otel_mcp.store.base import ProducerId, SessionStore, StoreDown
from otel_mcp.store.factory import choose, is_divided
from otel_mcp.store.memory import MemoryStore
from otel_mcp.types import Asker

logger = logging.getLogger("otel_mcp")
T = TypeVar("T")

_HANDSHAKE: Final = 2.0
"""Flush intervals that a call has to follow its handshake, and to say that both are part of a conversation."""
_PROBE: Final = "probe"
_PROBE_KEPT: Final = 0.001
"""Seconds: gone before the next probe, which has to write again."""
_EXIT: Final = 2.0
"""Seconds that the end of the process may wait for the store."""


class Sessions:
    """The sessions of this process, in the store that the settings name."""

    def __init__(self, settings: Settings, events: SessionEvents, *, store: SessionStore | None = None) -> None:
        self._settings = settings
        self._process = ProducerId()
        self._store: SessionStore = choose(settings, self._process) if store is None else store
        self._in_memory = isinstance(self._store, MemoryStore)
        self._coalescer = Coalescer(settings)
        self.handshakes = Handshakes(self._take, _HANDSHAKE * settings.flush_interval)
        self._health = StoreHealth(events, divided=is_divided(settings))
        self._flusher = Flusher(self._coalescer, self._store, events, self._process, self._health)
        self._sweeper = Sweeper(settings, self._flusher, self._store, self._health)
        self._lookups = Lookups(events, self._health)
        self._documents = SessionDocuments(settings, self._store, self._coalescer, self._flusher, events, self._health)
        self._background = Background(
            interval=settings.flush_interval,
            sweep_interval=settings.sweep_interval,
            flush=self._turn,
            flush_last=self._last_turn,
            sweep=self._sweep,
            close=self._close,
        )
        # An outage may be noticed anywhere; this task notices its end, also where no request comes any more.
        self._health.on_outage.append(lambda: self._background.notify(now=False))
        self._hash_key = SharedKey(settings.hash_key, self._store, self._health)
        self._told = not self._in_memory
        self._turnover = loops.Turnover()
        self.on_end: list[Callable[[], None]] = []
        """Called when what runs on the running loop is to end."""
        self._loops: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()
        """Those that have served since they were closed last."""
        _instances.add(self)

    def submit(self, delta: SessionDelta) -> None:
        """Hand over what happened; `delta` belongs to us from here on. From any thread; never waits, never raises."""
        try:
            self.handshakes.submit(delta)
        except Exception as error:
            report("session submit", error)

    def _take(self, delta: SessionDelta) -> None:
        try:
            background = self._background
            urgent = self._coalescer.add(delta)
            if not background.woken or (urgent and not background.asked):
                background.notify(now=urgent and not self._health.is_away)
        except Exception as error:
            report("session submit", error)

    def ensure_running(self) -> None:
        """Have the background task on the running loop, on another one that runs, or on one of ours."""
        try:
            if self._background.loop() is get_running_loop():
                return
        except RuntimeError:
            pass
        with guarded("session background"):
            self._run_at_home(loops.home() or loops.own())

    def _run_at_home(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._background.loop() is not loop:
            self._tell_memory_only()
            if loops.elsewhere() is None and self._turnover.is_high(loop):
                loop = loops.own()
            self._loops.add(loop)
            if loops.running() is loop:
                self._background.start(loop)
            else:
                loop.call_soon_threadsafe(quietly, "session background", lambda: self._background.start(loop))

    def _tell_memory_only(self) -> None:
        if not self._told:
            self._told = True
            logger.warning(
                "otel_mcp: no Redis is configured (OTEL_PYTHON_MCP_REDIS_URL): "
                "sessions live in the memory of this process only"
            )

    async def _turn(self) -> float | None:
        """Write what waits; the seconds until the next try, if there is one to make."""
        flusher, breaker = self._flusher, self._health.breaker
        if breaker.wait:
            return breaker.wait
        await flusher.flush(yielding=True)
        if (breaker.is_open and not breaker.wait) or self._health.is_partial or self._health.is_slow:
            # Perhaps nothing waited that could have shown whether the store, or its other parts, can be used.
            with self._health.operation("probe", proof=True):
                asked = perf_counter()
                # It writes: a server that is full or read-only answers everything else.
                await self._store.get_or_set(_PROBE, self._process.token, _PROBE_KEPT)
                self._health.is_slow = perf_counter() - asked >= PATIENCE
                flusher.has_news = flusher.has_news or breaker.is_open
                self._health.answered()
        await self._documents.fulfil()
        if not breaker.is_open:
            await self._hash_key.agree()
        if flusher.has_news:
            flusher.has_news = False
            await self._sweeper.refresh_safely()
        if breaker.is_open:
            return max(breaker.wait, 0.01)
        if flusher.is_idle and not self._health.is_partial and not self._health.is_slow:
            return None
        return self._settings.flush_interval

    async def _sweep(self) -> None:
        await self._sweeper.sweep()
        if not self._health.is_away:
            # Or the next process makes another key, where the store has lost it unnoticed: emptied, evicted.
            await self._hash_key.agree(again=True)

    async def _last_turn(self) -> None:
        self._stop()
        await self._turn()

    def _stop(self) -> None:
        for stop in self.on_end:
            quietly("session end", stop)
        self.handshakes.release_all()

    async def _close(self) -> None:
        await self._lookups.aclose()
        await self._store.aclose()

    async def flush(self) -> None:
        """Write everything that waits, now; not while the store is known to be away."""
        if not self._health.breaker.wait:
            with guarded("session flush"):
                await self._flusher.flush()

    async def publish(self, delta: SessionDelta) -> None:
        """Submit what another process may be asked about next: a session whose id is about to be given out.

        Waits for the store, for 50 ms at most.
        """
        self.submit(delta)
        if not self._in_memory:
            await self._ask("publish", delta.facts.session_id, self.flush, None, brief=False)

    @property
    def is_running(self) -> bool:
        """Whether requests have come since the last `aclose`."""
        return self._background.loop() is not None

    async def aclose(self, timeout: float = 2.0) -> None:
        """Write what waits within `timeout` seconds, and stop; the next request begins again.

        What cannot be written is counted as dropped, unless another loop of this process goes on serving.
        """
        self._turnover.forget()
        self._background.stop()
        with guarded("last session flush"):
            try:
                await loops.once_more_if_late(lambda: asyncio.wait_for(self._finish(), timeout))
            except asyncio.TimeoutError:
                self._health.failed(StoreDown("TimeoutError"))
        with guarded("session store close"):
            await asyncio.wait_for(self._close(), timeout)
        self._loops.discard(get_running_loop())
        if not any(loop.is_running() for loop in list(self._loops)):
            self._flusher.abandon()

    async def _finish(self) -> None:
        self._stop()
        await self._flusher.flush()
        await self._documents.fulfil()

    def flush_at_exit(self) -> None:
        """Write what waits where no loop runs any more, within two seconds."""
        with guarded("last session flush"):
            if is_running():
                self._background.notify(now=True)
                return
            self.handshakes.release_all()
            try:
                if not self._flusher.is_idle or len(self._documents.kept):
                    run_alone(self.aclose(_EXIT / 2), _EXIT)
            finally:
                self._flusher.abandon()

    async def save(self, state: SessionState) -> None:
        """Write the user's document at once; while the store is away it is kept and written later."""
        self.handshakes.release(state.session_id)

        async def save() -> None:
            await self.flush()
            await self._documents.save(state)

        await loops.at_home(save)

    async def load(self, session_id: str) -> SessionState | None:
        """The document, this process's calls included; as far as we know it while the store is away."""
        self.handshakes.release(session_id)
        return await loops.at_home(lambda: self._documents.load(session_id))

    async def get_or_create(self, session_id: str, *, user_agent: str | None = None) -> SessionState:
        """The document; a new one where there is none."""
        self.handshakes.release(session_id)
        return await loops.at_home(lambda: self._documents.get_or_create(session_id, user_agent=user_agent))

    async def delete(self, session_id: str) -> bool:
        """End a session and remove it at once; `False` where there was none."""
        self.handshakes.release(session_id)
        return await loops.at_home(lambda: self._documents.delete(session_id))

    async def describe(self, session_id: str, asker: Asker | None = None) -> Known | None:
        """What is known of an id that this process meets for the first time; `None` = we cannot tell."""
        return await self._ask("recall", session_id, lambda: self._store.describe(session_id), None, asker)

    async def bind(self, session_id: str, user: str | None, asker: Asker | None = None) -> None:
        """Tell other processes whose a session is that has just shaken hands here; `None` = nobody's."""
        await self._ask("bind", session_id, lambda: self._store.bind(session_id, user), None, asker)

    async def get(self, key: str, asker: Asker | None = None) -> str | None:
        """The value that was agreed on under `key`; `None` where there is none or we cannot tell."""
        return await self._ask("consult", key, lambda: self._store.get(key), None, asker)

    async def get_or_set(self, key: str, candidate: str, ttl: float, asker: Asker | None = None) -> str:
        """The value that all replicas have under `key`; `candidate` where we cannot tell."""
        return await self._ask("agree", key, lambda: self._store.get_or_set(key, candidate, ttl), candidate, asker)

    async def get_or_set_successor(
        self, old_id: str, candidate: str, user: str | None = None, asker: Asker | None = None
    ) -> str:
        """The id of the session that continues `old_id` on all replicas; `candidate` where we cannot tell."""
        # Users do not share an answer: for one of them the id may be another's.
        key = old_id if user is None else f"{old_id} {user}"
        return await self._ask(
            "succeed", key, lambda: self._store.get_or_set_successor(old_id, candidate, user), candidate, asker
        )

    async def _ask(
        self,
        operation: str,
        key: str,
        question: Callable[[], Awaitable[T]],
        otherwise: T,
        asker: Asker | None = None,
        *,
        brief: bool = True,
    ) -> T:
        if self._health.is_away:
            return otherwise
        if self._in_memory:
            return await question()
        answer, home = otherwise, loops.elsewhere()
        if home is not None and loops.running() is None:
            return otherwise  # On trio nobody waits for the store: what is asked is agreed on later.
        with guarded("session lookup"):
            asked = self._lookups.ask(operation, key, question, otherwise, brief=brief, asker=asker)
            if home is not None:
                answer = await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(asked, home))
            else:
                answer = await asked
            if self._health.is_slow and not self._background.woken:
                self._background.notify(now=False)  # It probes until the store is fast again.
        return answer

    async def hash_key(self, asker: Asker | None = None) -> bytes:
        """The key of our hashes: configured, else agreed by all replicas, else this process's own for now."""

        async def agree(name: str, candidate: str) -> str | None:
            return await self._ask("agree", name, lambda: self._store.get_or_set(name, candidate, 0), None, asker)

        key = await self._hash_key.get(agree)
        if not self._hash_key.is_agreed:
            self._background.notify(now=not self._health.is_away)
        return key

    @property
    def hash_key_is_agreed(self) -> bool:
        """Whether `hash_key` is the same on all replicas; else they agree as soon as the store can be asked."""
        return self._hash_key.is_agreed

    def on_hash_key(self, tell: Callable[[bytes], None]) -> None:
        """Have `tell` called with the key once all replicas have agreed on it."""
        self._hash_key.on_agreed.append(tell)

    def on_refused(self, tell: Callable[[SessionDelta, str], SessionDelta | None]) -> None:
        """Have `tell` called with what came under a session of another user, and that user.

        It says what is written instead.
        """
        self._flusher.on_refused = tell

    def on_overruled(self, tell: Callable[[SessionDelta, WriteResult], None]) -> None:
        """Have `tell` called where other processes have decided otherwise about a session that went on here."""
        self._flusher.on_overruled = tell

    @property
    def degraded(self) -> bool:
        """Whether questions are answered locally at present, since the store is away or slow."""
        return self._health.is_away or self._health.is_slow

    @property
    def active(self) -> int | None:
        """Live sessions in all processes; `None` where we cannot tell."""
        return None if self._health.is_away else self._sweeper.active

    @property
    def local(self) -> int:
        """Sessions held in the memory of this process, for want of a store or of its answer."""
        held = len(self._store) if isinstance(self._store, MemoryStore) else 0
        sent = sum(1 for session_id in list(self._flusher.frozen) if session_id not in self._coalescer)
        return held + len(self._coalescer) + sent + len(self._documents.kept)

    @property
    def pending(self) -> int:
        """Tool calls that are not known to be in the store."""
        return self._flusher.calls

    @property
    def dropped(self) -> Counter[str]:
        """Tool calls that will not be in the store, by reason."""
        return self._flusher.dropped

    def _after_fork(self) -> None:
        """Leave to the parent what is the parent's: its calls, its task, its connections."""
        self._process.renew()
        self._loops.clear()
        self._turnover.forget()
        for part in (
            self.handshakes,
            self._coalescer,
            self._health,
            self._flusher,
            self._lookups,
            self._background,
            self._documents.kept,
        ):
            part.clear()
        if isinstance(self._store, MemoryStore):
            self._store.clear()


_instances: weakref.WeakSet[Sessions] = weakref.WeakSet()


def _after_fork() -> None:
    for sessions in list(_instances):
        sessions._after_fork()  # pyright: ignore[reportPrivateUsage]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
