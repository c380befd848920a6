"""Tasks that tool calls have begun: the row of the board of the tools about them."""

from __future__ import annotations

from typing import Final

from otel_mcp import semconv as names

from . import contract as m
from . import panels, query
from .board import Board
from .names import label
from .targets import now, over_time

_STATUS: Final = label(names.TASK_STATUS)
_CHOSEN: Final = f'{query.TOOL}=~"$tool"'
_NONE: Final = f'label_replace(vector(0), "{query.TOOL}", "none", "", "")'
_NOBODY: Final = f'label_replace(vector(0), "{query.SERVICE}", "none", "", "")'
_BOTH: Final = f"{query.TOOL}, {_STATUS}"
_LEGEND: Final = query.legend(query.TOOL, _STATUS)


def add(b: Board) -> None:
    """Add the panels of tasks."""
    active = f"max by ({query.SERVICE}, {_BOTH}) ({query.select(m.TASK_ACTIVE.series, _CHOSEN)})"
    b.lines(
        "Running tasks",
        "Tasks that have begun and not ended, on all replicas; `input_required` waits for a person.",
        [over_time(f"sum by ({_BOTH}) ({active}) or {_NONE}", _LEGEND)],
        panels.COUNT,
        stacked=True,
    )
    b.lines(
        "Oldest task",
        "How long the oldest one has been running: a line that only climbs is a task that hangs, or whose client "
        "no longer asks for it.",
        [over_time(f"max by ({query.TOOL}) ({query.select(m.TASK_OLDEST.series, _CHOSEN)}) or {_NONE}", _tool())],
        panels.SECONDS,
    )
    duration = query.quantile(0.95, m.TASK_DURATION, _CHOSEN, by=query.TOOL)
    b.lines(
        "Duration of tasks, 95th percentile",
        "From the tool call that began them until they were finished.",
        [over_time(f"{duration} or {_NONE}", _tool())],
        panels.SECONDS,
    )
    b.bars(
        "How tasks ended",
        "In the range on screen. `failed` is the tool's or the server's failure.",
        now(f"{query.increase(m.TASK_DURATION.count, _CHOSEN, by=_BOTH)} > 0 or {_NONE}", _LEGEND),
        panels.COUNT,
    )
    b.bars(
        "Never fetched",
        "Tasks whose time was over before their client had the result, by the last status that was seen: "
        "`completed` and `failed` were work for nothing; of `working` nobody has asked how they ended.",
        now(f"{query.increase(m.TASK_UNFETCHED.series, _CHOSEN, by=_BOTH)} > 0 or {_NONE}", _LEGEND),
        panels.COUNT,
    )
    polls = query.rate(m.OPERATION_DURATION.count, f'{query.METHOD}="tasks/get"', by=query.SERVICE)
    begun = query.rate(m.TASK_STARTED.series, by=query.SERVICE)
    b.lines(
        "Polls of a task",
        "How often clients ask for the status of a task: many times a minute, and the server names a poll interval "
        "that is too short.",
        [over_time(f"{polls} / ({begun} > 0) or {_NOBODY}", query.legend(query.SERVICE))],
        panels.COUNT,
    )


def _tool() -> str:
    return query.legend(query.TOOL)
