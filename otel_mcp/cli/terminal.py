"""Write data to standard output and everything else to standard error; exit codes.

Strangers' text (names of clients and tools, ids) reaches a terminal through `clean` only.
"""

from __future__ import annotations

import os
import shutil
import sys
import unicodedata
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from typing import Final, Literal

When = Literal["auto", "always", "never"]
UNLIMITED: Final = 100_000
"""Width of a line in a pipe, in columns."""
_UNSAFE: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode categories of characters that move the cursor, change the direction or are invisible."""
_STYLES: Final = {"bold": 1, "dim": 2, "red": 31, "green": 32, "yellow": 33, "blue": 34, "magenta": 35, "cyan": 36}


class Code(IntEnum):
    """Exit codes."""

    FINE = 0
    NOT_FOUND = 1
    """No such session, or ``doctor`` found a problem."""
    USAGE = 2
    STORE = 3
    """Redis cannot be reached, or denies access."""
    INTERRUPTED = 130


class Failure(Exception):
    """Ends a command with an exit code, a message on standard error, and perhaps a hint."""

    def __init__(self, code: Code, message: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint


class Terminal:
    """The output of one command."""

    def __init__(self, color: When | None = None) -> None:
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")  # pyright: ignore[reportUnknownMemberType,reportAttributeAccessIssue]
        self.is_interactive = sys.stdout.isatty()
        """Whether standard output is a terminal: then tables fit its width and screens are redrawn."""
        is_plain = not self.is_interactive or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        self.has_color = color == "always" or (color != "never" and not is_plain)
        self.width = UNLIMITED
        self._measure()

    def _measure(self) -> None:
        if self.is_interactive or os.environ.get("COLUMNS", "").isdigit():
            self.width = shutil.get_terminal_size().columns

    def data(self, line: str) -> None:
        """Write one line of data."""
        sys.stdout.write(line + "\n")

    def flush(self) -> None:
        """Send the written lines."""
        sys.stdout.flush()

    def paint(self, text: str, style: str | None) -> str:
        """Color clean text; `style` has words of `_STYLES`, separated by spaces."""
        if not self.has_color or not style:
            return text
        return f"\x1b[{';'.join(str(_STYLES[word]) for word in style.split())}m{text}\x1b[0m"

    @property
    def height(self) -> int:
        """Lines of the terminal."""
        return shutil.get_terminal_size().lines

    @contextmanager
    def screen(self) -> Generator[Callable[[Sequence[str]], None]]:
        """Take the whole terminal and restore it afterwards; yields a function that draws colored lines."""
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        console = Console(no_color=not self.has_color, force_terminal=True, highlight=False, markup=False, emoji=False)
        with Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live:

            def draw(lines: Sequence[str]) -> None:
                self._measure()
                text = Text.from_ansi("\n".join(lines[: self.height]), no_wrap=True, overflow="crop")
                live.update(text, refresh=True)

            yield draw


def say(text: str) -> None:
    """Write a hint, a warning or a count to standard error."""
    print(text, file=sys.stderr)


def clean(value: object, limit: int = 1024) -> str:
    """Make one harmless line of a stranger's text: characters that a terminal acts on become U+FFFD."""
    text = str(value)[:limit]
    if text.isascii() and text.isprintable():
        return text
    return "".join("\ufffd" if unicodedata.category(character) in _UNSAFE else character for character in text)


def counted(count: int, noun: str) -> str:
    """Format a count with its noun: ``1 session``, ``2 sessions``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
