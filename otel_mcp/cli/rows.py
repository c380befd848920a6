"""Rows of anything, each field described once: tables for people, text between tabs for pipes, JSON, Markdown."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Generic, Literal, TypeVar, cast

from otel_mcp.cli.terminal import Terminal, clean

Row = TypeVar("Row")
Format = Literal["table", "wide", "tsv", "name", "json", "jsonl"]
NOTHING: Final = "-"
_GAP: Final = "  "


@dataclass(frozen=True)
class Field(Generic[Row]):
    """One thing that rows have: a column, a key of JSON, or both."""

    title: str
    """Of the column; empty = it is in JSON only."""
    value: Callable[[Row], Any]
    """As programs get it."""
    key: str = ""
    """Its name in JSON; empty = it is a column only."""
    show: Callable[[Row], str] | None = None
    """The same for people, where that differs. Of strangers' text only what `clean` lets through."""
    style: str | Callable[[Row], str | None] | None = None
    is_number: bool = False
    least: int = 0
    """Columns to which it may be cut where the line is too long; 0 = it is never cut."""
    leaves: int = 0
    """It is left out where the line is too long even so: the highest number first; 0 = never."""
    is_wide: bool = False
    """It is shown with ``-o wide`` only."""
    is_piped: bool = False
    """In text between tabs it is always there."""
    short: Callable[[Row], str] | None = None
    """The text for people where the whole does not fit; clean."""

    def shown(self, row: Row) -> str:
        """Return the text for people."""
        return self.show(row) if self.show is not None else plain(self.value(row))

    def painted(self, terminal: Terminal, row: Row, text: str | None = None) -> str:
        """Return the text for people in its color."""
        style = self.style(row) if callable(self.style) else self.style
        return terminal.paint(self.shown(row) if text is None else text, style)


Fields = Sequence[Field[Row]]


def plain(value: object) -> str:
    """Write a value as one word of text between tabs; a dash where there is none."""
    if isinstance(value, float):
        return f"{value:.6f}"
    if isinstance(value, list):
        return ", ".join(map(plain, cast("list[object]", value))) or NOTHING
    return NOTHING if value is None else clean(value, 256) or NOTHING


def as_json(row: Row, fields: Fields[Row]) -> dict[str, Any]:
    """Make one row for programs."""
    return {field.key: field.value(row) for field in fields if field.key}


def json_line(document: dict[str, Any]) -> str:
    """Write one JSON document in one line; what strangers wrote is in ASCII and escaped."""
    return json.dumps(document, separators=(",", ":"))


def write(
    terminal: Terminal,
    rows: Sequence[Row],
    fields: Fields[Row],
    form: Format | None,
    kind: str,
    *,
    headers: bool = True,
    **head: Any,
) -> None:
    """Write rows in one of all forms; `kind` names one of them in the schema, `head` goes before them in JSON."""
    if form == "json":
        found = [as_json(row, fields) for row in rows]
        terminal.data(json.dumps({"schema": f"otel-mcp/{kind}s/1", **head, f"{kind}s": found}, indent=2))
    elif form in {"name", "jsonl"}:
        for row in rows:
            terminal.data(line(terminal, row, fields, form, kind))
    else:
        for text in lines(terminal, rows, fields, form, headers=headers):
            terminal.data(text)
    terminal.flush()


def line(terminal: Terminal, row: Row, fields: Fields[Row], form: Format | None, kind: str) -> str:
    """Write one row in a line of its own, without knowing the others."""
    if form in {"json", "jsonl"}:
        return json_line({"schema": f"otel-mcp/{kind}/1", **as_json(row, fields)})
    if form == "name":
        return fields[0].shown(row)
    if is_plain(terminal, form):
        return lines(terminal, [row], fields, form)[0]
    return _GAP.join(field.painted(terminal, row) for field in fields if field.title and field.shown(row))


def is_plain(terminal: Terminal, form: str | None) -> bool:
    """Return whether rows are tab-separated text: by default in a pipe."""
    return form == "tsv" or (form in {None, "wide"} and not terminal.is_interactive)


