"""Tables that strangers fill, and that never grow beyond a number."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


def remember(table: OrderedDict[K, V], key: K, value: V, limit: int) -> None:
    """Put `value` into `table`, which holds the `limit` keys that came last."""
    table[key] = value
    while len(table) > limit:
        table.popitem(last=False)


class Paths(Generic[V]):
    """What has been seen at the paths that were used last.

    Where a server answers at any path, a client may make them up: those in use stay.
    """

    MOST: Final = 1000
    LONGEST: Final = 256
    """Characters; what is longer is not kept."""

    def __init__(self) -> None:
        self._seen: OrderedDict[str, V] = OrderedDict()

    def learn(self, path: str, value: V) -> None:
        """This has been seen."""
        if len(path) <= self.LONGEST:
            remember(self._seen, path, value, self.MOST)
            self._seen.move_to_end(path)

    def get(self, path: str) -> V | None:
        """What has been seen, if anything has."""
        value = self._seen.get(path)
        if value is not None:
            self._seen.move_to_end(path)
        return value
