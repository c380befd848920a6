"""``otel-mcp show``: find one session by the beginning of its id, and write its story."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from otel_mcp.cli import output, pages, story
from otel_mcp.cli.document import Document
from otel_mcp.cli.listing import as_json, client
from otel_mcp.cli.output import NOTHING, Column, Format, StoryFormat, cells, size, text_of
from otel_mcp.cli.reading import Reader
from otel_mcp.cli.store import configured, run
from otel_mcp.cli.story import Line, Story
from otel_mcp.cli.terminal import Code, Failure, Terminal, clean

SCHEMA: Final = "otel-mcp/story/1"
_LISTED: Final = 20
"""Sessions that an ambiguous id may mean, as many as are listed."""
_PAINT: Final = re.compile(r"\x1b\[[0-9;]*m")
_COLORS: Final = {"wrong": "yellow", "failed": "red", "cancelled": "dim", "refused": "magenta"}

_COLUMNS: Final[tuple[Column[Line], ...]] = (
    Column("AT", lambda line: line.offset, lambda line: f"{line.at:.3f}", is_number=True),
    Column("TOOL", lambda line: text_of(line.call.tool), least=12, style=lambda _: "bold"),
    Column(
        "RESULT",
        lambda line: text_of(line.call.verdict),
        style=lambda line: _COLORS.get(line.call.verdict),
    ),
    Column("TOOK", story.took, lambda line: f"{line.call.duration:.6f}", is_number=True),
    Column(
        "SIZE",
        lambda line: size(line.call.size),
        lambda line: NOTHING if line.call.size is None else str(line.call.size),
        is_number=True,
    ),
)
_WHOLE: Final = (
    *_COLUMNS,
    Column[Line]("NOTES", lambda line: ", ".join(line.notes) or NOTHING),
    Column[Line]("BETWEEN", lambda line: ", ".join(line.before) or NOTHING),
    Column[Line]("TRACE", lambda line: text_of(line.call.trace_id)),
)


def show(
    terminal: Terminal, redis_url: str | None, given: str, service: str | None, form: StoryFormat | None, headers: bool
) -> None:
    """Write the story of one session."""
    settings = configured(redis_url)

    async def look() -> Document:
        reader = Reader(settings, service)
        document = await choose(reader, given)
        await reader.add_callers([document])
        await reader.aclose()
        return document

    shown = Story(run(look(), settings), settings)
    write(terminal, shown, form or (StoryFormat.TABLE if terminal.is_interactive else StoryFormat.TSV), headers=headers)
    terminal.flush()


async def choose(reader: Reader, given: str) -> Document:
    """The one session whose id is, or begins with, what was given.

    Raises:
        Failure: there is none, or there are several.
    """
    if not given:
        raise Failure(Code.USAGE, "no id", "otel-mcp sessions -o name lists them")
    exact = await reader.one(given)
    if exact is not None:
        return exact
    found = await reader.beginning(given, _LISTED + 1)
    if len(found) == 1:
        return found[0]
    shown = clean(given, 128)
    if not found:
        raise Failure(
            Code.NOT_FOUND, f"no session {shown}", "otel-mcp sessions lists them; ended ones stay for ten minutes"
        )
    names = [f"{text_of(each.session_id)}  {client(each)}" for each in found[:_LISTED]]
    if len(found) > _LISTED:
        names.append("...")
    raise Failure(Code.NOT_FOUND, f"several sessions begin with {shown}:", "\n  ".join(names))


def write(terminal: Terminal, shown: Story, form: StoryFormat, *, headers: bool) -> None:
    """Write a story."""
    if form is StoryFormat.JSON:
        output.write_json(terminal, {"schema": SCHEMA, **as_json(shown.document), **story.as_json(shown)})
    elif form in {StoryFormat.MD, StoryFormat.HTML}:
        for line in (pages.markdown if form is StoryFormat.MD else pages.html)(shown):
            terminal.data(line)
    elif form is StoryFormat.TSV:
        for name, value in shown.facts():
            terminal.data(f"{name}\t{value}")
        terminal.data("--")
        output.write_rows(terminal, shown.lines, _WHOLE, Format.TSV)
    else:
        _table(terminal, shown, headers=headers)


def _table(terminal: Terminal, shown: Story, *, headers: bool) -> None:
    terminal.data(terminal.paint(shown.headline(), "bold"))
    for part in _packed(shown.origin(), " · ", terminal.width):
        terminal.data(part)
    if shown.lines:
        rows = output.lines(terminal, shown.lines, _COLUMNS, Format.TABLE, headers=headers)
        indent = cells(_PAINT.sub("", rows[0])) + 2
        if headers:
            terminal.data(rows.pop(0))
        for line, row in zip(shown.lines, rows, strict=True):
            for between in line.before:
                terminal.data(terminal.paint(f"-- {between} --", "dim"))
            first, *more = _packed(line.notes, ", ", terminal.width - indent) or [""]
            terminal.data(f"{row}  {first}".rstrip())
            for note in more:
                terminal.data(" " * indent + note)
        terminal.data(shown.total())
    else:
        terminal.data("no tool was called")
    for name, url in shown.links().items():
        terminal.data(f"{name}: {url}")


def _packed(parts: Sequence[str], between: str, width: int) -> list[str]:
    """The parts, as many in a line as there is room for; none is cut."""
    rows: list[str] = []
    for part in parts:
        if rows and cells(rows[-1]) + cells(between) + cells(part) <= width:
            rows[-1] += f"{between}{part}"
        else:
            rows.append(part)
    return rows
