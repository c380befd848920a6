"""A server whose own log lines name the session and the tool, wherever the work of a call goes.

opentelemetry-instrument uvicorn examples.logging_server:app
"""

from __future__ import annotations

import asyncio
import logging
import logging.config

from mcp.server.mcpserver import MCPServer

logging.config.dictConfig(
    {
        "version": 1,
        "disable_existing_loggers": False,
        "filters": {"session": {"()": "otel_mcp.SessionLogFilter"}},
        "formatters": {"line": {"format": "%(levelname)s %(name)s [%(session_id)s %(tool_name)s] %(message)s"}},
        "handlers": {"console": {"class": "logging.StreamHandler", "filters": ["session"], "formatter": "line"}},
        "loggers": {"shop": {"handlers": ["console"], "level": "INFO"}},
    }
)
logger = logging.getLogger("shop")
mcp = MCPServer("shop", version="1.0.0", log_level="WARNING")
mailing = set[asyncio.Task[None]]()


@mcp.tool()
async def order(item: str) -> str:
    """Order an item; the confirmation is mailed after the answer."""
    stock = await asyncio.to_thread(look_up, item)
    logger.info("one of %d taken", stock)
    task = asyncio.create_task(mail())
    mailing.add(task)
    task.add_done_callback(mailing.discard)
    return f"{item} ordered"


def look_up(item: str) -> int:
    """Ask the warehouse, in a thread."""
    logger.info("looking it up")
    return len(item)


async def mail() -> None:
    """Mail the confirmation, in the background."""
    await asyncio.sleep(0.1)
    logger.info("confirmation mailed")


logger.info("the shop is open")
app = mcp.streamable_http_app()
