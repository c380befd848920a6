"""Records tasks that tool calls have begun, on spans and in metrics.

News of tasks go to the session store, which has the tasks of all replicas. The process to which the store reports
an end measures it.
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
"""Maximum number of tasks in each table of this process."""
_GUARD: Final = guarded("tasks")


class Tasks:
    """Collects news of tasks for the store, and measures what the store answers."""

    def __init__(self, on: Instruments, tools: BoundedNames) -> None:
        self._on = on
        self._names = tools
        self.hashed: Callable[[str], str | None] = lambda _: None
        """Hashes an id with the key of all replicas; ``None`` before there is one."""
        self.wake: Callable[[], None] = lambda: None
        """Called when news wait."""
        self.forget()

    def forget(self) -> None:
        """Start empty in a forked child."""
        self._lock = threading.Lock()
        self._news: OrderedDict[str, TaskNews] = OrderedDict()
        """News of tasks that have begun or ended, one entry for each task id."""
        self._polled: OrderedDict[str, TaskNews] = OrderedDict()
        """Other news, by task id: if they are lost, the next poll shows them again."""
        self._taken: list[TaskNews] = []
        """News that were sent and not answered."""
        self._known: OrderedDict[str, object] = OrderedDict()
        """Last state of each begun task that this process has written, by task id: it is not written again."""
        self._calls: OrderedDict[str, SpanContext] = OrderedDict()
        """Calls that began the newest tasks, by task id."""
        self._tools: set[str] = set()
        """Tools that have begun a task."""
        self.census: TaskCensus | None = None
        """Tasks of the service at the last count; ``None`` = unknown."""

    def see(self, call: Call, result: object) -> None:
        """Read the result of a call that may be about tasks; ``None`` = too large to read."""
        if call.task is not None:
            return  # The patch of the SDK has seen it.
        with _GUARD:  # A malformed task must not affect the call.
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
        status = task.status if call.method != "tasks/result" else None  # The status there is inferred, not stated.
        attributes = {semconv.TASK_ID: self.hashed(task.id), semconv.TASK_STATUS: status}
        known: dict[str, Any] = {name: value for name, value in attributes.items() if value is not None}
        call.task = CallTask(task, known, link)
        if call.span is not None:
            call.task.show(call.span)

    def _keep(self, task_id: str, context: SpanContext | None) -> None:
        if context is not None and context.is_valid:
            remember(self._calls, task_id, context, _MOST)

    def notified(self, params: object) -> None:
        """Queue the news in a notification of the server."""
        if (task := notified(params)) is not None:
            self._add(_news(task, time()))

    def finished(self, call: Call, task: TaskSeen) -> None:
        """Queue the news of a finished call that has begun a task or shown its state."""
        began = call.exchange.started_ns / 1e9
        news = _news(task, began + call.duration)
        if call.method == "tools/call":
            news.began, news.tool = began, self._named(call.target or "", proven=call.trusted_name)
            self._on.tasks_started.add(1, {semconv.GEN_AI_TOOL_NAME: news.tool}, NO_SPAN)
            if (context := call.span_context) is not None and context.is_valid:
                news.link = f"{context.trace_id:032x}-{context.span_id:016x}"
                self._keep(task.id, context)
        if news.status is not None or news.fetched:
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
        """Queue news, merged with those that wait for the same task. Skip a state that was already written."""
        key, lost = news.key, None
        with self._lock:
            held = self._news.pop(key, None) or self._polled.pop(key, None)
            if held is None and news.began is None and self._known.get(key) == _state(news):
                return
            if held is not None and news.began is not None and (held.began is not None or held.at < news.began):
                held, lost = None, held  # The server has reused a task id.
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
        """Count news that the store will not get."""
        if news.began is not None:
            self._report(TaskEnd(news.tool, semconv.OTHER, None))
        elif news.status in FINAL:
            self._on.dropped.add(1, {semconv.REJECT_REASON: "tasks"}, NO_SPAN)

    def take(self, most: int) -> list[TaskNews]:
        """Take up to `most` waiting news, oldest first; none before there is a key to hash ids."""
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
        """Act on the store's answer to the news that were taken last."""
        for end in answer.ends:
            self._report(end)
        with self._lock:
            taken, self._taken = self._taken, []
            for news, link in zip(taken, answer.links, strict=False):
                if link:  # Otherwise the store does not know its beginning yet, and may forget the task.
                    remember(self._known, news.key, _state(news), _MOST)
        for news, link in zip(taken, answer.links, strict=False):
            if link is None:
                self._lose(news)
            elif link and news.key not in self._calls:
                self._keep(news.key, _context(link))

    def abandon(self) -> None:
        """Count all unconfirmed news as lost."""
        with self._lock:
            lost, self._taken = [*self._taken, *self._news.values()], []
            self._news.clear()
            self._polled.clear()
        for news in lost:
            self._lose(news)

    def counted(self, census: TaskCensus | None) -> None:
        """Store the count of the service's tasks, and report its ends; ``None`` = unknown."""
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
    """Parse the link to a call; ``None`` = malformed."""
    trace_id, _, span_id = link.partition("-")
    try:
        return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True)
    except ValueError:
        return None


def _state(news: TaskNews) -> object:
    """Return what makes news worth writing: not the time of the last change, unless the task has ended."""
    return news.status, news.ended if news.status in FINAL else None, news.fetched


def _merged(held: TaskNews, news: TaskNews) -> TaskNews:
    """Merge two news of a task; the first end wins."""
    begun = news if news.began is not None else held
    last = held if held.status in FINAL or news.status is None else news
    return replace(begun, at=last.at, status=last.status, ended=last.ended, fetched=held.fetched or news.fetched)


def _of(tool: str, status: str) -> dict[str, str]:
    return {semconv.GEN_AI_TOOL_NAME: tool, semconv.TASK_STATUS: status}
