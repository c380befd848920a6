"""Tables that strangers fill, and that never grow beyond a number."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final, TypeVar

from otel_mcp.semconv import OTHER

K = TypeVar("K")
V = TypeVar("V")


def remember(table: OrderedDict[K, V], key: K, value: V, limit: int) -> None:
    """Put `value` into `table`, which holds the `limit` keys that came last."""
    table[key] = value
    while len(table) > limit:
        table.popitem(last=False)


class Recent:
    """The newest few values of each of the keys that were used last."""

    __slots__ = ("_keys", "_limit", "_most")

    def __init__(self, limit: int, most: int) -> None:
        """Begin empty: `limit` keys, `most` values of each."""
        self._limit, self._most = limit, most
        self._keys: OrderedDict[str, list[int]] = OrderedDict()

    def add(self, key: str, values: Iterable[object]) -> bool:
        """Add values; return whether one of them was there."""
        held = self._keys.pop(key, [])
        known = False
        for value in map(hash, values):
            known = known or value in held
            held.append(value)
        del held[: -self._most]
        self._keys[key] = held
        if len(self._keys) > self._limit:
            self._keys.popitem(last=False)
        return known

    def clear(self) -> None:
        """Forget everything."""
        self._keys.clear()


class Paths(OrderedDict[str, V]):
    """What has been seen at the paths that were used last.

    Where a server answers at any path, a client may make them up: those in use stay.
    """

    MOST: Final = 1000
    LONGEST: Final = 256
    """Characters; what is longer is not kept."""

    def learn(self, path: str, value: V) -> None:
        """Note what has been seen at a path."""
        if len(path) <= self.LONGEST:
            remember(self, path, value, self.MOST)
            self.move_to_end(path)

    def use(self, path: str) -> V | None:
        """Return what has been seen at a path, which is in use."""
        value = self.get(path)
        if value is not None:
            self.move_to_end(path)
        return value


class BoundedNames:
    """The first `limit` names that proved themselves; every other one is ``_OTHER``.

    Half of the places are kept for names that are proven: a server that answers
    anything makes every name look likely.
    """

    LONGEST: Final = 128
    """Characters; what is longer is ``_OTHER``."""

    __slots__ = ("_likely", "_limit", "_names", "known")

    def __init__(self, limit: int, known: Iterable[str] = ()) -> None:
        self._limit = limit
        self._names: dict[str, str] = {}
        self._likely: set[str] = set()
        self.known = self._names.keys()
        """The names that have a label value of their own."""
        self.learn(known)

    @property
    def is_full(self) -> bool:
        """Whether no further name gets a value of its own."""
        return len(self._names) >= self._limit

    def learn(self, names: Iterable[str]) -> None:
        """Add names that the server itself uses."""
        for name in names:
            self._likely.discard(name)
            if len(name) <= self.LONGEST and not self.is_full:
                self._names.setdefault(name, name)

    def bounded(self, name: str, *, proven: bool, likely: bool = False) -> str:
        """Return the name itself if it is known, or if there is room for it.

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
