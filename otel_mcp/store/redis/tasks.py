"""Tasks in Redis: one hash of the service, since a task's end may be seen by any process."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any, Final

from otel_mcp.model.task import LONGEST, MOST, OVER, Followed, TaskCensus, TaskEnd, TaskNews, until_of
from otel_mcp.store import document as text
from otel_mcp.store.redis.client import RedisLink, Run, is_foreign
from otel_mcp.store.redis.codec import Keys, Writer, script

_TASKS: Final = script("tasks", of_session=False)


class Tasks:
    """The tasks of one service."""

    def __init__(self, link: RedisLink, keys: Keys, writer: Writer) -> None:
        self._link = link
        self._key = keys.agreement("tasks")
        self._writer = writer
        self._sent: tuple[str, list[Any]] = "", []
        """The batch that was sent last: sent again, it is the same, whatever has been learned of the server's clock."""

    async def follow(self, batch: str, news: Sequence[TaskNews]) -> Followed:
        """Take what messages have shown of tasks."""
        if self._sent[0] != batch:
            self._sent = batch, [part for each in news for part in self._arguments(each)]
        ends, links = await self._run(*self._sent)
        return Followed(ends, [link.decode() for link in links] or [""] * len(news))

    def _arguments(self, news: TaskNews) -> tuple[Any, ...]:
        instant = self._writer.instant
        return (
            news.key,
            instant(news.at),
            news.status or "-",
            0 if news.ended is None else instant(news.ended),
            instant(until_of(news)),
            int(news.fetched),
            0 if news.began is None else instant(news.began),
            news.link or "-",
            text.utf8(news.tool),
        )

    async def count(self, batch: str) -> TaskCensus:
        """Count the tasks that have not ended, and claim those whose time is over."""
        ends, counted = await self._run(batch, ())
        census = TaskCensus(ends=ends)
        for tool, status, count, began in counted:
            name = tool.decode("utf-8", "replace")
            census.active[name, status.decode()] = int(count)
            # In our time: the gauge shows its age.
            since = int(began) / 1e6 + time.time() - self._writer.instant(time.time()) / 1e6
            census.oldest[name] = min(census.oldest.get(name, since), since)
        return census

    async def _run(self, batch: str, arguments: Iterable[Any]) -> tuple[list[TaskEnd], Any]:
        kept = (round(OVER * 1e6), round(LONGEST * 1000))
        run = Run(_TASKS, (self._key,), (self._writer.instant(time.time()), MOST, *kept, batch, *arguments))
        try:
            ends, answers = await self._link.run(run)
        except Exception as error:
            if is_foreign(error):
                return [], ()  # Something else has the key: nothing can be followed.
            raise
        return [_end(*end) for end in ends], answers


def _end(tool: bytes, status: bytes, lasted: bytes) -> TaskEnd:
    return TaskEnd(tool.decode("utf-8", "replace"), status.decode(), int(lasted) / 1e6 if lasted else None)
