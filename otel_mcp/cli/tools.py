"""``otel-mcp tools``: the calls of each tool, summed up."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import ClassVar, Final, Literal

from otel_mcp.cli import rows
from otel_mcp.cli.document import Call, Document
from otel_mcp.cli.listing import FAILED, WRONG, Query
from otel_mcp.cli.rows import Field, Format, duration, size
from otel_mcp.cli.store import Reader, configured, run
from otel_mcp.cli.terminal import Terminal, counted

ToolsBy = Literal["calls", "wrong", "failed", "p95", "bytes", "name"]


@dataclass
class Tool:
    """The calls of one tool."""

    name: str
    calls: list[Call] = field(default_factory=list[Call])
    is_partial: ClassVar = False

    def count(self, verdict: str) -> int:
        """Calls that ended so."""
        return sum(call.verdict == verdict for call in self.calls)

    def quantile(self, part: float) -> float:
        """Return the duration within which this part of the calls was answered, in seconds."""
        return sorted(call.duration for call in self.calls)[max(math.ceil(part * len(self.calls)) - 1, 0)]

    @property
    def given(self) -> int:
        """Bytes of all answers."""
        return sum(call.size or 0 for call in self.calls)

    @property
    def is_made_up(self) -> bool:
        """Every call of it was answered that there is no such tool."""
        return all(call.failure == "unknown_tool" for call in self.calls)


def _quantile(title: str, part: float) -> Field[Tool]:
    show: Callable[[Tool], str] = lambda tool: duration(tool.quantile(part))  # noqa: E731
    return Field(title, lambda tool: tool.quantile(part), title.lower(), show, is_number=True)


TOOL_FIELDS: Final[tuple[Field[Tool], ...]] = (
    Field("TOOL", lambda tool: tool.name, "tool", least=16, style="bold"),
    Field("CALLS", lambda tool: len(tool.calls), "calls", is_number=True),
    *(WRONG, FAILED, _quantile("P50", 0.5), _quantile("P95", 0.95)),
    Field("BYTES", lambda tool: tool.given, "bytes", lambda tool: size(tool.given), is_number=True),
    Field(
        "NOTE",
        lambda tool: "no such tool" if tool.is_made_up else None,
        style=lambda tool: "yellow" if tool.is_made_up else None,
        leaves=1,
    ),
    Field("", lambda tool: tool.is_made_up, "made_up"),
)
"""What is shown of a tool."""
_TOOL_ORDERS: Final[dict[ToolsBy, Callable[[Tool], float]]] = {
    "calls": lambda tool: -len(tool.calls),
    "wrong": lambda tool: -tool.count("wrong"),
    "failed": lambda tool: -tool.count("failed"),
    "p95": lambda tool: -tool.quantile(0.95),
    "bytes": lambda tool: -tool.given,
    "name": lambda _: 0,
}


def gather(calls: Iterable[Call], by: ToolsBy = "calls") -> list[Tool]:
    """Gather the tools of these calls, those first that matter most."""
    found: dict[str, Tool] = {}
    for call in calls:
        found.setdefault(call.tool, Tool(call.tool)).calls.append(call)
    return sorted(found.values(), key=lambda tool: (_TOOL_ORDERS[by](tool), tool.name))


def tools(
    terminal: Terminal, redis_url: str | None, query: Query, sort_by: ToolsBy, form: Format | None, *, headers: bool
) -> None:
    """List the tools that were called in the newest sessions."""
    settings = configured(redis_url)

    async def look() -> tuple[list[Document], int]:
        reader = await Reader.find(settings, query.service)
        members, live = await reader.index(query.limit)
        documents = await reader.documents(member.session_id for member in members)
        await reader.aclose()
        return documents, live

    documents, live = run(look(), settings)
    begin = 0.0 if query.since is None else time.time() - query.since
    found = gather((call for each in documents for call in each.calls if call.started >= begin), sort_by)
    rows.write(terminal, found, TOOL_FIELDS, form, "tool", headers=headers)
    looked = counted(len(documents), "session")
    terminal.say(f"the newest calls of {looked}, {live:,} live; the dashboards have all of them")
