"""Bounded tables and sets, for keys that clients choose."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final, TypeVar

from otel_mcp.semconv import OTHER

K = TypeVar("K")
V = TypeVar("V")


def remember(table: OrderedDict[K, V], key: K, value: V, limit: int) -> None:
    """Set ``table[key]``, and drop the oldest keys beyond `limit`."""
    table[key] = value
    while len(table) > limit:
        table.popitem(last=False)


class Paths(OrderedDict[str, V]):
    """A value for each of the most recently used paths.

    If a server answers at any path, clients can make paths up; those in use stay.
    """

    MAX_PATHS: Final = 1000
    MAX_LENGTH: Final = 256
    """Characters; longer paths are not kept."""

    def learn(self, path: str, value: V) -> None:
        """Set the value of a path."""
        if len(path) <= self.MAX_LENGTH:
            remember(self, path, value, self.MAX_PATHS)
            self.move_to_end(path)

    def use(self, path: str) -> V | None:
        """Return the value of a path, and mark the path as used."""
        value = self.get(path)
        if value is not None:
            self.move_to_end(path)
        return value


class BoundedNames:
    """The first `limit` names that are proven or likely; any other one is ``_OTHER``.

    Half of the places are reserved for proven names, since a server that answers
    anything makes every name look likely.
    """

    MAX_LENGTH: Final = 128
    """Characters; longer names are ``_OTHER``."""

    __slots__ = ("_likely", "_limit", "_names", "known")

    def __init__(self, limit: int, known: Iterable[str] = ()) -> None:
        self._limit = limit
        self._names: dict[str, str] = {}
        self._likely: set[str] = set()
        self.known = self._names.keys()
        """Names with a label value of their own."""
        self.learn(known)

    @property
    def is_full(self) -> bool:
        """Whether there is no room for another name."""
        return len(self._names) >= self._limit

    def learn(self, names: Iterable[str]) -> None:
        """Add names that the server itself uses."""
        for name in names:
            self._likely.discard(name)
            if len(name) <= self.MAX_LENGTH and not self.is_full:
                self._names.setdefault(name, name)

    def bounded(self, name: str, *, proven: bool, likely: bool = False) -> str:
        """Return the name if it is known or can be added, else ``_OTHER``.

        Args:
            name: a name from a client, which may be made up.
            proven: whether the server knows the name.
            likely: whether the server answered as if it knew the name.
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
