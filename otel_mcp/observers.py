"""Observers: code of the user's that gets each finished tool call, and what sessions show, in the background.

Each has a bounded queue and a task of its own, so that none waits for another.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import Context
from functools import partial
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Final, Protocol

from otel_mcp.guard import guarded, report
from otel_mcp.model.delta import CallRecord
from otel_mcp.model.session import Session
from otel_mcp.model.state import SessionState, ToolCall
from otel_mcp.settings import Settings

calls_logger = logging.getLogger("otel_mcp.calls")

ENTRY_POINTS: Final = "otel_mcp_observers"
"""Entry point group that observers are found by."""
CAPACITY: Final = 1000
"""Calls and patterns that wait for one observer; beyond it the oldest is dropped and counted."""
TIMEOUT: Final = 30.0
"""Seconds that an observer may take for one of them."""
LINES: Final = 60
"""Lines a minute that the bundled observer logs at most: clients decide how many calls fail."""
_MINUTE: Final = 60.0
_SHOWN: Final = 8
"""Characters of an id by which its session can be found: a client with all of it can use a transport's session."""


class Observer(Protocol):
    """An async callable; a slow, hanging or raising one harms nobody and is counted.

    Two methods more, where it has them: ``wants(call)`` decides at once and without waiting which calls it gets, and
    ``await found(pattern, session)`` gets each pattern that a session shows (`SessionState.findings`), on one replica
    alone; there `session` is the document, with its ``tool_calls``.
    """

    def __call__(self, call: ToolCall, session: SessionState) -> Awaitable[None]:
        """Look at one finished call.

        Args:
            call: without arguments and result unless ``OTEL_PYTHON_MCP_STORE_CONTENT`` is on.
            session: what this process knows of the session; its ``tool_calls`` are not filled.
        """
        ...


class _Lane:
    """One observer with what waits for it, and the task that works on that."""

    def __init__(self, name: str, observer: Observer) -> None:
        self.name = name
        self.observer = observer
        self.wants: Callable[[CallRecord], bool] | None = getattr(observer, "wants", None)
        """Which calls the observer cares for (its optional method of that name); ``None`` = all."""
        self.found: Callable[[str, SessionState], Awaitable[None]] | None = getattr(observer, "found", None)
        """Its other optional method; ``None`` = it does not care for patterns."""
        self.queue: deque[Callable[[], Awaitable[None]]] = deque(maxlen=CAPACITY)
        self.task: asyncio.Task[None] | None = None
        self.loop: asyncio.AbstractEventLoop | None = None

    def is_idle(self) -> bool:
        return self.task is None or self.task.done() or self.loop is None or self.loop.is_closed()


