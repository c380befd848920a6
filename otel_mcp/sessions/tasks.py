"""Keeps up in the store which tasks tool calls have begun, and what has become of them.

Any process may see the end of a task, and each is reported once: with the news that show it, or with those of its
beginning where they come later. What is not answered is sent again, with the same name: then it is answered alike.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from otel_mcp.model.task import LONGEST, MOST, OVER, UNFOLLOWED, Followed, Task, TaskCensus, TaskEnd, TaskNews, until_of
from otel_mcp.sessions.health import SessionEvents, StoreHealth
from otel_mcp.store.base import ProducerId, SessionStore

_BATCH: Final = 100
"""News at a time."""
_TRIES: Final = 10
"""Times that news are added, where others change the same tasks."""
_TABLE: Final = "tasks"


class TaskTable:
    """The tasks of a service, by the hash of their ids, in a table that all its processes share."""

    def __init__(self, store: SessionStore) -> None:
        self._store = store

    async def follow(self, batch: str, news: Sequence[TaskNews]) -> Followed:
        """Take what messages have shown of tasks, in the time of the store; `batch` names these news."""
        names = dict.fromkeys(each.key for each in news)
        made_room: list[TaskEnd] = []
        for attempt in range(_TRIES):
            # Only where not all can be changed it has to be known whether there is room.
            held = await self._store.entries(_TABLE, None if attempt else list(names))
            tasks = _Batch(batch, held, room=MOST - len(held) if attempt else MOST)
            links = [tasks.take(each) for each in news]
            missed = await self._swap(held, tasks.tasks)
            made_room += [end for name, end in tasks.made_room.items() if end is not None and name not in missed]
            if not missed:
                return Followed([*made_room, *tasks.ends], links)
        lost = [TaskEnd(each.tool, UNFOLLOWED, None) for each in news if each.began is not None]
        return Followed([*made_room, *lost], [""] * len(news))  # Something else has the table.

    async def count(self, batch: str) -> TaskCensus:
        """Count the tasks that have not ended, and claim those whose time is over; `batch` names this count."""
        held, census = await self._store.entries(_TABLE), TaskCensus()
        now, changed, claimed = time.time() + self._store.ahead, dict[str, Task | None](), dict[str, TaskEnd]()
        for name, text in held.items():
            task = Task.read(text)
            if task is not None and task.closed and task.batch == batch:
                census.ends.append(TaskEnd(task.tool, task.status, None))
            elif task is None or (task.until <= now and (task.is_over or not task.began)):
                changed[name] = None
            elif task.until <= now:
                changed[name] = task._replace(batch=batch, closed=True, until=now + OVER)
                claimed[name] = TaskEnd(task.tool, task.status, None)
            elif task.is_active:
                of, began = (task.tool, task.status), task.began - self._store.ahead
                census.active[of] = census.active.get(of, 0) + 1
                census.oldest[task.tool] = min(census.oldest.get(task.tool, began), began)
        missed = await self._swap(held, changed)
        census.ends += [end for name, end in claimed.items() if name not in missed]
        return census

    async def _swap(self, held: dict[str, str], tasks: dict[str, Task | None]) -> set[str]:
        """Write tasks that have changed, those that go first; return the names of those that others have changed."""
        texts = {name: None if task is None else task.text() for name, task in tasks.items()}
        changes = {name: (held.get(name), text) for name, text in texts.items() if text != held.get(name)}
        ordered = sorted(changes.items(), key=lambda change: change[1][1] is not None)
        return await self._store.swap(_TABLE, dict(ordered), MOST, LONGEST) if changes else set()


class _Batch:
    """Tasks as a batch of news leaves them, and what is to be reported of them."""

    def __init__(self, name: str, held: dict[str, str], *, room: int) -> None:
        self._name = name
        self._room = room
        self.tasks: dict[str, Task | None] = {key: Task.read(text) for key, text in held.items()}
        self.ends: list[TaskEnd] = []
        self.made_room: dict[str, TaskEnd | None] = {}
        """Tasks that others have taken the place of, with what is to be reported of each."""
        self._ended: set[str] = set()
        """Tasks whose end is reported."""
        self._spare: list[tuple[TaskEnd, str]] | None = None
        """Tasks that may make room, the one that ended first at the end; ``None`` = not looked for."""

    def take(self, news: TaskNews) -> str:
        """Add one of the news; return the call that has begun the task, where that is known."""
        task, key = self.tasks.get(news.key), news.key
        is_other = task is not None and news.began is not None and task.began not in (0.0, news.began)
        if task is None or is_other:  # The latter of a server that counts from 1 after each start.
            if task is None and not self._has_room(news):
                if news.began is not None:
                    self.ends.append(TaskEnd(news.tool, UNFOLLOWED, None))
                return ""
            self._room -= task is None
            followed = task is not None and not task.is_over
            task = Task(until_of(news), former=(self._name, task.tool, task.status) if task and followed else None)
            self._ended.discard(key)
        task = task.with_news(news)
        if news.began is not None and task.former is not None and task.former[0] == self._name:
            self.ends.append(TaskEnd(*task.former[1:], None))
        if task.began and task.ended and not task.closed and task.batch in ("", self._name):
            task = task._replace(batch=self._name)
            if key not in self._ended:
                self.ends.append(TaskEnd(task.tool, task.status, max(task.ended - task.began, 0.0)))
                self._ended.add(key)
        self.tasks[key] = task._replace(until=min(task.until, news.at + OVER)) if task.is_over else task
        return task.link

    def _has_room(self, news: TaskNews) -> bool:
        """Forget what is over, once; what begins takes the place of what has ended longest ago."""
        if self._room <= 0 and self._spare is None:
            known = [(key, task) for key, task in self.tasks.items() if task is not None and task.batch != self._name]
            for key, task in known:
                if task.is_over or (not task.began and task.until <= news.at):
                    self._remove(key, None)
            known = [(key, task) for key, task in known if task.batch and not task.is_over]
            known.sort(key=lambda spare: spare[1].ended, reverse=True)
            self._spare = [(TaskEnd(task.tool, task.status, None), key) for key, task in known]
        if self._room <= 0 and news.began is not None and self._spare:
            end, key = self._spare.pop()
            self._remove(key, end)
        return self._room > 0

    def _remove(self, key: str, end: TaskEnd | None) -> None:
        self.tasks[key], self.made_room[key] = None, end
        self._room += 1


class Tasks:
    """News on their way to the store; those that are not answered are sent again as they are."""

    def __init__(self, store: SessionStore, events: SessionEvents, health: StoreHealth, producer: ProducerId) -> None:
        self._store = store
        self._table = TaskTable(store)
        self._events = events
        self._health = health
        self._producer = producer
        self.due = False
        """News wait, or have been sent and not answered."""
        self._batch = ""
        self._sent: Sequence[TaskNews] = ()
        self._count = ""
        """Names the count that is not answered: what it has claimed is claimed again."""

    def abandon(self) -> None:
        """Send nothing any more, since the process ends."""
        self.due, self._sent = False, ()

    async def follow(self) -> None:
        """Send what waits, and report what has ended."""
        while self.due and not self._health.is_away:
            if not self._sent:
                self.due = False
                if not (news := self._events.tasks_seen(_BATCH)):
                    return
                self.due = True
                self._sent, self._batch = [_in_time(each, self._store.ahead) for each in news], self._name()
            with self._health.operation("tasks"):
                answer = await self._table.follow(self._batch, self._sent)
                self._sent = ()
                self._events.tasks_followed(answer)
            if self._sent:  # The store has failed, which is noted: the next time sends the same again.
                return

    async def count(self) -> None:
        """Count the tasks that have not ended, and report those whose time is over."""
        census = None
        if not self._health.is_away:
            with self._health.operation("tasks"):
                self._count = self._count or self._name()
                census = await self._table.count(self._count)
                self._count = ""
        self._events.tasks_counted(census)

    def _name(self) -> str:
        return f"{self._producer.token}:{self._producer.next_sequence()}"


def _in_time(news: TaskNews, ahead: float) -> TaskNews:
    """Convert the instants of news to the time of the store, `ahead` of ours."""
    ended, began = (None if instant is None else instant + ahead for instant in (news.ended, news.began))
    return replace(news, at=news.at + ahead, ended=ended, began=began)
