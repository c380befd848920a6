"""A story as Markdown for a ticket, and as one page of HTML that loads nothing."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Final

from otel_mcp.cli.output import size
from otel_mcp.cli.story import Line, Story, took
from otel_mcp.cli.terminal import clean

_TITLES: Final = ("at", "tool", "result", "took", "size", "notes")
_STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #1b1f24; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .25rem .75rem; border-bottom: 1px solid #d8dee4; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tr.between td { color: #656d76; font-style: italic; }
.wrong { color: #9a6700; } .failed { color: #cf222e; } .ok { color: #1a7f37; }
code { font-family: ui-monospace, monospace; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; } dd { margin: 0; }
@media (prefers-color-scheme: dark) {
  body { background: #0d1117; color: #e6edf3; } a { color: #58a6ff; } th, td { border-color: #30363d; }
}
"""


def markdown(story: Story) -> Iterator[str]:
    """The lines of the story in Markdown; strangers' text stands in code only, where it cannot do anything."""
    yield f"### {_code(story.document.session_id)}"
    yield ""
    links = story.links()
    for name, value in story.facts():
        if name not in {"session", *links}:
            yield f"- {name}: {_code(value)}"
    for name, url in links.items():
        yield f"- [{name}](<{url}>)"
    yield ""
    yield f"| {' | '.join(_TITLES)} |"
    yield f"|{' --- |' * len(_TITLES)}"
    for line in story.lines:
        for between in line.before:
            yield f"| | *{_code(between)}* | | | | |"
        tool, url = _code(line.call.tool), story.trace_url(line.call)
        notes = ", ".join(_code(note) for note in line.notes)
        cells = (
            line.offset,
            f"[{tool}](<{url}>)" if url else tool,
            _code(line.call.verdict),
            took(line),
            size(line.call.size),
            notes,
        )
        yield f"| {' | '.join(cells)} |"
    yield ""
    yield story.total()


def _code(text: str) -> str:
    return f"`{clean(text, 256).replace('`', chr(39)).replace('|', chr(92) + '|')}`"


def html(story: Story) -> Iterator[str]:
    """The lines of one page."""
    title = _html(f"Session {story.document.session_id}")
    links = story.links()
    yield "<!doctype html>"
    yield '<html lang="en"><head><meta charset="utf-8">'
    yield "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
    yield '<meta name="referrer" content="no-referrer">'
    yield f'<meta name="viewport" content="width=device-width"><title>{title}</title>'
    yield f"<style>{_STYLE}</style></head><body>"
    yield f"<h1><code>{_html(story.document.session_id)}</code></h1>"
    yield f"<p>{_html(story.headline())}</p><dl>"
    for name, value in story.facts():
        shown = _link(links[name], _html(name)) if name in links else f"<code>{_html(value)}</code>"
        yield f"<dt>{_html(name)}</dt><dd>{shown}</dd>"
    yield f"</dl><table><thead><tr>{''.join(f'<th>{name}</th>' for name in _TITLES)}</tr></thead><tbody>"
    for line in story.lines:
        yield from _rows(story, line)
    yield f"</tbody></table><p>{_html(story.total())}</p></body></html>"


def _rows(story: Story, line: Line) -> Iterator[str]:
    for between in line.before:
        yield f'<tr class="between"><td colspan="{len(_TITLES)}">{_html(between)}</td></tr>'
    tool, url, verdict = f"<code>{_html(line.call.tool)}</code>", story.trace_url(line.call), _html(line.call.verdict)
    cells = (
        ("number", _html(line.offset)),
        ("", _link(url, tool) if url else tool),
        (verdict, verdict),
        ("number", _html(took(line))),
        ("number", _html(size(line.call.size))),
        ("", _html(", ".join(line.notes))),
    )
    yield f"<tr>{''.join(f'<td class={chr(34)}{kind}{chr(34)}>{cell}</td>' for kind, cell in cells)}</tr>"


def _link(url: str, inner: str) -> str:
    return f'<a href="{_html(url, 4096)}">{inner}</a>'


def _html(text: str, limit: int = 256) -> str:
    return escape(clean(text, limit))