def lines(
    terminal: Terminal, rows: Sequence[Row], fields: Fields[Row], form: Format | None = "table", *, headers: bool = True
) -> list[str]:
    """Lay out the lines of a table, or of tab-separated text."""
    piped = is_plain(terminal, form)
    chosen = [
        field for field in fields if field.title and (form == "wide" or not field.is_wide or (piped and field.is_piped))
    ]
    if piped:
        return ["\t".join(plain(field.value(row)) for field in chosen) for row in rows]
    texts = [[*([field.title] if headers else []), *(field.shown(row) for row in rows)] for field in chosen]
    widths = [max(map(cells, column), default=0) for column in texts]
    shown = _fit(chosen, widths, terminal.width)
    result: list[str] = []
    for number in range(len(rows) + headers):
        parts: list[str] = []
        for at in shown:
            field = chosen[at]
            text, is_row = texts[at][number], not headers or number > 0
            if is_row and field.short is not None and cells(text) > widths[at]:
                text = field.short(rows[number - headers])
            text = cut(text, widths[at])
            space = " " * (widths[at] - cells(text))
            text = space + text if field.is_number else text if at == shown[-1] else text + space
            parts.append(field.painted(terminal, rows[number - headers], text) if is_row else text)
        result.append(_GAP.join(parts))
    if headers:
        result[0] = terminal.paint(result[0], "bold")
    return result


def _fit(fields: Fields[Any], widths: list[int], width: int) -> list[int]:
    """Choose the columns that are shown, and in `widths` how wide, so that no line is longer than `width`."""
    shown = list(range(len(fields)))
    least = [min(widths[at], field.least or widths[at]) for at, field in enumerate(fields)]

    def excess(sizes: Sequence[int]) -> int:
        return sum(sizes[at] for at in shown) + len(_GAP) * (len(shown) - 1) - width

    while excess(least) > 0:
        left_out = max(shown, key=lambda at: fields[at].leaves)
        if not fields[left_out].leaves:
            break
        shown.remove(left_out)
    while excess(widths) > 0 and (wide := [at for at in shown if widths[at] > least[at]]):
        # The widest one gives way first.
        widths[max(wide, key=lambda at: widths[at])] -= 1
    return shown


def cells(text: str) -> int:
    """Count the columns of a terminal that a clean text takes."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def cut(text: str, width: int) -> str:
    """Cut the text to `width` columns, with an ellipsis."""
    if cells(text) <= width:
        return text
    from rich.cells import set_cell_size

    return f"{set_cell_size(text, width - 1).rstrip()}…"


def packed(parts: Sequence[str], between: str, width: int) -> list[str]:
    """Put as many parts in a line as there is room for; none is cut."""
    rows: list[str] = []
    for part in parts:
        if rows and cells(rows[-1]) + cells(between) + cells(part) <= width:
            rows[-1] += f"{between}{part}"
        else:
            rows.append(part)
    return rows


def code(text: str) -> str:
    """Strangers' text in Markdown: in code only, where it cannot do anything."""
    return f"`{clean(text).replace('`', chr(39)).replace('|', chr(92) + '|')}`"


def markdown_row(row: Row, fields: Fields[Row], url: str | None) -> str:
    """Write one row of a Markdown table; the second column is the link."""
    texts = [field.shown(row) if field.is_number else code(field.shown(row) or NOTHING) for field in fields]
    texts[1] = f"[{texts[1]}](<{url}>)" if url else texts[1]
    return f"| {' | '.join('' if text == code(NOTHING) else text for text in texts)} |"


def age(seconds: float | None) -> str:
    """Write a span of time for people: ``3s``, ``14m``, ``2h``, ``3d``."""
    if seconds is None:
        return NOTHING
    whole = max(int(seconds), 0)
    for limit, unit, one in ((60, "s", 1), (3600, "m", 60), (2 * 86_400, "h", 3600)):
        if whole < limit:
            return f"{whole // one}{unit}"
    return f"{whole // 86_400}d"


def duration(seconds: float) -> str:
    """Write for people how long something took."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def size(count: float | None) -> str:
    """Write bytes for people."""
    if count is None:
        return NOTHING
    for unit, one in (("MB", 1e6), ("kB", 1e3)):
        if count >= one * 0.9995:
            return f"{count / one:.3g} {unit}"
    return f"{count:.0f} B"


def moment(instant: float | None) -> str | None:
    """Write an instant as ISO text in UTC."""
    if not instant:
        return None
    return datetime.fromtimestamp(instant, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
