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
    _held.append(os.urandom(8192))


def _objects() -> None:
    _held.append([{} for _ in range(20)])


def _tasks() -> None:
    _held.append(asyncio.get_running_loop().create_task(asyncio.Event().wait()))


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
    """One of our own containers without its bound."""
    from otel_mcp import process

    runtime: Any = process.existing()
    if runtime is not None:
        for _ in range(5):
            runtime.watch._gone[os.urandom(8).hex()] = None


LEAKS: Final[dict[str, Callable[[], None]]] = {
    "memory": _memory,
    "objects": _objects,
    "tasks": _tasks,
    "descriptors": _descriptors,
    "threads": _threads,
    "connections": _connections,
    "structure": _structure,
}
"""What to do on some of the calls, by the figure that has to show it."""
