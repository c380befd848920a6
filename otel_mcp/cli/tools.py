"""``otel-mcp tools``: how the tools do, from the calls that the documents hold."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from otel_mcp.cli import output
from otel_mcp.cli.document import Call
from otel_mcp.cli.output import NOTHING, Column, Format, ToolsBy, duration, size, text_of
from otel_mcp.cli.reading import Reader
from otel_mcp.cli.store import configured, run
from otel_mcp.cli.terminal import Terminal

LIST_SCHEMA: Final = "otel-mcp/tools/1"
SCHEMA: Final = "otel-mcp/tool/1"
_AT_ONCE: Final = 500
"""Documents that one MGET brings."""


@dataclass
class Tool:
    """The calls of one tool."""

    name: str
    calls: int = 0
    wrong: int = 0
    failed: int = 0
    unknown: int = 0
    """Calls that were answered that there is no such tool."""
    given: int = 0
    """Bytes of all answers."""
    durations: list[float] = field(default_factory=list[float])
    """Seconds."""

    def add(self, call: Call) -> None:
        """Count one call."""
        self.calls += 1
        self.wrong += call.verdict == "wrong"
        self.failed += call.verdict == "failed"
        self.unknown += call.failure == "unknown_tool"
        self.given += call.size or 0
        self.durations.append(call.duration)

    def quantile(self, part: float) -> float:
        """The duration within which this part of the calls was answered, in seconds."""
        ordered = sorted(self.durations)
        return ordered[max(math.ceil(part * len(ordered)) - 1, 0)] if ordered else 0.0

    @property
    def is_made_up(self) -> bool:
        """No call of it reached a tool."""
        return 0 < self.calls == self.unknown


def gather(calls: Iterable[Call]) -> list[Tool]:
    """The tools of these calls."""
    tools: dict[str, Tool] = {}
    for call in calls:
        tools.setdefault(call.tool, Tool(call.tool)).add(call)
    return list(tools.values())


def sort(tools: list[Tool], by: ToolsBy) -> None:
    """Put first what matters most."""
    tools.sort(key=lambda tool: (_ORDERS[by](tool), tool.name))


_ORDERS: Final[dict[ToolsBy, Callable[[Tool], float]]] = {
    ToolsBy.CALLS: lambda tool: -tool.calls,
    ToolsBy.WRONG: lambda tool: -tool.wrong,
    ToolsBy.FAILED: lambda tool: -tool.failed,
    ToolsBy.P95: lambda tool: -tool.quantile(0.95),
    ToolsBy.BYTES: lambda tool: -tool.given,
    ToolsBy.NAME: lambda _: 0,
}


def _made_up(tool: Tool) -> str | None:
    return "yellow" if tool.is_made_up else None


def _quantile(title: str, part: float) -> Column[Tool]:
    return Column(
        title,
        lambda tool: duration(tool.quantile(part)),
        lambda tool: f"{tool.quantile(part):.6f}",
        is_number=True,
    )


COLUMNS: Final[tuple[Column[Tool], ...]] = (
    Column("TOOL", lambda tool: text_of(tool.name), least=16, style=lambda _: "bold"),
    Column("CALLS", lambda tool: str(tool.calls), is_number=True),
    Column("WRONG", lambda tool: str(tool.wrong), style=lambda tool: "yellow" if tool.wrong else None, is_number=True),
    Column("FAILED", lambda tool: str(tool.failed), style=lambda tool: "red" if tool.failed else None, is_number=True),
    _quantile("P50", 0.5),
    _quantile("P95", 0.95),
    Column("BYTES", lambda tool: size(tool.given), lambda tool: str(tool.given), is_number=True),
    Column("NOTE", lambda tool: "no such tool" if tool.is_made_up else NOTHING, style=_made_up, leaves=1),
)


def as_json(tool: Tool) -> dict[str, Any]:
    """One tool for programs."""
    return {
        "tool": tool.name,
        "calls": tool.calls,
        "wrong": tool.wrong,
        "failed": tool.failed,
        "p50": tool.quantile(0.5),
        "p95": tool.quantile(0.95),
        "bytes": tool.given,
        "made_up": tool.is_made_up,
    }


def tools(
    terminal: Terminal,
    redis_url: str | None,
    service: str | None,
    since: float | None,
    limit: int,
    sort_by: ToolsBy,
    form: Format,
    headers: bool,
) -> None:
    """List the tools that were called in the newest sessions."""
    settings = configured(redis_url)

    async def look() -> tuple[list[Call], int, int]:
        reader = await Reader.find(settings, service)
        members, live = await reader.index(limit)
        ids = [member.session_id for member in members]
        calls: list[Call] = []
        for at in range(0, len(ids), _AT_ONCE):
            for document in await reader.documents(ids[at : at + _AT_ONCE]):
                calls += document.calls
        await reader.aclose()
        return calls, len(members), live

    calls, looked, live = run(look(), settings)
    begin = 0.0 if since is None else time.time() - since
    found = gather(call for call in calls if call.started >= begin)
    sort(found, sort_by)
    if form is Format.JSON:
        output.write_json(terminal, {"schema": LIST_SCHEMA, "tools": [as_json(tool) for tool in found]})
    elif form in {Format.NAME, Format.JSONL}:
        for tool in found:
            named = form is Format.NAME
            terminal.data(text_of(tool.name) if named else output.json_line({"schema": SCHEMA, **as_json(tool)}))
    else:
        output.write_rows(terminal, found, COLUMNS, form, headers=headers)
    terminal.flush()
    terminal.say(f"the newest calls of {looked:,} sessions, {live:,} live; the dashboards have all of them")
