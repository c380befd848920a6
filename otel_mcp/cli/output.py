"""Rows as a table for people, as tab-separated text for pipes, as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from enum import Enum
from typing import Any, Final, Generic, TypeVar

from otel_mcp.cli.terminal import Terminal, clean

Row = TypeVar("Row")
NOTHING: Final = "-"
_GAP: Final = "  "
_WIDE: Final = frozenset({"W", "F"})


class Format(str, Enum):
    """How rows are written."""

    TABLE = "table"
    """Aligned columns with a header; the default on a terminal."""
    WIDE = "wide"
    """The same with more columns; in a pipe as `TSV`."""
    TSV = "tsv"
    """Whole values separated by tabs, no header; the default in a pipe."""
    NAME = "name"
    """One id or name a line."""
    JSON = "json"
    """One document with a versioned schema."""
    JSONL = "jsonl"
    """One document a line, each with a versioned schema."""


class ToolsBy(str, Enum):
    """What a list of tools is sorted by."""

    CALLS = "calls"
    WRONG = "wrong"
    FAILED = "failed"
    P95 = "p95"
    BYTES = "bytes"
    NAME = "name"


class StoryFormat(str, Enum):
    """How one session is written."""

    TABLE = "table"
    """For people; the default on a terminal."""
    TSV = "tsv"
    """Facts, then calls, as tab-separated whole values; the default in a pipe."""
    JSON = "json"
    MD = "md"
    """Markdown, for a ticket."""
    HTML = "html"
    """One page, without scripts and without anything from elsewhere."""


class TailFormat(str, Enum):
    """How calls are written as they land."""

    TABLE = "table"
    """For people; the default on a terminal."""
    TSV = "tsv"
    """Whole values separated by tabs; the default in a pipe."""
    JSONL = "jsonl"
    """One document a line, each with a versioned schema."""


class SortBy(str, Enum):
    """What a list is sorted by."""

    IDLE = "idle"
    AGE = "age"
    CALLS = "calls"
    WRONG = "wrong"
    FAILED = "failed"
    CLIENT = "client"


@dataclass(frozen=True)
class Column(Generic[Row]):
    """One column of a table."""

    title: str
    show: Callable[[Row], str]
    """The text for people; of strangers' text only what `clean` lets through."""
    whole: Callable[[Row], str] | None = None
    """The value for pipes, where it is another one."""
    style: Callable[[Row], str | None] = lambda _: None
    is_number: bool = False
    least: int = 0
    """Columns to which it may be cut where the line is too long; 0 = it is never cut."""
    leaves: int = 0
    """It is left out where the line is too long even so: the highest number first; 0 = never."""
    is_wide: bool = False
    """It is shown with ``-o wide`` only."""


def write_rows(
    terminal: Terminal, rows: Sequence[Row], columns: Sequence[Column[Row]], form: Format, *, headers: bool = True
) -> None:
    """Write rows as a table or as tab-separated text."""
    for line in lines(terminal, rows, columns, form, headers=headers):
        terminal.data(line)


def lines(
    terminal: Terminal, rows: Sequence[Row], columns: Sequence[Column[Row]], form: Format, *, headers: bool = True
) -> list[str]:
    """The lines of a table, or of tab-separated text."""
    chosen = [column for column in columns if form is Format.WIDE or not column.is_wide]
    if is_plain(terminal, form):
        return ["\t".join((column.whole or column.show)(row) for column in chosen) for row in rows]
    return _table(terminal, rows, chosen, headers=headers)


def is_plain(terminal: Terminal, form: Format) -> bool:
    """Whether rows are written as tab-separated text."""
    return form is Format.TSV or (form is Format.WIDE and not terminal.is_interactive)


def default(terminal: Terminal, form: Format | None) -> Format:
    """The format asked for, else what suits who reads."""
    return form or (Format.TABLE if terminal.is_interactive else Format.TSV)


