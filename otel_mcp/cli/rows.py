"""Write rows as a table, tab-separated values, JSON or Markdown, from one list of fields."""

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
    """A column of a table, a key in JSON, or both."""

    title: str
    """Title of the column; empty = JSON only."""
    value: Callable[[Row], Any]
    """Returns the value for programs."""
    key: str = ""
    """Key in JSON; empty = column only."""
    show: Callable[[Row], str] | None = None
    """Returns the text for people, clean; ``None`` = the same as for programs."""
    style: str | Callable[[Row], str | None] | None = None
    is_number: bool = False
    least: int = 0
    """Width to which the column may shrink if the line is too long; 0 = it never shrinks."""
    leaves: int = 0
    """Order in which columns are dropped if the line is still too long, the highest first; 0 = never."""
    is_wide: bool = False
    """Only with ``-o wide``."""
    is_piped: bool = False
    """Always there in tab-separated values."""
    short: Callable[[Row], str] | None = None
    """Returns a shorter text for people, clean, for when the whole one does not fit."""

    def shown(self, row: Row) -> str:
        """Return the text for people."""
        return self.show(row) if self.show is not None else plain(self.value(row))

    def painted(self, terminal: Terminal, row: Row, text: str | None = None) -> str:
        """Return the text for people in its color."""
        style = self.style(row) if callable(self.style) else self.style
        return terminal.paint(self.shown(row) if text is None else text, style)


Fields = Sequence[Field[Row]]


def plain(value: object) -> str:
    """Format a value for tab-separated text; a dash = no value."""
    if isinstance(value, float):
        return f"{value:.6f}"
    if isinstance(value, list):
        return ", ".join(map(plain, cast("list[object]", value))) or NOTHING
    return NOTHING if value is None else clean(value, 256) or NOTHING


def as_json(row: Row, fields: Fields[Row]) -> dict[str, Any]:
    """Return one row as a JSON object."""
    return {field.key: field.value(row) for field in fields if field.key}


def json_line(document: dict[str, Any]) -> str:
    """Format JSON in one line of ASCII, with strangers' text escaped."""
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
    """Write rows in any format; in JSON, `kind` names a row in the schema, and `head` precedes the rows."""
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
    """Format one row by itself, without aligning it with others."""
    if form in {"json", "jsonl"}:
        return json_line({"schema": f"otel-mcp/{kind}/1", **as_json(row, fields)})
    if form == "name":
        return fields[0].shown(row)
    if is_plain(terminal, form):
        return lines(terminal, [row], fields, form)[0]
    return _GAP.join(field.painted(terminal, row) for field in fields if field.title and field.shown(row))


def is_plain(terminal: Terminal, form: str | None) -> bool:
    """Return whether to write tab-separated values, the default in a pipe."""
    return form == "tsv" or (form in {None, "wide"} and not terminal.is_interactive)


def lines(
    terminal: Terminal, rows: Sequence[Row], fields: Fields[Row], form: Format | None = "table", *, headers: bool = True
) -> list[str]:
    """Lay out a table, or tab-separated values in a pipe."""
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
        for column in shown:
            field = chosen[column]
            text, is_row = texts[column][number], not headers or number > 0
            if is_row and field.short is not None and cells(text) > widths[column]:
                text = field.short(rows[number - headers])
            text = cut(text, widths[column])
            space = " " * (widths[column] - cells(text))
            text = space + text if field.is_number else text if column == shown[-1] else text + space
            parts.append(field.painted(terminal, rows[number - headers], text) if is_row else text)
        result.append(_GAP.join(parts))
    if headers:
        result[0] = terminal.paint(result[0], "bold")
    return result


def _fit(fields: Fields[Any], widths: list[int], width: int) -> list[int]:
    """Drop columns and shrink `widths` until a line fits into `width`; return the indexes of the columns that stay."""
    shown = list(range(len(fields)))
    least = [min(each, field.least or each) for each, field in zip(widths, fields, strict=True)]

    def excess(sizes: Sequence[int]) -> int:
        return sum(sizes[column] for column in shown) + len(_GAP) * (len(shown) - 1) - width

    while excess(least) > 0:
        dropped = max(shown, key=lambda column: fields[column].leaves)
        if not fields[dropped].leaves:
            break
        shown.remove(dropped)
    while excess(widths) > 0 and (wide := [column for column in shown if widths[column] > least[column]]):
        # The widest column shrinks first.
        widths[max(wide, key=lambda column: widths[column])] -= 1
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
    """Join parts into lines of at most `width`, without cutting a part."""
    rows: list[str] = []
    for part in parts:
        if rows and cells(rows[-1]) + cells(between) + cells(part) <= width:
            rows[-1] += f"{between}{part}"
        else:
            rows.append(part)
    return rows


def code(text: str) -> str:
    """Format strangers' text for Markdown: as code, so that no markup in it works."""
    return f"`{clean(text).replace('`', chr(39)).replace('|', chr(92) + '|')}`"


def markdown_row(row: Row, fields: Fields[Row], url: str | None) -> str:
    """Format one row of a Markdown table; the second column carries the link."""
    texts = [field.shown(row) if field.is_number else code(field.shown(row) or NOTHING) for field in fields]
    texts[1] = f"[{texts[1]}](<{url}>)" if url else texts[1]
    return f"| {' | '.join('' if text == code(NOTHING) else text for text in texts)} |"


def age(seconds: float | None) -> str:
    """Format a duration in one unit: ``3s``, ``14m``, ``2h``, ``3d``."""
    if seconds is None:
        return NOTHING
    whole = max(int(seconds), 0)
    for limit, unit, one in ((60, "s", 1), (3600, "m", 60), (2 * 86_400, "h", 3600)):
        if whole < limit:
            return f"{whole // one}{unit}"
    return f"{whole // 86_400}d"


def duration(seconds: float) -> str:
    """Format a duration: ``3.2 ms``, ``4.2 s``, ``3 min``, ``2 h``."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def size(count: float | None) -> str:
    """Format a number of bytes: ``512 B``, ``1.2 kB``, ``3 MB``."""
    if count is None:
        return NOTHING
    for unit, one in (("MB", 1e6), ("kB", 1e3)):
        if count >= one * 0.9995:
            return f"{count / one:.3g} {unit}"
    return f"{count:.0f} B"


def moment(instant: float | None) -> str | None:
    """Format Unix seconds as ISO 8601 in UTC."""
    if not instant:
        return None
    return datetime.fromtimestamp(instant, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
