"""Tells on the terminal what the demo is doing, with live counts of what has been seen."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from .stack import Stack
from .views import tool_call_spans
from .waiting import wait_until


class Progress:
    """Print one line for each step, and a spinner with counts while it lasts."""

    def __init__(self, console: Console, stack: Stack) -> None:
        self._console = console
        self._stack = stack

    @contextmanager
    def step(self, text: str) -> Generator[None]:
        """Show a step while the block runs, and how long it took."""
        start = time.monotonic()
        try:
            with self._console.status(_Counts(text, self._stack)):
                yield
        except BaseException:
            self._line("red", "✗", text, start)
            raise
        self._line("green", "✓", text, start)

    async def wait(self, text: str, condition: Callable[[], bool], *, deadline: float) -> bool:
        """Show a wait, and tell whether the condition came true within `deadline` seconds."""
        start = time.monotonic()
        with self._console.status(_Counts(text, self._stack)):
            came_true = await wait_until(condition, deadline=deadline)
        self._line(*(("green", "✓") if came_true else ("red", "✗")), text, start)
        return came_true

    def _line(self, colour: str, mark: str, text: str, start: float) -> None:
        elapsed = f"{time.monotonic() - start:.1f} s"
        self._console.print(f"[{colour}]{mark}[/] {escape(text)} [dim]{elapsed}[/]")


class _Counts:
    def __init__(self, text: str, stack: Stack) -> None:
        self._text = text
        self._stack = stack

    def __rich__(self) -> Text:
        spans = len(tool_call_spans(self._stack.telemetry))
        sessions = len(self._stack.sessions.sessions())
        seen = f"  {spans} tool call spans, {sessions} sessions in Redis"
        return Text.assemble(self._text, (seen, "dim"))
