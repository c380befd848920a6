"""What can only be counted within the server: tasks, objects, and the length of everything of ours that holds things.

The containers are found by walking from our modules, so that one that is added later is watched, too.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import weakref
from collections import deque
from collections.abc import Iterator
from types import ModuleType
from typing import Any, Final

OURS: Final = "otel_mcp"
_CONTAINERS: Final = (dict, list, set, deque, weakref.WeakSet, weakref.WeakKeyDictionary, weakref.WeakValueDictionary)


def counts() -> dict[str, float]:
    """Every figure by its name. Takes some ms: it collects garbage first, which is no leak."""
    gc.collect()
    figures: dict[str, float] = {"tasks": len(asyncio.all_tasks()), "objects": len(gc.get_objects())}
    for name, container in containers():
        figures[f"len {name}"] = len(container)
    return figures


def containers() -> Iterator[tuple[str, Any]]:
    """Everything of ours that holds things, under the path that leads to it."""
    seen: set[int] = set()
    waiting: list[tuple[str, Any]] = [
        (name.removeprefix(f"{OURS}."), module) for name, module in list(sys.modules.items()) if _is_ours(name)
    ]
    while waiting:
        path, holder = waiting.pop(0)
        for name, value in _attributes(holder):
            if id(value) in seen:
                continue
            seen.add(id(value))
            if isinstance(value, _CONTAINERS):
                yield f"{path}.{name}", value
            elif _is_ours(type(value).__module__):
                waiting.append((f"{path}.{name}", value))


def _is_ours(module: object) -> bool:
    return isinstance(module, str) and (module == OURS or module.startswith(f"{OURS}."))


def _attributes(holder: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(holder, ModuleType):
        yield from ((name, value) for name, value in vars(holder).items() if not name.startswith("__"))
        return
    yield from list(getattr(holder, "__dict__", {}).items())
    for kind in type(holder).__mro__:
        for name in getattr(kind, "__slots__", ()):
            if hasattr(holder, name):
                yield name, getattr(holder, name)