class Observers:
    """All observers of a process: those that are found by name, and those given."""

    def __init__(self, settings: Settings, dropped: Callable[[str, int], None], **given: Observer) -> None:
        self._dropped = dropped
        self._lanes = [_Lane(name, observer) for name, observer in {**discover(settings), **given}.items()]

    def __bool__(self) -> bool:
        return bool(self._lanes)

    def deliver(self, call: CallRecord, session: Session) -> None:
        """Queue one call for every observer that wants it; never waits. One thread at a time."""
        for lane in self._lanes:
            if lane.wants is None or lane.wants(call):
                self._queue(lane, partial(_observe, lane.observer, call, session))

    def found(self, pattern: str, session: SessionState) -> None:
        """Queue a pattern that a session shows for every observer that cares, and have them work on the running loop.

        Args:
            pattern: new in this session, on all replicas.
            session: its document.
        """
        for lane in self._lanes:
            if lane.found is not None:
                self._queue(lane, partial(lane.found, pattern, session.model_copy()))
        self.ensure_running()

    def _queue(self, lane: _Lane, work: Callable[[], Awaitable[None]]) -> None:
        if len(lane.queue) == lane.queue.maxlen:
            self._dropped(lane.name, 1)
        lane.queue.append(work)

    def ensure_running(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """Start the task of every observer that has something to do and nobody working on it."""
        try:
            loop = loop or asyncio.get_running_loop()
        except RuntimeError:
            return
        for lane in self._lanes:
            if lane.queue and lane.is_idle():
                lane.loop = loop
                # What an observer does belongs to no request: no span, no session of the request that woke it.
                name = f"otel_mcp observer {lane.name}"
                lane.task = Context().run(loop.create_task, self._work(lane), name=name)

    async def aclose(self, timeout: float) -> None:
        """Let observers finish what is queued, for `timeout` seconds at most; what is left is counted."""
        loop = asyncio.get_running_loop()
        self.ensure_running()
        tasks = [lane.task for lane in self._lanes if lane.task is not None and lane.loop is loop]
        if tasks:
            await asyncio.wait(tasks, timeout=timeout)
        for task in tasks:
            task.cancel()
        for lane in self._lanes:
            if left := len(lane.queue):
                lane.queue.clear()
                self._dropped(lane.name, left)

    async def _work(self, lane: _Lane) -> None:
        loop = asyncio.get_running_loop()
        while lane.queue and not loop.is_closed():  # A task that is thrown away with its loop is run once more.
            work = lane.queue.popleft()
            with guarded(f"observer {lane.name}"):
                error = await _outcome(work)
                if error is not None:
                    self._dropped(lane.name, 1)
                    report(f"observer {lane.name}", error)


async def _observe(observer: Observer, call: CallRecord, session: Session) -> None:
    fields: dict[str, Any] = {name: getattr(call, name) for name in CallRecord.__slots__}
    await observer(ToolCall.model_validate(fields), session.state())


async def _outcome(work: Callable[[], Awaitable[None]]) -> BaseException | None:
    """Let an observer do one thing, in a task of its own: whatever it raises stays there."""

    async def observe() -> None:
        await work()

    task = asyncio.create_task(observe())
    try:
        await asyncio.wait({task}, timeout=TIMEOUT)
    finally:
        late = not task.done()
        if not task.get_loop().is_closed():
            task.cancel()
    if late:
        return TimeoutError()
    return asyncio.CancelledError() if task.cancelled() else task.exception()


def discover(settings: Settings) -> dict[str, Observer]:
    """Find observers by name: the bundled one if wanted, entry points, then configured ``module:name``."""
    found: dict[str, Observer] = {"log": SlowAndFailing(settings.slow_call)} if settings.log_calls else {}
    for entry in entry_points(group=ENTRY_POINTS):
        with guarded(f"observer {entry.name}"):
            found[entry.name] = entry.load()
    for path in settings.observers:
        with guarded(f"observer {path}"):
            module, _, name = path.partition(":")
            found[path] = getattr(import_module(module), name)
    return found


class SlowAndFailing:
    """The bundled observer: logs calls of `threshold` seconds or more, and those with an error, within a limit.

    Never any content, and no id that could be used.
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._began = -_MINUTE
        self._written = 0
        self._left_out = 0

    def wants(self, call: CallRecord | ToolCall) -> bool:
        """Look whether there is anything to log: most calls never reach the queue."""
        return call.error_type is not None or call.failure is not None or call.duration >= self._threshold

    async def __call__(self, call: ToolCall, session: SessionState) -> None:
        if not self.wants(call) or not self._has_room():
            return
        error, shown = call.error_type or call.failure, session.session_id
        shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
        calls_logger.warning(
            "tool %r %s %.3f s (session %s, trace %s)",
            call.tool_name,
            f"failed with {error} after" if error is not None else "took",
            call.duration,
            shown,
            call.trace_id,
        )

    def _has_room(self) -> bool:
        now = time.monotonic()
        if now - self._began >= _MINUTE:
            if self._left_out:
                calls_logger.warning("%d more calls failed or took long in the minute of the last line", self._left_out)
            self._began, self._written, self._left_out = now, 0, 0
        has_room = self._written < LINES
        self._written += has_room
        self._left_out += not has_room
        return has_room
