"""Tracks in the store the tasks that tool calls have begun, and their ends.

Any process may see the end of a task. Each end is reported once: by the process whose news complete the task (its
end, or its beginning if that is written later). Batches are idempotent by their names: one without an answer is sent
again, and gets the same answer.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from random import randrange
from typing import Final

from otel_mcp.model.task import FINAL, LONGEST, MOST, OVER, Followed, Task, TaskCensus, TaskEnd, TaskNews, until_of
from otel_mcp.sessions.health import SessionEvents, StoreHealth
from otel_mcp.store.base import Change, ProducerId, SessionStore

_BATCH: Final = 100
"""News in one batch."""
_TURN: Final = 5
"""Batches in one turn of the worker."""
_TRIES: Final = 10
"""Attempts to write a batch while other processes change the same tasks."""
_RECENT: Final = 60.0
"""Seconds for which an ended task is kept if there is no room: unanswered news are usually sent again within them."""
_TABLE: Final = "tasks"


class TaskTable:
    """Changes the table of a service's tasks, by hash of the task id, which all its processes share."""

    def __init__(self, store: SessionStore) -> None:
        self._store = store

    async def follow(self, batch: str, news: Sequence[TaskNews]) -> Followed:
        """Add news of tasks, whose times are by the store's clock; `batch` names these news."""
        names = dict.fromkeys(each.key for each in news)
        attempt = 0
        while True:
            # The first attempt assumes that there is room; the others read the whole table to know.
            held = await self._store.entries(_TABLE, None if attempt else list(names))
            tasks = _Batch(batch, names, held, room=MOST - len(held) if attempt else MOST)
            links = [tasks.take(each) for each in news]
            missed, attempt = await self._swap(held, tasks.tasks, tasks.places), attempt + 1
            if missed.isdisjoint(names) or attempt == _TRIES:  # The latter if another program uses the key.
                ends = [end for name in names if name not in missed for end in tasks.ends(name)]
                pairs = zip(news, links, strict=True)
                return Followed(ends, [None if each.key in missed else link for each, link in pairs])

    async def count(self, batch: str) -> TaskCensus:
        """Count the active tasks, and claim the expired ones; `batch` names this count."""
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
        missed = await self._swap(held, changed, {})
        census.ends += [end for name, end in claimed.items() if name not in missed]
        return census

    async def _swap(
        self, held: Mapping[str, str], tasks: Mapping[str, Task | None], places: Mapping[str, tuple[str, str]]
    ) -> set[str]:
        """Write the changed tasks, removals first; return the names of those that other processes have changed."""
        texts = {name: None if task is None else task.text() for name, task in tasks.items()}
        new = {name: text for name, text in texts.items() if text != held.get(name)}
        changes = {name: Change(held.get(name), text, places.get(name)) for name, text in new.items()}
        ordered = sorted(changes.items(), key=lambda change: change[1].new is not None)
        return await self._store.swap(_TABLE, dict(ordered), MOST, LONGEST) if changes else set()


class _Batch:
    """Applies a batch of news to tasks, and tells which ends to report."""

    def __init__(self, name: str, own: Collection[str], held: Mapping[str, str], *, room: int) -> None:
        self._name = name
        self._own = own
        self._held = held
        self._room = room
        self.tasks: dict[str, Task | None] = {key: Task.read(text) for key, text in held.items()}
        self.places: dict[str, tuple[str, str]] = {}
        """Key and text of each removed task, by the key of the task that replaces it."""
        self._spare: list[tuple[bool, float, str]] | None = None
        """Removable tasks, best first: whether it is followed, its end, its key; ``None`` = not searched yet."""

    def take(self, news: TaskNews) -> str | None:
        """Add one of the news; return the link to the call that began the task, "" if unknown; ``None`` = no room."""
        task, key = self.tasks.get(news.key), news.key
        is_other = task is not None and news.began is not None and task.began not in (0.0, news.began)
        if task is None or is_other:  # The latter if a server numbers its tasks from 1 after each start.
            if task is None and not self._has_room(news):
                return None if news.began is not None else ""
            former = self.tasks[self.places[key][0]] if key in self.places else task
            if former is not None and (former.is_over or not former.began):
                former = None
            task = Task(until_of(news), former=None if former is None else (self._name, former.tool, former.status))
        task = task.with_news(news)
        if task.began and task.ended and not task.closed and not task.batch:
            task = task._replace(batch=self._name)
        self.tasks[key] = task._replace(until=min(task.until, news.at + OVER)) if task.is_over else task
        return task.link

    def ends(self, key: str) -> Iterator[TaskEnd]:
        """Return the ends to report for a task: that of the task it replaced, and its own."""
        if (task := self.tasks.get(key)) is None:
            return
        if task.former is not None and task.former[0] == self._name:
            yield TaskEnd(*task.former[1:], None)
        if task.batch == self._name:
            yield TaskEnd(task.tool, task.status, max(task.ended - task.began, 0.0))

    def _has_room(self, news: TaskNews) -> bool:
        """Make room for news: remove ended tasks once; then a beginning or an end replaces a removable task."""
        if self._room <= 0 and self._spare is None:
            self._spare = []
            for key, task in [item for item in self.tasks.items() if item[0] not in self._own]:
                followed = task is not None and task.began > 0 and not task.is_over
                if task is None or (not followed and task.until <= news.at + OVER - _RECENT):
                    self.tasks[key] = None
                    self._room += 1
                elif task.batch or not followed:
                    self._spare.append((followed, task.ended, key))
            self._spare.sort()
        if self._room > 0:
            self._room -= 1
            return True
        if not self._spare or (news.began is None and news.status not in FINAL):
            return False
        # A random one of the best eighth, since other processes make room at the same time.
        *_, other = self._spare.pop(randrange(len(self._spare) // 8 + 1))
        self.places[news.key] = other, self._held[other]
        return True


class Tasks:
    """Sends news to the store; a batch without an answer is sent again unchanged."""

    def __init__(self, store: SessionStore, events: SessionEvents, health: StoreHealth, producer: ProducerId) -> None:
        self._store = store
        self._table = TaskTable(store)
        self._events = events
        self._health = health
        self._producer = producer
        self.due = False
        """Whether news wait, or a batch has no answer."""
        self._batch = ""
        self._sent: Sequence[TaskNews] = ()
        self._count = ""
        """Name of the count that has no answer: the next one reuses it, and gets the same claims."""

    def abandon(self) -> None:
        """Stop sending, since the process ends."""
        self.due, self._sent = False, ()

    async def follow(self, batches: float = _TURN) -> None:
        """Send waiting news, in at most `batches` batches, and report ends."""
        while batches > 0 and self.due and not self._health.is_away:
            batches -= 1
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
            if self._sent:  # The store has failed (`operation` noted it): the next turn sends the same batch.
                return

    async def count(self) -> None:
        """Count the active tasks, and report the expired ones."""
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
    """Convert the times of news to the store's clock, which is `ahead` seconds of ours."""
    ended, began = (None if instant is None else instant + ahead for instant in (news.ended, news.began))
    return replace(news, at=news.at + ahead, ended=ended, began=began)