def write_json(terminal: Terminal, document: dict[str, Any]) -> None:
    """Write one JSON document over several lines; what strangers wrote is in ASCII and escaped."""
    terminal.data(json.dumps(document, indent=2))


def json_line(document: dict[str, Any]) -> str:
    """One JSON document in one line."""
    return json.dumps(document, separators=(",", ":"))


def _table(terminal: Terminal, rows: Sequence[Row], columns: Sequence[Column[Row]], *, headers: bool) -> list[str]:
    texts = [[column.show(row) for row in rows] for column in columns]
    widths = [
        max([len(column.title) if headers else 0, *(cells(text) for text in texts[at])], default=0)
        for at, column in enumerate(columns)
    ]
    shown = _fit(columns, widths, terminal.width)
    last = shown[-1]
    result: list[str] = []
    if headers:
        titles = [_aligned(columns[at].title, widths[at], columns[at].is_number, at == last) for at in shown]
        result.append(terminal.paint(_GAP.join(titles), "bold"))
    for number, row in enumerate(rows):
        parts = [
            terminal.paint(
                _aligned(texts[at][number], widths[at], columns[at].is_number, at == last), columns[at].style(row)
            )
            for at in shown
        ]
        result.append(_GAP.join(parts))
    return result


def _fit(columns: Sequence[Column[Any]], widths: list[int], width: int) -> list[int]:
    """Which columns are shown, and in `widths` how wide, so that lines are not longer than `width`."""
    shown = list(range(len(columns)))
    least = [min(widths[at], column.least or widths[at]) for at, column in enumerate(columns)]

    def excess(sizes: Sequence[int]) -> int:
        return sum(sizes[at] for at in shown) + len(_GAP) * (len(shown) - 1) - width

    while excess(least) > 0:
        left_out = max(shown, key=lambda at: columns[at].leaves)
        if not columns[left_out].leaves:
            break
        shown.remove(left_out)
    while excess(widths) > 0 and (cut := [at for at in shown if widths[at] > least[at]]):
        # The widest one gives way first.
        widths[max(cut, key=lambda at: widths[at])] -= 1
    return shown


def cells(text: str) -> int:
    """How many columns of a terminal a clean text takes."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(character) else 1 + (east_asian_width(character) in _WIDE) for character in text)


def _aligned(text: str, width: int, is_number: bool, is_last: bool) -> str:
    text = cut(text, width)
    space = " " * (width - cells(text))
    if is_number:
        return space + text
    return text if is_last else text + space


def cut(text: str, width: int) -> str:
    """The text, cut to `width` columns with an ellipsis."""
    if cells(text) <= width:
        return text
    kept = text[:width]
    while kept and cells(kept) > width - 1:
        kept = kept[:-1]
    return f"{kept}…"


def text_of(value: str | None) -> str:
    """What a stranger wrote, made harmless; a dash where there is nothing."""
    return (clean(value, 256) if value else "") or NOTHING


def age(seconds: float | None) -> str:
    """A span of time for people: ``3s``, ``14m``, ``2h``, ``3d``."""
    if seconds is None:
        return NOTHING
    whole = max(int(seconds), 0)
    for limit, unit, size in ((60, "s", 1), (3600, "m", 60), (2 * 86_400, "h", 3600)):
        if whole < limit:
            return f"{whole // size}{unit}"
    return f"{whole // 86_400}d"


def duration(seconds: float) -> str:
    """How long something took, for people."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def size(count: float | None) -> str:
    """Bytes for people."""
    if count is None:
        return NOTHING
    for unit, one in (("MB", 1e6), ("kB", 1e3)):
        if count >= one * 0.9995:
            return f"{count / one:.3g} {unit}"
    return f"{count:.0f} B"


def moment(instant: float | None) -> str | None:
    """An instant as ISO text in UTC."""
    if not instant:
        return None
    return datetime.fromtimestamp(instant, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
