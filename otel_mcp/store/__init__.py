"""Where sessions are kept: in Redis, or in the memory of this process."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from otel_mcp.settings import Settings
    from otel_mcp.store.base import ProducerId, SessionStore

logger = logging.getLogger("otel_mcp")


def is_divided(settings: Settings) -> bool:
    """Return whether parts of the store may fail by themselves."""
    return settings.redis_url is not None and settings.redis_url.partition(":")[0].endswith("+cluster")


def choose(settings: Settings, process: ProducerId) -> SessionStore:
    """Return the Redis store if a usable URL is set, else the memory of this process."""
    # Imported here: redis-py takes long to import, and only servers with Redis need it.
    from otel_mcp.store.memory import MemoryStore

    if settings.redis_url is None:
        return MemoryStore(settings)
    from otel_mcp.store.redis.client import connect
    from otel_mcp.store.redis.store import RedisStore

    try:
        connect(settings.redis_url)
    except ValueError:
        # The error's text may contain the password, so it is not logged.
        logger.warning("otel_mcp: the Redis URL cannot be used; it is as if none were configured")
        return MemoryStore(settings)
    return RedisStore(settings, process)
