"""Leaks on purpose: a soak that cannot fail proves nothing."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Callable
from typing import Any, Final

import redis

_held: list[Any] = []


def _memory() -> None:
    _held.append(os.urandom(65_536))


def _objects() -> None:
    _held.append([{} for _ in range(100)])


def _tasks() -> None:
    _held.extend(asyncio.get_running_loop().create_task(asyncio.Event().wait()) for _ in range(3))


def _descriptors() -> None:
    _held.append(socket.socketpair())


def _threads() -> None:
    if len(_held) < 500:
        _held.append(threading.Thread(target=threading.Event().wait, daemon=True))
        _held[-1].start()


def _connections() -> None:
    client: Any = redis.Redis.from_url(os.environ["OTEL_PYTHON_MCP_REDIS_URL"])
    client.ping()
    _held.append(client)


def _structure() -> None:
    """Something of ours that holds a name for every call."""
    from otel_mcp import guard

    for _ in range(5):
        guard._last_logged[os.urandom(8).hex()] = 0.0  # pyright: ignore[reportPrivateUsage]


LEAKS: Final[dict[str, tuple[Callable[[], None], str]]] = {
    "memory": (_memory, "rss KiB"),
    "objects": (_objects, "objects"),
    "tasks": (_tasks, "tasks"),
    "descriptors": (_descriptors, "descriptors"),
    "threads": (_threads, "threads"),
    "connections": (_connections, "connections"),
    "structure": (_structure, "len guard._last_logged"),
}
"""What to do on each call of one tool, and the figure that has to show it."""
