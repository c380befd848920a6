"""Bounds for metric attributes whose values come from strangers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from otel_mcp.semconv import OTHER

MAX_TOOLS: Final = 200
MAX_CLIENTS: Final = 20
MAX_ERRORS: Final = 50
"""Error types, and codes, that have label values of their own: a server may make them of what a client sent."""
MAX_LENGTH: Final = 128


class BoundedNames:
    """The first `limit` names that proved themselves; every other one is ``_OTHER``.

    Half of the places are kept for names that are proven: a server that answers
    anything makes every name look likely.
    """

    __slots__ = ("_likely", "_limit", "_names", "known")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._names: dict[str, str] = {}
        self._likely: set[str] = set()
        self.known = self._names.keys()
        """The names that have a label value of their own."""

    def learn(self, names: Iterable[str]) -> None:
        """Take in names that the server itself uses."""
        for name in names:
            self._likely.discard(name)
            if len(name) <= MAX_LENGTH and len(self._names) < self._limit:
                self._names.setdefault(name, name)

    def bounded(self, name: str, *, proven: bool, likely: bool = False) -> str:
        """The name itself if it is known, or if there is room for it.

        Args:
            name: perhaps made up.
            proven: the server itself knows it.
            likely: the server has answered as if it knew it.
        """
        if name in self._names:
            if proven:
                self._likely.discard(name)
            return name
        if proven:
            self.learn((name,))
        elif likely and len(self._likely) < self._limit // 2:
            self.learn((name,))
            if name in self._names:
                self._likely.add(name)
        return self._names.get(name, OTHER)
