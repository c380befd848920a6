"""Tasks in memory: the rules that ``redis/lua/tasks.lua`` has for Redis, in Python."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

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
    """The news that have brought its end; the same news again get it again. With ``!``, after which nothing is to be
    reported."""
    link: str = ""
    tool: str = ""

    @property
    def is_over(self) -> bool:
        """Whether nothing about it is to be reported any more."""
        return self.batch != "" and (self.fetched or self.status == "cancelled" or self.batch[0] == "!")


@dataclass(slots=True)
class _Batch:
    """The answer to a batch, as it grows."""

    name: str
    ends: list[TaskEnd] = field(default_factory=list[TaskEnd])
    ended: set[str] = field(default_factory=set[str])
    """Tasks whose end is among them."""
    spare: list[str] | None = None
    """Tasks that may make room, those that ended first at the end; ``None`` = not looked for."""

    def conclude(self, task: _Task, now: float) -> None:
        """Report a task of which nothing more will be reported."""
        self.ends.append(TaskEnd(task.tool, task.status, None))
        task.batch, task.until = f"!{self.name}", now + OVER


class FollowedTasks(CutSessions):
    """What a store in memory knows of tasks, and of calls in flight."""

    _clock: Callable[[], float]
    _tasks: dict[str, _Task]
    """By the hash of their ids."""

    async def put_in_flight(self, calls: Sequence[OpenCall]) -> None:
        """Do nothing: no other process reads it."""

    async def follow(self, batch: str, news: Sequence[TaskNews]) -> Followed:
        """Take what messages have shown of tasks."""
        answer = _Batch(batch)
        links = [self._follow(answer, each) for each in news]
        return Followed(answer.ends, links)

    def _follow(self, batch: _Batch, news: TaskNews) -> str:
        task = self._meant(batch, news)
        if task is None:
            if news.key not in self._tasks and not self._has_room(batch, begins=bool(news.began)):
                if news.began:
                    batch.ends.append(TaskEnd(news.tool, UNFOLLOWED, None))
                return ""
            task = self._tasks[news.key] = _Task(until_of(news))
        if news.began and not task.began:
            task.began, task.tool, task.link, task.until = news.began, news.tool, news.link, until_of(news)
        if news.status is not None and not task.ended:
            task.status = news.status
            if news.status in FINAL:
                task.ended = news.at if news.ended is None else min(news.ended, news.at)
        task.fetched = task.fetched or news.fetched
        if task.began and task.ended and task.batch in ("", batch.name):
            task.batch = batch.name
            if news.key not in batch.ended:
                batch.ends.append(TaskEnd(task.tool, task.status, max(task.ended - task.began, 0.0)))
                batch.ended.add(news.key)
        if task.is_over:
            task.until = min(task.until, news.at + OVER)
        return task.link

    def _meant(self, batch: _Batch, news: TaskNews) -> _Task | None:
        """Find the task that news are of, and report the one whose id they use again."""
        task, aside = self._tasks.get(news.key), f"{news.key}!{batch.name}"
        if task is not None and news.began and task.began not in (0.0, news.began):
            # A server that counts from 1 after each start.
            if not task.is_over:
                batch.conclude(task, self._clock())
                self._tasks[aside] = task
            batch.ended.discard(news.key)
            return None
        if news.began and (replaced := self._tasks.get(aside)) is not None:
            batch.ends.append(TaskEnd(replaced.tool, replaced.status, None))
        return task

    def _has_room(self, batch: _Batch, *, begins: bool) -> bool:
        """Forget what is over, once in a batch; what begins takes the place of what has ended longest ago."""
        if len(self._tasks) >= MOST and batch.spare is None:
            now = self._clock()
            for key, task in list(self._tasks.items()):
                if task.is_over or (not task.began and task.until <= now):
                    del self._tasks[key]
            ended = [key for key, task in self._tasks.items() if task.batch]
            batch.spare = sorted(ended, key=lambda key: -self._tasks[key].ended)
        if len(self._tasks) >= MOST and begins and batch.spare:
            task = self._tasks.pop(batch.spare.pop(), None)
            if task is not None and not task.is_over:
                batch.ends.append(TaskEnd(task.tool, task.status, None))
        return len(self._tasks) < MOST

    async def tasks(self, batch: str) -> TaskCensus:
        """Count the tasks that have not ended, and claim those whose time is over: for `batch`, again."""
        answer, census, now, counts = _Batch(batch), TaskCensus(), self._clock(), Counter[tuple[str, str]]()
        for key, task in list(self._tasks.items()):
            if task.batch == f"!{batch}":
                answer.ends.append(TaskEnd(task.tool, task.status, None))
            elif task.until <= now and task.began and not task.is_over:
                answer.conclude(task, now)
            elif task.until <= now:
                del self._tasks[key]
            elif task.began and not task.ended and not task.is_over:
                counts[task.tool, task.status] += 1
                census.oldest[task.tool] = min(census.oldest.get(task.tool, task.began), task.began)
        census.active, census.ends = dict(counts), answer.ends
        return census
