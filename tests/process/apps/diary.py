"""A tool that logs wherever its work goes, while another client's call runs as well."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from otel_mcp import SessionLogFilter

LINES: Final = ("in the tool", "in a thread", "in a task")
logger: Final = logging.getLogger("diary")
_tasks: Final = set[asyncio.Task[None]]()
_both: Final = asyncio.Barrier(2)


class _Kept(logging.Handler):
    """Keeps the line that a format of the app's own makes of each record."""

    lines: Final = dict[str, list[str]]()

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.setdefault(record.__dict__["session_id"], []).append(self.format(record))


def _configure() -> None:
    handler = _Kept()
    handler.addFilter(SessionLogFilter())
    handler.setFormatter(logging.Formatter("%(session_id)s %(tool_name)s %(message)s"))
    logger.addHandler(handler)
    logger.warning("before any call")


async def write() -> list[str]:
    """Log in the tool, in a thread, and in a task that outlives the call; return the app's own lines of all."""
    asked = asyncio.Event()

    async def later() -> None:
        await asked.wait()
        await asyncio.sleep(0)
        logger.warning(LINES[2])

    _tasks.add(asyncio.create_task(later()))
    await _both.wait()
    logger.warning(LINES[0])
    await _both.wait()
    await asyncio.to_thread(logger.warning, LINES[1])
    await _both.wait()
    asked.set()
    return [line for lines in _Kept.lines.values() for line in lines]


_configure()
