"""Delivers finished calls to observers: one bounded queue and one task each, so that none waits for another."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import Context
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Final

from otel_mcp.guard import guarded, report
from otel_mcp.model.delta import CallRecord
from otel_mcp.model.state import SessionState, ToolCall
from otel_mcp.observers import ENTRY_POINTS
from otel_mcp.observers.slow import slow_and_failing
from otel_mcp.settings import Settings

logger = logging.getLogger("otel_mcp")

Observe = Callable[[ToolCall, SessionState], Awaitable[None]]
Wants = Callable[[CallRecord], bool]

CAPACITY: Final = 1000
"""Calls that wait for one observer; beyond it the oldest is dropped and counted."""
TIMEOUT: Final = 30.0
"""Seconds that an observer may take for one call."""


@dataclass(slots=True, eq=False)
class _Lane:
    name: str
    observer: Observe
    wants: Wants | None
    """Which calls the observer cares for (its optional method of that name); ``None`` = all."""
    queue: deque[Callable[[], tuple[ToolCall, SessionState]]] = field(default_factory=lambda: deque[Any]())
    task: asyncio.Task[None] | None = None
    loop: asyncio.AbstractEventLoop | None = None


class Observers:
    """All observers of a process."""

    def __init__(self, settings: Settings, dropped: Callable[[str, int], None]) -> None:
        self._dropped = dropped
        self._lanes = [
            _Lane(name, observer, getattr(observer, "wants", None)) for name, observer in discover(settings).items()
        ]
        self._lock = threading.Lock()

    def __bool__(self) -> bool:
        return bool(self._lanes)

    def deliver(self, make: Callable[[], tuple[ToolCall, SessionState]], call: CallRecord | None = None) -> None:
        """Queue one call for every observer that wants it; never waits. Models are made when it is delivered."""
        for lane in self._lanes:
            if call is not None and lane.wants is not None and not lane.wants(call):
                continue
            with self._lock:
                full = len(lane.queue) >= CAPACITY
                if full:
                    lane.queue.popleft()
                lane.queue.append(make)
            if full:
                self._dropped(lane.name, 1)

    def ensure_running(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """Start the task of every observer that has something to do and nobody working on it."""
        try:
            loop = loop or asyncio.get_running_loop()
        except RuntimeError:
            return
        for lane in self._lanes:
            if lane.queue and (lane.task is None or lane.task.done() or lane.loop is None or lane.loop.is_closed()):
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
        for lane in self._lanes:
            if lane.task is not None and lane.loop is loop:
                lane.task.cancel()
            if left := len(lane.queue):
                lane.queue.clear()
                self._dropped(lane.name, left)

    async def _work(self, lane: _Lane) -> None:
        loop = asyncio.get_running_loop()
        while lane.queue and not loop.is_closed():  # A task that is thrown away with its loop is run once more.
            make = lane.queue.popleft()
            with guarded(f"observer {lane.name}"):
                error = await _outcome(lane.observer, make)
                if error is not None:
                    self._dropped(lane.name, 1)
                    report(f"observer {lane.name}", error)


async def _outcome(observer: Observe, make: Callable[[], tuple[ToolCall, SessionState]]) -> BaseException | None:
    """Run an observer for one call, in a task of its own: whatever it raises stays there."""

    async def observe() -> None:
        await observer(*make())

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


def discover(settings: Settings) -> dict[str, Observe]:
    """Observers by name: the bundled one if wanted, entry points, then configured ``module:name``."""
    found: dict[str, Observe] = {"log": slow_and_failing(settings.slow_call)} if settings.log_calls else {}
    for entry in entry_points(group=ENTRY_POINTS):
        with guarded(f"observer {entry.name}"):
            found[entry.name] = entry.load()
    for path in settings.observers:
        with guarded(f"observer {path}"):
            module, _, name = path.partition(":")
            found[path] = getattr(import_module(module), name)
    return found
