"""Tasks that tool calls have begun, from what calls show of them to spans and metrics.

What is seen goes to the session store, where the tasks of all replicas are; what comes of it is measured by the process
that learns of it first.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from time import time
from typing import Any, Final

from opentelemetry.trace import SpanContext

from otel_mcp import semconv
from otel_mcp.bounded import BoundedNames, remember
from otel_mcp.guard import guarded
from otel_mcp.model.call import Call
from otel_mcp.model.task import FINAL, CallTask, Followed, TaskCensus, TaskEnd, TaskNews
from otel_mcp.telemetry.instruments import Instruments
from otel_mcp.telemetry.spans import NO_SPAN
from otel_mcp.wire.tasks import TaskSeen, begun, notified, shown

_OPEN: Final = ("working", "input_required")
_UNFETCHED: Final = (*_OPEN, "completed", "failed")
_MOST: Final = 10_000
"""Tasks of which news wait, or of which this process knows something."""
_GUARD: Final = guarded("tasks")


class Tasks:
    """What this process has to tell of tasks, and what it knows of those of the service."""

    def __init__(self, on: Instruments, tools: BoundedNames) -> None:
        self._on = on
        self._names = tools
        self.hashed: Callable[[str], str | None] = lambda _: None
        """Hashes an id with the key of all replicas; ``None`` before there is one."""
        self.wake: Callable[[], None] = lambda: None
        """Is called once something waits."""
        self.forget()

    def forget(self) -> None:
        """Start again in a forked child."""
        self._lock = threading.Lock()
        self._news: OrderedDict[str, TaskNews] = OrderedDict()
        """One entry for each task, by its id, of those that have begun or ended."""
        self._polled: OrderedDict[str, TaskNews] = OrderedDict()
        """Of the others: another poll brings them again."""
        self._taken: list[TaskNews] = []
        """News that are on their way."""
        self._known: OrderedDict[str, object] = OrderedDict()
        """What the store knows from this process of tasks that have begun, by their ids: it need not hear it again."""
        self._calls: OrderedDict[str, SpanContext] = OrderedDict()
        """The calls that have begun the newest tasks, by the ids of these."""
        self._tools: set[str] = set()
        """Tools that have begun a task."""
        self.census: TaskCensus | None = None
        """The tasks of the service, as counted last; ``None`` = not known."""

    def see(self, call: Call, result: object) -> None:
        """Take the result of a call that may be about tasks; ``None`` = it was too large to be read."""
        if call.task is not None:
            return  # The seam at the SDK has seen it.
        with _GUARD:  # Whatever a server says of tasks, the call is finished.
            if call.method == "tools/call":
                if (task := begun(result)) is not None:
                    self._note(call, task, None)
                    self._keep(task.id, call.span_context)
                return
            for task in shown(call.method, call.params, result):
                if call.method == "tasks/list":
                    self._add(_news(task, time()))
                else:
                    self._note(call, task, self._calls.get(task.id))

    def _note(self, call: Call, task: TaskSeen, link: SpanContext | None) -> None:
        status = task.status if call.method != "tasks/result" else None  # There it is only concluded.
        attributes = {semconv.TASK_ID: self.hashed(task.id), semconv.TASK_STATUS: status}
        known: dict[str, Any] = {name: value for name, value in attributes.items() if value is not None}
        call.task = CallTask(task, known, link)
        if call.span is not None:
            call.task.show(call.span)

    def _keep(self, task_id: str, context: SpanContext | None) -> None:
        if context is not None and context.is_valid:
            remember(self._calls, task_id, context, _MOST)

    def notified(self, params: object) -> None:
        """Take what a notification of the server says of a task."""
        if (task := notified(params)) is not None:
            self._add(_news(task, time()))

    def finished(self, call: Call, task: TaskSeen) -> None:
        """Take a finished call that has begun a task or shown something of one."""
        began = call.exchange.started_ns / 1e9
        news = _news(task, began + call.duration)
        if call.method == "tools/call":
            news.began, news.tool = began, self._named(call.target or "", proven=call.trusted_name)
            self._on.tasks_started.add(1, {semconv.GEN_AI_TOOL_NAME: news.tool}, NO_SPAN)
            if (context := call.span_context) is not None and context.is_valid:
                news.link = f"{context.trace_id:032x}-{context.span_id:016x}"
                self._keep(task.id, context)
        if news.status is not None:
            self._add(news)

    def _named(self, tool: str, *, proven: bool = False) -> str:
        """Bound the name of a tool, and create its series with its first task."""
        if tool != semconv.OTHER:
            tool = self._names.bounded(tool, proven=proven and bool(tool), likely=True)
        if tool not in self._tools:
            self._tools.add(tool)
            for status in _UNFETCHED:
                self._on.tasks_unfetched.add(0, _of(tool, status), NO_SPAN)
        return tool

    def _add(self, news: TaskNews) -> None:
        """Have news written, with what waits of the same task; not what the store knows from this process."""
        key, lost = news.key, None
        with self._lock:
            held = self._news.pop(key, None) or self._polled.pop(key, None)
            if held is None and news.began is None and self._known.get(key) == _state(news):
                return
            if held is not None and news.began is not None and (held.began is not None or held.at < news.began):
                held, lost = None, held  # A server that uses an id again.
            if held is not None:
                news = _merged(held, news)
            matters = news.began is not None or news.status in FINAL
            waiting = self._news if matters else self._polled
            waiting[key] = news
            if len(waiting) > _MOST:
                _, lost = waiting.popitem(last=False)
        if lost is not None:
            self._lose(lost)
        self.wake()

    def _lose(self, news: TaskNews) -> None:
        """Count what the store will not know."""
        if news.began is not None:
            self._report(TaskEnd(news.tool, semconv.OTHER, None))
        elif news.status in FINAL:
            self._on.dropped.add(1, {semconv.REJECT_REASON: "tasks"}, NO_SPAN)

    def take(self, most: int) -> list[TaskNews]:
        """Return what waits for the store, oldest first; not before there is a key to hash ids with."""
        taken: list[TaskNews] = []
        with self._lock:
            self._taken = []
            for waiting in (self._news, self._polled):
                while waiting and len(taken) < most and (key := self.hashed(next(iter(waiting)))) is not None:
                    task_id, news = waiting.popitem(last=False)
                    self._known.pop(task_id, None)
                    self._taken.append(news)
                    taken.append(replace(news, key=key))
        return taken

    def followed(self, answer: Followed) -> None:
        """Take what the store has answered to what was taken last."""
        for end in answer.ends:
            self._report(end)
        with self._lock:
            taken, self._taken = self._taken, []
            for news, link in zip(taken, answer.links, strict=False):
                if link:  # Else its beginning is still to come, and may be lost with what the store has.
                    remember(self._known, news.key, _state(news), _MOST)
        for news, link in zip(taken, answer.links, strict=False):
            if link is None:
                self._lose(news)
            elif link and news.key not in self._calls:
                self._keep(news.key, _context(link))

    def abandon(self) -> None:
        """Count what is not known to be in the store as lost."""
        with self._lock:
            lost, self._taken = [*self._taken, *self._news.values()], []
            self._news.clear()
            self._polled.clear()
        for news in lost:
            self._lose(news)

    def counted(self, census: TaskCensus | None) -> None:
        """Take the tasks of the service; ``None`` = the store cannot be asked."""
        self.census = census
        for end in census.ends if census is not None else ():
            self._report(end)

    def _report(self, end: TaskEnd) -> None:
        tool = self._named(end.tool)
        if end.duration is None:
            self._on.tasks_unfetched.add(1, _of(tool, end.status), NO_SPAN)
        else:
            self._on.task_duration.record(end.duration, _of(tool, end.status), NO_SPAN)

    def active(self) -> dict[tuple[str, str], int]:
        """Count the tasks of the service that have not ended, by tool and status."""
        if (census := self.census) is None:
            return {}
        counts = {(tool, status): 0 for tool in list(self._tools) for status in _OPEN}
        for (tool, status), count in census.active.items():
            key = self._named(tool), status
            counts[key] = counts.get(key, 0) + count
        return counts

    def oldest(self) -> dict[str, float]:
        """Return the age of the oldest of them, by tool, in seconds."""
        if (census := self.census) is None:
            return {}
        ages, now = dict.fromkeys(list(self._tools), 0.0), time()
        for tool, began in census.oldest.items():
            name = self._named(tool)
            ages[name] = max(ages.get(name, 0.0), now - began)
        return ages


def _news(task: TaskSeen, at: float) -> TaskNews:
    return TaskNews(task.id, at, task.status, task.updated, task.ttl, task.fetched)


def _context(link: str) -> SpanContext | None:
    """Read the link to a call; ``None`` where something else has been written."""
    trace_id, _, span_id = link.partition("-")
    try:
        return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True)
    except ValueError:
        return None


def _state(news: TaskNews) -> object:
    """Return what of news is not known by itself: of an open task, when it was changed last is not."""
    return news.status, news.ended if news.status in FINAL else None, news.fetched


def _merged(held: TaskNews, news: TaskNews) -> TaskNews:
    """Join two news of a task: the end that was seen first stands."""
    begun = news if news.began is not None else held
    last = held if held.status in FINAL or news.status is None else news
    return replace(begun, at=last.at, status=last.status, ended=last.ended, fetched=held.fetched or news.fetched)


def _of(tool: str, status: str) -> dict[str, str]:
    return {semconv.GEN_AI_TOOL_NAME: tool, semconv.TASK_STATUS: status}
