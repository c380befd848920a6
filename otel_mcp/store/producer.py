"""Who we are to the store."""

from __future__ import annotations

import secrets
import time


class Process:
    """A token that no other process has, its sequence of flushes, and when it began to serve."""

    __slots__ = ("_sequence", "started_at", "token")

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Become another process: after a fork."""
        self.token = secrets.token_urlsafe(8)
        self.started_at = time.time()
        """Unix seconds."""
        self._sequence = 0

    def next_sequence(self) -> int:
        """The number of the next flush."""
        self._sequence += 1
        return self._sequence
