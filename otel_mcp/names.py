"""Bounds for metric attributes whose values come from strangers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from otel_mcp.semconv import OTHER

MAX_TOOLS: Final = 200
MAX_CLIENTS: Final = 20
MAX_ERRORS: Final = 50
"""Error types, and codes, that are told apart: a server may make them of what a client sent."""
_MAX_LENGTH: Final = 128


class BoundedNames:
    """The first `limit` names that proved themselves; every other one is ``_OTHER``."""

    __slots__ = ("_limit", "_names", "known")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._names: dict[str, str] = {}
        self.known = self._names.keys()
        """The names that are told apart."""

    def learn(self, names: Iterable[str]) -> None:
        """Take in names that somebody trustworthy used: the server, or a call that worked."""
        for name in names:
            if len(self._names) >= self._limit:
                return
            if len(name) <= _MAX_LENGTH:
                self._names.setdefault(name, name)

    def bounded(self, name: str, *, proven: bool) -> str:
        """The name itself if it is known or `proven` and there is room."""
        if name in self._names:
            return name
        if proven:
            self.learn((name,))
        return self._names.get(name, OTHER)
