"""Tables that strangers fill, and that never grow beyond a number."""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


def remember(table: OrderedDict[K, V], key: K, value: V, limit: int) -> None:
    """Put `value` into `table`, which holds the `limit` keys that came last."""
    table[key] = value
    while len(table) > limit:
        table.popitem(last=False)
