"""Tasks that tool calls have begun, from what calls show of them to spans and metrics.

What is seen goes to the session store, where the tasks of all replicas are; what comes of it is measured by the process
that learns of it first.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import replace
from time import time
from typing import Any, Final

from opentelemetry.trace import SpanContext

from otel_mcp import semconv
from otel_mcp.bounded import BoundedNames, remember
from otel_mcp.model.call import Call
from otel_mcp.model.task import MOST, CallTask, Followed, TaskCensus, TaskEnd, TaskNews
from otel_mcp.telemetry.instruments import Instruments
from otel_mcp.telemetry.spans import NO_SPAN, show_task
from otel_mcp.wire.tasks import TaskSeen, begun, notified, shown

_OPEN: Final = ("working", "input_required")
_UNFETCHED: Final = (*_OPEN, "completed", "failed")


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
        self._news: deque[TaskNews] = deque()
        self._taken: list[str] = []
        """Ids of the tasks whose news are on their way."""
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
        if call.method == "tools/call":
            if (task := begun(result)) is not None:
                self._note(call, task, None)
                self._keep(task.id, call.span_context)
            return
        found = shown(call.method, call.params, result)
        if call.method != "tasks/list":
            for task in found:
                self._note(call, task, self._calls.get(task.id))
        elif found:
            for task in found:
                self._add(_news(task, time()))
            self.wake()

    def _note(self, call: Call, task: TaskSeen, link: SpanContext | None) -> None:
        status = task.status if call.method != "tasks/result" else None  # There it is only concluded.
        attributes = {semconv.TASK_ID: self.hashed(task.id), semconv.TASK_STATUS: status}
        known: dict[str, Any] = {name: value for name, value in attributes.items() if value is not None}
        call.task = CallTask(task, known, link)
        if call.span is not None:
            show_task(call, call.span)

    def _keep(self, task_id: str, context: SpanContext | None) -> None:
        if context is not None and context.is_valid:
            remember(self._calls, task_id, context, MOST)

    def notified(self, params: object) -> None:
        """Take what a notification of the server says of a task."""
        if (task := notified(params)) is not None:
            self._add(_news(task, time()))
            self.wake()

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
            self.wake()

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
        self._news.append(news)
        if len(self._news) > MOST and (lost := self._news.popleft()).began:
            self._report(TaskEnd(lost.tool, semconv.OTHER, None))

    def take(self, most: int) -> list[TaskNews]:
        """Return what waits for the store, oldest first; not before there is a key to hash ids with."""
        taken: list[TaskNews] = []
        self._taken = []
        while self._news and len(taken) < most and (key := self.hashed(self._news[0].key)) is not None:
            news = self._news.popleft()
            self._taken.append(news.key)
            taken.append(replace(news, key=key))
        return taken

    def followed(self, answer: Followed) -> None:
        """Take what the store has answered to what was taken last."""
        for task_id, link in zip(self._taken, answer.links, strict=False):
            if link and task_id not in self._calls:
                trace_id, _, span_id = link.partition("-")
                self._keep(task_id, SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True))
        for end in answer.ends:
            self._report(end)

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


def _of(tool: str, status: str) -> dict[str, str]:
    return {semconv.GEN_AI_TOOL_NAME: tool, semconv.TASK_STATUS: status}
