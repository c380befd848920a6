"""Where commands write: data to standard output, everything else to standard error, and exit codes.

What strangers wrote (names of clients and tools, ids) reaches a terminal through `clean` only.
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
"""Columns in a pipe, where nobody looks at whole lines."""
_HIDDEN: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Categories of characters that move the cursor, change the direction or cannot be seen."""
_STYLES: Final = {"bold": 1, "dim": 2, "red": 31, "green": 32, "yellow": 33, "blue": 34, "magenta": 35, "cyan": 36}


class Code(IntEnum):
    """Exit codes."""

    FINE = 0
    NOT_FOUND = 1
    """No such session; ``doctor`` found something."""
    USAGE = 2
    STORE = 3
    """Redis cannot be reached, or refuses access."""
    INTERRUPTED = 130


class Failure(Exception):
    """Ends a command: one line on standard error, perhaps one more with advice."""

    def __init__(self, code: Code, message: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint


class Terminal:
    """Where one command writes."""

    def __init__(self, color: When | None = None) -> None:
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")  # pyright: ignore[reportUnknownMemberType,reportAttributeAccessIssue]
        self.is_interactive = sys.stdout.isatty()
        """A person looks at it: tables are cut to the width, screens redrawn."""
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
        """Let a reader have what was written."""
        sys.stdout.flush()

    def say(self, text: str) -> None:
        """Write hints, warnings and counts to standard error."""
        say(text)

    def paint(self, text: str, style: str | None) -> str:
        """Color `text`, which is clean: words of `_STYLES`, separated by spaces."""
        if not self.has_color or not style:
            return text
        return f"\x1b[{';'.join(str(_STYLES[word]) for word in style.split())}m{text}\x1b[0m"

    @property
    def height(self) -> int:
        """Lines that can be seen."""
        return shutil.get_terminal_size().lines

    @contextmanager
    def screen(self) -> Generator[Callable[[Sequence[str]], None]]:
        """Take the whole terminal, and give it back as it was; what draws lines, which may have colors, on it."""
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
    """Write a line to standard error."""
    print(text, file=sys.stderr)


def clean(value: object, limit: int = 1024) -> str:
    """Make the text of a stranger one harmless line; what a terminal would act on becomes U+FFFD."""
    text = str(value)[:limit]
    if text.isascii() and text.isprintable():
        return text
    return "".join("\ufffd" if unicodedata.category(character) in _HIDDEN else character for character in text)


def counted(count: int, noun: str) -> str:
    """Write ``1 session``, ``2 sessions``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
