"""A screen that is drawn again and again, and gives the terminal back as it was."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from otel_mcp.cli.terminal import Terminal


class Screen:
    """The whole terminal for as long as it is open."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._console = Console(
            no_color=not terminal.has_color, force_terminal=True, highlight=False, markup=False, emoji=False
        )
        self._live = Live(console=self._console, screen=True, auto_refresh=False, vertical_overflow="crop")

    def __enter__(self) -> Screen:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._live.stop()

    @property
    def height(self) -> int:
        """Lines that can be seen."""
        return self._console.height

    def draw(self, lines: Sequence[str]) -> None:
        """Show these lines, which may have colours and no other control characters."""
        self._terminal.measure()
        text = Text.from_ansi("\n".join(lines[: self.height]), no_wrap=True, overflow="crop")
        self._live.update(text, refresh=True)
