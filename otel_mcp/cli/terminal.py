"""Conventions of all commands: streams, colours, exit codes, and text that is safe to show.

Data go to standard output, everything else to standard error. What strangers wrote (names of clients and tools, ids)
reaches a terminal through `clean` only.
"""

from __future__ import annotations

import os
import shutil
import sys
import unicodedata
from enum import Enum, IntEnum
from typing import Final

UNLIMITED: Final = 100_000
"""Columns where nobody looks at lines as a whole: in a pipe."""
_HIDDEN: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Categories of characters that move the cursor, change the direction or cannot be seen."""
_STYLES: Final = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "blue": "34", "magenta": "35"}
_STYLES.update({"cyan": "36", "white": "37"})


class Code(IntEnum):
    """Exit codes."""

    FINE = 0
    NOT_FOUND = 1
    """No such session; ``doctor`` found something."""
    USAGE = 2
    STORE = 3
    """Redis cannot be reached, or does not let us in."""
    INTERRUPTED = 130


class Failure(Exception):
    """Ends a command: one line on standard error, perhaps one more that says what to do."""

    def __init__(self, code: Code, message: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint


class When(str, Enum):
    """When to use colours."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


class Terminal:
    """Where one command writes."""

    def __init__(self, color: When = When.AUTO) -> None:
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")  # pyright: ignore[reportUnknownMemberType,reportAttributeAccessIssue]
        self.is_interactive = sys.stdout.isatty()
        """Somebody looks at it, so tables may be cut to the width and screens redrawn."""
        self.has_color = _has_color(color, self.is_interactive)
        self.width = UNLIMITED
        self.measure()

    def measure(self) -> None:
        """Look how wide it is."""
        if self.is_interactive or os.environ.get("COLUMNS", "").isdigit():
            self.width = shutil.get_terminal_size().columns

    def data(self, line: str) -> None:
        """Write one line of data.

        Raises:
            Failure: the reader has gone, which is no error.
        """
        try:
            sys.stdout.write(line + "\n")
        except BrokenPipeError:
            raise closed() from None

    def flush(self) -> None:
        """Let a reader have what was written.

        Raises:
            Failure: the reader has gone, which is no error.
        """
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            raise closed() from None

    def say(self, text: str) -> None:
        """Write to standard error: hints, warnings, counts."""
        say(text)

    def paint(self, text: str, style: str | None) -> str:
        """Put `text`, which is clean, into a colour: words of `_STYLES`, separated by spaces."""
        if not self.has_color or not style:
            return text
        codes = ";".join(_STYLES[word] for word in style.split())
        return f"\x1b[{codes}m{text}\x1b[0m"


def say(text: str) -> None:
    """Write a line to standard error."""
    print(text, file=sys.stderr)


def closed() -> Failure:
    """End quietly since nobody reads any more."""
    # What is buffered would fail once more when the interpreter ends.
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), sys.stdout.fileno())
    return Failure(Code.FINE)


def clean(text: object, limit: int = 1024) -> str:
    """The text of a stranger as one harmless line; whatever a terminal would act on becomes U+FFFD."""
    kept = str(text)[:limit]
    if kept.isascii() and kept.isprintable():
        return kept
    return "".join("\ufffd" if unicodedata.category(character) in _HIDDEN else character for character in kept)


def _has_color(when: When, is_interactive: bool) -> bool:
    if when is not When.AUTO:
        return when is When.ALWAYS
    return is_interactive and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
