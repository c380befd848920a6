"""``otel-mcp tools``: sum up the calls of each tool."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar, Final, Literal

from otel_mcp.cli import rows
from otel_mcp.cli.document import Call, Document
from otel_mcp.cli.listing import FAILED, MAX_SCANNED, WRONG, Query
from otel_mcp.cli.rows import NOTHING, Field, Format, duration, size
from otel_mcp.cli.store import Reader, configured, run
from otel_mcp.cli.terminal import Terminal, counted, say

_CATALOGUE_TTL: Final = 2 * 3_600_000_000
"""Microseconds by which a catalogue may be older than the newest one; a process that lists one notes it hourly."""
ToolsBy = Literal["calls", "wrong", "failed", "p95", "bytes", "listed", "name"]


@dataclass
class Tool:
    """The calls of one tool."""

    name: str
    definition: int | None = None
    """Bytes of the definition, if the tool is listed."""
    calls: list[Call] = field(default_factory=list[Call])
    is_partial: ClassVar = False

    def count(self, verdict: str) -> int:
        """Count the calls with this verdict."""
        return sum(call.verdict == verdict for call in self.calls)

    def quantile(self, fraction: float) -> float | None:
        """Return the seconds within which this fraction of the calls was answered; ``None`` = no calls."""
        if not self.calls:
            return None
        return sorted(call.duration for call in self.calls)[max(math.ceil(fraction * len(self.calls)) - 1, 0)]

    @property
    def given(self) -> int:
        """Bytes of all answers."""
        return sum(call.size or 0 for call in self.calls)

    @property
    def is_made_up(self) -> bool:
        """Whether every call was answered that there is no such tool."""
        return bool(self.calls) and all(call.failure == "unknown_tool" for call in self.calls)

    @property
    def note(self) -> str | None:
        """A remark on the tool: nobody called it, or it does not exist."""
        return "not called in these" if not self.calls else "no such tool" if self.is_made_up else None


def _quantile(title: str, fraction: float) -> Field[Tool]:
    def show(tool: Tool) -> str:
        seconds = tool.quantile(fraction)
        return NOTHING if seconds is None else duration(seconds)

    return Field(title, lambda tool: tool.quantile(fraction), title.lower(), show, is_number=True)


CALLED_FIELDS: Final[tuple[Field[Tool], ...]] = (
    Field("TOOL", lambda tool: tool.name, "tool", least=16, style="bold"),
    Field("CALLS", lambda tool: len(tool.calls), "calls", is_number=True),
    *(WRONG, FAILED, _quantile("P50", 0.5), _quantile("P95", 0.95)),
    Field("BYTES", lambda tool: tool.given, "bytes", lambda tool: size(tool.given), is_number=True),
    Field(
        "NOTE",
        lambda tool: tool.note,
        style=lambda tool: "yellow" if tool.note else None,
        leaves=1,
    ),
    Field("", lambda tool: tool.is_made_up, "made_up"),
)
"""Columns of a tool that was called."""
TOOL_FIELDS: Final = (
    *CALLED_FIELDS[:-2],
    Field[Tool](
        "LISTED",
        lambda tool: tool.definition,
        "definition",
        lambda tool: size(tool.definition),
        is_number=True,
        leaves=2,
    ),
    *CALLED_FIELDS[-2:],
)
"""Columns of a tool that is listed or was called."""
_TOOL_ORDERS: Final[dict[ToolsBy, Callable[[Tool], float]]] = {
    "calls": lambda tool: -len(tool.calls),
    "wrong": lambda tool: -tool.count("wrong"),
    "failed": lambda tool: -tool.count("failed"),
    "p95": lambda tool: -(tool.quantile(0.95) or 0.0),
    "bytes": lambda tool: -tool.given,
    "listed": lambda tool: -(tool.definition or 0),
    "name": lambda _: 0,
}


def definitions(catalogues: Iterable[bytes]) -> dict[str, int]:
    """Return the bytes of each listed tool's definition, from the catalogues in the store."""
    sizes: dict[str, int] = {}
    latest = 0
    for each in sorted(catalogues, reverse=True):
        with suppress(ValueError, LookupError, TypeError, AttributeError):  # Others' data.
            instant, _, summary = each.partition(b" ")
            latest = max(latest, int(instant))
            if int(instant) >= latest - _CATALOGUE_TTL:
                sizes = {name: int(size) for name, (_, size) in json.loads(summary)["tools"].items()} | sizes
    return sizes


def gather(
    calls: Iterable[Call], by: ToolsBy = "calls", listed: Mapping[str, int] = MappingProxyType({})
) -> list[Tool]:
    """Group calls by tool, add tools that are only `listed`, and sort them."""
    found = {name: Tool(name, size) for name, size in listed.items()}
    for call in calls:
        found.setdefault(call.tool, Tool(call.tool)).calls.append(call)
    return sorted(found.values(), key=lambda tool: (_TOOL_ORDERS[by](tool), tool.name))


def tools(
    terminal: Terminal, redis_url: str | None, query: Query, sort_by: ToolsBy, form: Format | None, *, headers: bool
) -> None:
    """List the tools that the newest sessions called, and those that are listed but were not called."""
    settings = configured(redis_url)

    async def look() -> tuple[list[Document], int, dict[str, int]]:
        async with Reader.find(settings, query.service) as reader:
            members, live = await reader.index(query.limit)
            if query.ended:
                every = await reader.scan("", MAX_SCANNED, is_of_any=False)
                documents = sorted(every, key=lambda each: -(each.last_activity or 0))[: query.limit]
            else:
                documents = await reader.documents(member.session_id for member in members)
            catalogues = await reader.values("catalogues")
        return documents, live, definitions(catalogues)

    documents, live, listed = run(look(), settings)
    begin = 0.0 if query.since is None else time.time() - query.since
    found = gather((call for each in documents for call in each.calls if call.started >= begin), sort_by, listed)
    rows.write(terminal, found, TOOL_FIELDS, form, "tool", headers=headers)
    looked = f"{len(documents):,} of {counted(live, 'live session')}; ended ones are left out: --all"
    if query.ended:
        looked = f"{counted(len(documents), 'session')}, including those that ended in the last ten minutes"
    say(f"the newest calls of {looked}; the dashboards have all calls")
