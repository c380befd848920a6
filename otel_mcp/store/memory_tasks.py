"""Tasks in memory: the rules that ``redis/lua/tasks.lua`` has for Redis, in Python."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from otel_mcp.model.delta import OpenCall
from otel_mcp.model.task import FINAL, MOST, OVER, UNFOLLOWED, Followed, TaskCensus, TaskEnd, TaskNews, until_of
from otel_mcp.store.memory_record import CutSessions


@dataclass(slots=True)
class _Task:
    """What is kept of one task. Instants are Unix seconds."""

    until: float
    began: float = 0.0
    """0 = the call that begins it is not known yet."""
    status: str = "working"
    ended: float = 0.0
    """When it was finished; 0 = not yet."""
    fetched: bool = False
    batch: str = ""
    """The news that have brought its end; the same news again get it again."""
    link: str = ""
    tool: str = ""

    @property
    def is_over(self) -> bool:
        """Whether nothing about it is to be reported any more."""
        return self.batch != "" and (self.fetched or self.status == "cancelled")


class FollowedTasks(CutSessions):
    """What a store in memory knows of tasks, and of calls in flight."""

    _clock: Callable[[], float]
    _tasks: dict[str, _Task]
    """By the hash of their ids."""

    async def put_in_flight(self, calls: Sequence[OpenCall]) -> None:
        """Do nothing: no other process reads it."""

    async def follow(self, batch: str, news: Sequence[TaskNews]) -> Followed:
        """Take what messages have shown of tasks."""
        ends: list[TaskEnd] = []
        ended: dict[str, TaskEnd] = {}
        links = [self._follow(batch, each, ends, ended) for each in news]
        return Followed([*ends, *ended.values()], links)

    def _follow(self, batch: str, news: TaskNews, ends: list[TaskEnd], ended: dict[str, TaskEnd]) -> str:
        task = self._tasks.get(news.key)
        if task is not None and news.began and task.began not in (0.0, news.began):
            # A server that counts from 1 after each start: the id means another one.
            if not task.is_over:
                ends.append(TaskEnd(task.tool, task.status, None))
            task = None
        if task is None:
            if news.key not in self._tasks and len(self._tasks) >= MOST and not self._has_room(self._clock()):
                if news.began:
                    ends.append(TaskEnd(news.tool, UNFOLLOWED, None))
                return ""
            task = self._tasks[news.key] = _Task(until_of(news))
        if news.began and not task.began:
            task.began, task.tool, task.link, task.until = news.began, news.tool, news.link, until_of(news)
        if news.status is not None and not task.ended:
            task.status = news.status
            if news.status in FINAL:
                task.ended = news.at if news.ended is None else min(news.ended, news.at)
        task.fetched = task.fetched or news.fetched
        if task.began and task.ended and task.batch in ("", batch):
            task.batch = batch
            ended[news.key] = TaskEnd(task.tool, task.status, max(task.ended - task.began, 0.0))
        if task.is_over:
            task.until = min(task.until, news.at + OVER)
        return task.link

    def _has_room(self, now: float) -> bool:
        """Forget what is over; return whether that was of use."""
        for key in [key for key, task in self._tasks.items() if task.is_over or (not task.began and task.until <= now)]:
            del self._tasks[key]
        return len(self._tasks) < MOST

    async def tasks(self) -> TaskCensus:
        """Count the tasks that have not ended, and claim those whose time is over."""
        census, now, counts = TaskCensus(), self._clock(), Counter[tuple[str, str]]()
        for key, task in list(self._tasks.items()):
            if task.until <= now:
                del self._tasks[key]
                if task.began and not task.is_over:
                    census.ends.append(TaskEnd(task.tool, task.status, None))
            elif task.began and not task.ended:
                counts[task.tool, task.status] += 1
                census.oldest[task.tool] = min(census.oldest.get(task.tool, task.began), task.began)
        census.active = dict(counts)
        return census
