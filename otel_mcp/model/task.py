"""Tasks that a tool call begins and that outlast it: their news in messages, and how they end. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pydantic import TypeAdapter
from pydantic_core import to_json

if TYPE_CHECKING:
    from opentelemetry.trace import Span, SpanContext

    from otel_mcp.wire.tasks import TaskSeen, TaskStatus

FINAL: Final[frozenset[TaskStatus]] = frozenset({"completed", "failed", "cancelled"})
"""Statuses after which a task does not change."""
MOST: Final = 2_000
"""Maximum number of tasks of a service followed at a time: each process reads them all in each of its sweeps."""
OVER: Final = 600.0
"""Seconds for which a task is remembered that is finished and fetched, or that no known call began: news of its
beginning may still come, or come again."""
LONGEST: Final = 7 * 86_400.0
"""Maximum seconds for which a task is followed."""
_ENDLESS, _LATE = 86_400.0, 60.0
"""Seconds for which a task is followed that its server keeps forever; and extra seconds for late news."""


@dataclass(slots=True, eq=False)
class CallTask:
    """The task that a call begins or asks about."""

    seen: TaskSeen
    attributes: Mapping[str, Any]
    """Attributes for the span of the call."""
    link: SpanContext | None
    """The span of the call that began the task, if that is another call."""
    shown: bool = False
    """The span has the attributes and the link."""

    def show(self, span: Span) -> None:
        """Put the task's attributes on the span of the call, once, with a link to the call that began it."""
        if not self.shown and span.is_recording():
            self.shown = True
            span.set_attributes(self.attributes)
            if self.link is not None:
                span.add_link(self.link)


@dataclass(slots=True)
class TaskNews:
    """The state of a task in one message, before it is stored. Instants are Unix seconds."""

    key: str
    """Keyed hash of the task's id; the id itself until it leaves this process."""
    at: float
    status: TaskStatus | None = None
    ended: float | None = None
    """When it reached that status, if the server says so."""
    ttl: float | None = None
    """Seconds from its beginning for which the server keeps it, if it says so."""
    fetched: bool = False
    """The client has got its result."""
    began: float | None = None
    """Set by the call that begins it; with `tool` and `link`."""
    tool: str = ""
    """Bounded."""
    link: str = ""
    """Trace and span of the call that began it, in hexadecimal: ``{trace id}-{span id}``."""


class Task(NamedTuple):
    """The state of a task that all processes of a service share; instants are Unix seconds by the store's clock."""

    until: float
    """When it is no longer followed."""
    began: float = 0.0
    """0 = the call that begins it is not known yet."""
    status: str = "working"
    ended: float = 0.0
    """When it was finished; 0 = not yet."""
    fetched: bool = False
    batch: str = ""
    """Identifies the news that brought its end, which is reported with these only, even if sent several times."""
    closed: bool = False
    """Its time was over before it was fetched: `batch` has claimed its end, and nothing more is reported."""
    link: str = ""
    tool: str = ""
    former: tuple[str, str, str] | None = None
    """Batch, tool and status of the task whose id or place it took, if that was still followed: it is reported with
    these news, even if they are sent several times."""

    @property
    def is_over(self) -> bool:
        """Whether nothing more is to be reported about it."""
        return self.closed or (self.batch != "" and (self.fetched or self.status == "cancelled"))

    @property
    def is_active(self) -> bool:
        """Whether it runs, as far as is known."""
        return self.began > 0 and not self.ended and not self.closed

    def with_news(self, news: TaskNews) -> Task:
        """Add the news of one message; order and repetition do not change the result."""
        task = self
        if news.began is not None and not task.began:
            tool = news.tool.encode("utf-8", "replace").decode()
            task = task._replace(began=news.began, tool=tool, link=news.link, until=until_of(news))
        if news.status is not None and not task.ended:
            ended = 0.0 if news.status not in FINAL else news.at if news.ended is None else min(news.ended, news.at)
            task = task._replace(status=news.status, ended=ended)
        return task._replace(fetched=True) if news.fetched else task

    def text(self) -> str:
        """Write it in the form of the store."""
        return to_json(tuple(self)).decode()

    @classmethod
    def read(cls, text: str | None) -> Task | None:
        """Read the output of `text`; ``None`` if it is something else."""
        try:
            return None if text is None else _TASK.validate_json(text)
        except ValueError:
            return None


_TASK: Final = TypeAdapter(Task)


class TaskEnd(NamedTuple):
    """The end of a task, for one process to report."""

    tool: str
    status: str
    """The last status that was seen."""
    duration: float | None
    """Seconds until it was finished; ``None`` = its time is over, and its result was never fetched."""


class Followed(NamedTuple):
    """The store's answer to news of tasks."""

    ends: Sequence[TaskEnd]
    links: Sequence[str | None]
    """For each of the news: the call that began the task, if known; ``None`` = they are not stored."""


@dataclass(slots=True)
class TaskCensus:
    """The tasks of the service at a moment."""

    active: dict[tuple[str, str], int] = field(default_factory=dict[tuple[str, str], int])
    """Number of tasks that have not ended, by tool and status."""
    oldest: dict[str, float] = field(default_factory=dict[str, float])
    """When the oldest active task began, by tool; Unix seconds."""
    ends: list[TaskEnd] = field(default_factory=list[TaskEnd])
    """Tasks whose time is over, for the caller to report."""


def until_of(news: TaskNews) -> float:
    """Return until when a task is followed, from its first news."""
    if news.began is None:
        return news.at + OVER
    return news.began + min(news.ttl or _ENDLESS, LONGEST) + _LATE
