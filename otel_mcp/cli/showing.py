"""``otel-mcp show`` and ``rm``: find one session by its id or the first characters of it; show or end it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import aclosing
from html import escape
from io import StringIO
from textwrap import wrap
from typing import Final, Literal

from otel_mcp.cli import listing, rows
from otel_mcp.cli.calls import ALL_FIELDS, FIELDS, NOTES, follow_tasks
from otel_mcp.cli.document import Document
from otel_mcp.cli.rows import cells, code, packed, plain
from otel_mcp.cli.store import Reader, configured, run
from otel_mcp.cli.story import Story
from otel_mcp.cli.terminal import Code, Failure, Terminal, clean, counted, say
from otel_mcp.settings import Settings

StoryFormat = Literal["table", "tsv", "json", "md", "html"]
_MAX_SEARCHED: Final = 2_000
"""Newest sessions that are searched for a successor."""
_MAX_CANDIDATES: Final = 20
"""Sessions that are listed for an ambiguous id."""
_ESCAPES: Final = re.compile(r"\x1b(\[[0-9;]*m|\]8;[^\x1b]*\x1b\\)")
_PAGE: Final = """\
<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="referrer" content="no-referrer">
<meta name="viewport" content="width=device-width"><title>Session</title>
<style>
body {{ margin: 2rem; color: #1b1f24; }} a {{ color: inherit; }}
pre {{ font: 14px/1.5 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }}
@media (prefers-color-scheme: dark) {{ body {{ background: #0d1117; color: #e6edf3; }} }}
{stylesheet}</style></head><body><pre><code>{code}</code></pre></body></html>"""
_PAGE_WIDTH: Final = 120


async def choose(reader: Reader, given: str) -> Document:
    """Find the one session whose id is `given` or begins with it.

    Raises:
        Failure: no session matches, or several do.
    """
    if not given:
        raise Failure(Code.USAGE, "no id", "otel-mcp sessions -o name lists them")
    found = await reader.documents([given]) or await reader.scan(given, _MAX_CANDIDATES + 1, is_of_any=True)
    if len(found) == 1:
        return found[0]
    shown = clean(given, 128)
    if not found:
        hint = "otel-mcp sessions lists them; ended ones are kept for ten minutes"
        raise Failure(Code.NOT_FOUND, f"no session {shown}", hint)
    names = [f"{plain(each.session_id)}  {plain(each.client)}" for each in found[:_MAX_CANDIDATES]]
    more = ["..."] if len(found) > _MAX_CANDIDATES else []
    raise Failure(Code.NOT_FOUND, f"several sessions begin with {shown}:", "\n  ".join([*names, *more]))


async def _follow(settings: Settings, document: Document) -> None:
    """Look what has become of the tasks that the calls of a session have begun."""
    if any(call.task for call in document.calls):
        async with aclosing(Reader(settings, document.service)) as reader:
            follow_tasks(document.calls, await reader.values("tasks"))


async def _find_successor(reader: Reader, session_id: str) -> Document | None:
    """Find the session that continues this one, among the newest of its service."""
    async with aclosing(reader):
        members, _ = await reader.index(_MAX_SEARCHED)
        found = await reader.documents(member.session_id for member in members)
    return next((each for each in found if each.facts["previous_id"] == session_id), None)


def show(
    terminal: Terminal,
    redis_url: str | None,
    given: str,
    service: str | None,
    form: StoryFormat | None,
    *,
    headers: bool,
) -> None:
    """Write the story of one session."""
    settings = configured(redis_url)

    async def look() -> Story:
        async with aclosing(Reader(settings, service)) as reader:
            document = await choose(reader, given)
            await reader.add_callers([document])
            previous, successor = document.facts["previous_id"], None
            before = await reader.documents([previous] if previous else [])
        await _follow(settings, document)
        if document.cut or document.ended_by == "replaced":
            successor = await _find_successor(Reader(settings, document.service), document.session_id)
        return Story(document, settings, before[0] if before else None, successor)

    story = run(look(), settings)
    if form == "json":
        whole = {
            "schema": "otel-mcp/story/1",
            **rows.as_json(story.document, listing.FIELDS),
            "bytes_given": story.given,
            "tokens_given": story.tokens,
            "continued_by": story.continued_by,
            "links": story.links,
            "tool_calls": [rows.as_json(line, ALL_FIELDS) for line in story.lines],
            "after": story.after,
            "advice": [each._asdict() for each in story.document.advice],
        }
        terminal.data(json.dumps(whole, indent=2))
    elif form == "md":
        for text in _markdown(story):
            terminal.data(text)
    elif form == "html":
        terminal.data(_html(story))
    elif rows.is_plain(terminal, form):
        for name, value in {**story.facts(), **story.links}.items():
            terminal.data(f"{name}\t{value}")
        terminal.data("--")
        for text in rows.lines(terminal, story.lines, ALL_FIELDS, "tsv"):
            terminal.data(text)
    else:
        for text in _table(terminal, story, headers=headers):
            terminal.data(text)
        for name, url in story.links.items():
            terminal.data(f"{name}: {url}")
    terminal.flush()


def _table(terminal: Terminal, story: Story, *, headers: bool = True, is_linked: bool = False) -> Iterator[str]:
    """Write the story for people."""
    yield terminal.paint(story.headline(), "bold")
    yield from packed(story.origin(), " · ", terminal.width)
    for texts, style in ((story.meaning(), "yellow"), (story.advice(), "cyan")):
        for text in texts:
            yield from (terminal.paint(line, style) for line in wrap(text, terminal.width, subsequent_indent="  "))
    if not story.lines:
        yield "no tool was called"
        yield from (terminal.paint(f"-- {text} --", "dim") for text in story.after)
        return
    table = rows.lines(terminal, story.lines, FIELDS, headers=headers)
    indent = cells(_ESCAPES.sub("", table[0])) + 2
    if headers:
        yield table.pop(0)
    for line, row in zip(story.lines, table, strict=True):
        for between in line.before:
            yield terminal.paint(f"-- {between} --", "dim")
        first, *more = packed(line.notes, ", ", terminal.width - indent) or [""]
        text = f"{row}  {first}".rstrip()
        yield f"\x1b]8;;{line.trace_url}\x1b\\{text}\x1b]8;;\x1b\\" if is_linked and line.trace_url else text
        for note in more:
            yield " " * indent + note
    yield from (terminal.paint(f"-- {text} --", "dim") for text in story.after)
    yield from story.closing()


def _markdown(story: Story) -> Iterator[str]:
    """Write the story for a ticket."""
    facts = story.facts()
    yield f"### {code(facts.pop('session'))}"
    yield ""
    for text in story.meaning():
        yield code(text)
        yield ""
    for name, value in facts.items():
        yield f"- {name}: {code(value)}"
    for name, url in story.links.items():
        yield f"- [{name}](<{url}>)"
    columns = (*FIELDS, NOTES)
    yield ""
    yield f"| {' | '.join(field.title.lower() for field in columns)} |"
    yield f"|{' --- |' * len(columns)}"
    for line in story.lines:
        for between in line.before:
            yield f"| | *{code(between)}* | | | | |"
        yield rows.markdown_row(line, columns, line.trace_url)
    for text in story.after:
        yield f"| | *{code(text)}* | | | | |"
    for text in story.closing():
        yield ""
        yield text


def _html(story: Story) -> str:
    """Write the story as one HTML page that loads nothing: the terminal's output, with facts and links."""
    from rich.console import Console
    from rich.text import Text

    page = Terminal("always")
    console = Console(record=True, file=StringIO(), width=_PAGE_WIDTH, color_system="standard")
    page.width = _PAGE_WIDTH
    links = [f"\x1b]8;;{url}\x1b\\{name}\x1b]8;;\x1b\\" for name, url in story.links.items()]
    facts = [f"{name}: {value}" for name, value in story.facts().items()]
    for text in (*_table(page, story, is_linked=True), "", *links, "", *facts):
        console.print(Text.from_ansi(text), soft_wrap=True)
    title = f"<title>Session {escape(plain(story.document.session_id))}</title>"
    return console.export_html(code_format=_PAGE, inline_styles=False).replace("<title>Session</title>", title, 1)


def remove(terminal: Terminal, redis_url: str | None, given: str, *, yes: bool) -> None:
    """End the session for all replicas and remove its document; exported telemetry stays.

    Raises:
        Failure: no session matches, several do, or there is no terminal to ask for confirmation.
    """
    from otel_mcp.store.redis.store import RedisStore

    settings = configured(redis_url)
    if not yes and not sys.stdin.isatty():
        raise Failure(Code.USAGE, "no terminal to ask for confirmation", "--yes ends the session without asking")

    async def look() -> Document:
        async with aclosing(Reader(settings)) as reader:
            return await choose(reader, given)

    document = run(look(), settings)
    name = plain(document.session_id)
    if not yes:
        import typer

        calls = counted(document.call_count, "call")
        if not typer.confirm(f"End session {name} ({plain(document.client)}, {calls})?", err=True):
            raise Failure(Code.NOT_FOUND, "nothing was done")

    async def end() -> bool:
        # Only the session's own service may end it.
        service = document.service or settings.service_name
        async with aclosing(RedisStore(settings.model_copy(update={"service_name": service}))) as store:
            return await store.end(document.session_id)

    if not run(end(), settings):
        raise Failure(Code.NOT_FOUND, f"session {name} is gone, or was not written by otel-mcp")
    terminal.data(name)
    terminal.flush()
    say("ended; a replica reports the end with its next sweep")
