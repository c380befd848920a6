"""Pass finished tool calls and patterns of sessions to observers, the user's code, in the background.

Each observer has a bounded queue and a task of its own, so none waits for another.
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
"""Entry point group of observers."""
CAPACITY: Final = 1000
"""Calls and patterns that wait for one observer; beyond it the oldest is dropped and counted."""
TIMEOUT: Final = 30.0
"""Seconds that an observer may take for one call or pattern."""
MAX_LINES: Final = 60
"""Lines a minute that the bundled observer logs, since clients decide how many calls fail."""
_MINUTE: Final = 60.0
_ID_CHARACTERS: Final = 8
"""Characters of a session id that are logged: enough to find the session, too few to take it over."""


class Observer(Protocol):
    """An async callable. One that is slow, hangs or raises is counted and affects nothing else.

    It may have two more methods: ``wants(call)``, which must not block, decides which calls it gets, and
    ``await found(pattern, session)`` gets each pattern of a session (`SessionState.findings`), on one replica only;
    there `session` is the document, with its ``tool_calls``.
    """

    def __call__(self, call: ToolCall, session: SessionState) -> Awaitable[None]:
        """Look at one finished call.

        Args:
            call: without arguments and result unless ``OTEL_PYTHON_MCP_STORE_CONTENT`` is on.
            session: what this process knows of the session; its ``tool_calls`` are not filled.
        """
        ...


class _Lane:
    """One observer with its queue, and the task that works on it."""

    def __init__(self, name: str, observer: Observer) -> None:
        self.name = name
        self.observer = observer
        self.wants: Callable[[CallRecord], bool] | None = getattr(observer, "wants", None)
        """The optional method that selects calls; ``None`` = all calls."""
        self.found: Callable[[str, SessionState], Awaitable[None]] | None = getattr(observer, "found", None)
        """The optional method that gets patterns; ``None`` = no patterns."""
        self.queue: deque[Callable[[], Awaitable[None]]] = deque(maxlen=CAPACITY)
        self.task: asyncio.Task[None] | None = None
        self.loop: asyncio.AbstractEventLoop | None = None


class Observers:
    """All observers of a process: those found by name, and those given."""

    def __init__(self, settings: Settings, dropped: Callable[[str, int], None], **given: Observer) -> None:
        self._dropped = dropped
        self._lanes = [_Lane(name, observer) for name, observer in {**discover(settings), **given}.items()]

    def __bool__(self) -> bool:
        return bool(self._lanes)

    def deliver(self, call: CallRecord, session: Session) -> None:
        """Queue a call for every observer that wants it, without waiting. One thread at a time."""
        for lane in self._lanes:
            if lane.wants is None or lane.wants(call):
                self._queue(lane, partial(_observe, lane.observer, call, session))

    def found(self, pattern: str, session: SessionState) -> None:
        """Queue a pattern for every observer that wants patterns, and start them on the running loop.

        Args:
            pattern: new in this session, on all replicas.
            session: the document of the session.
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
        """Start a task for every observer with a queue and no running task."""
        try:
            loop = loop or asyncio.get_running_loop()
        except RuntimeError:
            return
        for lane in self._lanes:
            if lane.queue and (lane.task is None or lane.task.done() or lane.loop is None or lane.loop.is_closed()):
                lane.loop = loop
                # In an empty context: an observer's work does not belong to the request that started it.
                name = f"otel_mcp observer {lane.name}"
                lane.task = Context().run(loop.create_task, self._work(lane), name=name)

    async def aclose(self, timeout: float) -> None:
        """Let observers work on their queues for at most `timeout` seconds; count the rest as dropped."""
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
        while lane.queue and not loop.is_closed():  # A task is resumed once more when its closed loop is collected.
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
    """Run an observer once, in a task of its own, and return its exception."""

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
    """Find observers: the bundled one if configured, entry points, then configured ``module:name``."""
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
    """The bundled observer: logs failed calls, and calls of `threshold` seconds or more, at a limited rate.

    Logs no content, and no whole session id.
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._began = -_MINUTE
        self._written = 0
        self._left_out = 0

    def wants(self, call: CallRecord | ToolCall) -> bool:
        """Return whether to log a call, so that most calls are never queued."""
        return call.error_type is not None or call.failure is not None or call.duration >= self._threshold

    async def __call__(self, call: ToolCall, session: SessionState) -> None:
        if not self.wants(call) or not self._has_room():
            return
        error, shown = call.error_type or call.failure, session.session_id
        shown = shown if len(shown) <= _ID_CHARACTERS else f"{shown[:_ID_CHARACTERS]}…"
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
        has_room = self._written < MAX_LINES
        self._written += has_room
        self._left_out += not has_room
        return has_room
