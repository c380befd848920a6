"""``otel-mcp top``: the busiest sessions and tools of the last minutes on one screen."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import Final

from otel_mcp.cli import output
from otel_mcp.cli.document import Document
from otel_mcp.cli.following import Follower, Landed
from otel_mcp.cli.listing import caller, client
from otel_mcp.cli.output import Column, Format, ToolsBy, age, text_of
from otel_mcp.cli.reading import Reader
from otel_mcp.cli.screen import Screen
from otel_mcp.cli.store import address, configured, repeat, run
from otel_mcp.cli.terminal import Code, Failure, Terminal, clean
from otel_mcp.cli.tools import COLUMNS, gather, sort

_PAUSE: Final = 1.0
"""Seconds between two looks."""
_SPAN: Final = 300.0
"""Seconds that the screen is about."""
_LATELY: Final = 60.0
"""Seconds over which rates are taken."""
_CALLS: Final = 50_000
"""Calls that are held, at most."""


@dataclass
class Busy:
    """One session and its recent calls."""

    document: Document
    calls: int = 0
    wrong: int = 0
    failed: int = 0
    last: float = 0.0
    """Unix seconds of its last answer."""


class Recent:
    """The calls of the last minutes."""

    def __init__(self) -> None:
        self._landed: deque[Landed] = deque(maxlen=_CALLS)

    def add(self, landed: list[Landed], now: float) -> None:
        """Add what has landed, and drop what is too old."""
        self._landed.extend(landed)
        while self._landed and self._landed[0].at < now - _SPAN:
            self._landed.popleft()

    def lines(self, terminal: Terminal, title: str, now: float, height: int) -> list[str]:
        """The screen."""
        lately = [each for each in self._landed if each.at >= now - _LATELY]
        parts = [title, f"{len(lately) / _LATELY:.1f} calls/s"]
        for verdict in ("wrong", "failed"):
            count = sum(1 for each in lately if each.call.verdict == verdict)
            parts.append(f"{100 * count / max(len(lately), 1):.0f} % {verdict}")
        tools = gather(each.call for each in self._landed)
        sort(tools, ToolsBy.CALLS)
        room = max(height - 5, 2)  # Besides the title, two headers and two empty lines.
        shown = min(len(tools), room // 2)
        busy = self._busy()[: room - shown]
        lines = [terminal.paint("   ".join(parts), "bold"), ""]
        lines += output.lines(terminal, busy, _columns(now), Format.TABLE)
        lines += ["", *output.lines(terminal, tools[:shown], COLUMNS, Format.TABLE)]
        return lines

    def _busy(self) -> list[Busy]:
        """Sessions, the busiest first."""
        found: dict[str, Busy] = {}
        for each in self._landed:
            busy = found.setdefault(each.document.session_id, Busy(each.document))
            busy.document = each.document
            busy.calls += 1
            busy.wrong += each.call.verdict == "wrong"
            busy.failed += each.call.verdict == "failed"
            busy.last = max(busy.last, each.at)
        return sorted(found.values(), key=lambda busy: (-busy.calls, -busy.last))


def _columns(now: float) -> list[Column[Busy]]:
    return [
        Column("SESSION", lambda busy: text_of(busy.document.session_id), style=lambda _: "bold"),
        Column("CLIENT", lambda busy: client(busy.document), least=8, leaves=1),
        Column("CALLER", lambda busy: caller(busy.document), leaves=3),
        Column("IDLE", lambda busy: age(now - busy.last), leaves=2),
        Column("CALLS/5M", lambda busy: str(busy.calls), is_number=True),
        Column("WRONG", lambda busy: str(busy.wrong), style=lambda busy: _if(busy.wrong, "yellow"), is_number=True),
        Column("FAILED", lambda busy: str(busy.failed), style=lambda busy: _if(busy.failed, "red"), is_number=True),
        Column("LAST TOOL", lambda busy: text_of(busy.document.last_tool), least=9, leaves=4),
    ]


def _if(count: int, style: str) -> str | None:
    return style if count else None


def top(terminal: Terminal, redis_url: str | None, service: str | None) -> None:
    """Draw the screen again and again."""
    if not terminal.is_interactive:
        raise Failure(Code.USAGE, "top needs a terminal", "in a pipe: otel-mcp tail, or otel-mcp tools")
    settings = configured(redis_url)
    where = address(settings.redis_url or "")

    async def follow() -> None:
        reader = await Reader.find(settings, service)
        follower, recent = Follower(reader, settings, _SPAN), Recent()

        async def look() -> tuple[list[Landed], int]:
            landed = await follower.look()
            await reader.add_callers(list({each.document.session_id: each.document for each in landed}.values()))
            return landed, (await reader.index(1))[1]

        rounds = repeat(look, _PAUSE, settings)
        landed, live = await anext(rounds)  # Where Redis cannot be used at first, the screen stays as it is.
        with Screen(terminal) as screen:
            while True:
                now = time.time()
                recent.add(landed, now)
                title = f"{clean(service or settings.service_name)} @ {where}   {live:,} live"
                screen.draw(recent.lines(terminal, title, now, screen.height))
                landed, live = await anext(rounds)

    run(follow(), settings)
