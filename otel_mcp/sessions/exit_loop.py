"""A loop for the end of the process, when threads can no longer be started."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable
from typing import Any


class ExitLoop(asyncio.SelectorEventLoop):
    """Resolves names without the thread pool, which is shut down before exit handlers run."""

    async def getaddrinfo(self, *args: Any, **options: Any) -> Any:
        """Ask the resolver in this thread."""
        return socket.getaddrinfo(*args, **options)


def run_alone(work: Awaitable[None], timeout: float) -> None:
    """Run `work` on a loop of its own for `timeout` seconds at most."""
    loop = ExitLoop()
    try:
        loop.run_until_complete(asyncio.wait_for(work, timeout))
    finally:
        loop.close()


def is_running() -> bool:
    """Whether a loop runs in this thread, so that no other can."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
