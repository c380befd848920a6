"""Which errors of Redis mean that it is away, that it keeps us out, or that one key is not ours."""

from __future__ import annotations

import asyncio
from typing import Final

from redis import exceptions as redis

from otel_mcp.store.base import StoreDown

_AWAY: Final = (
    redis.ConnectionError,
    redis.TimeoutError,
    redis.RedisClusterException,
    redis.ClusterError,
    redis.OutOfMemoryError,
    redis.ReadOnlyError,
    redis.TryAgainError,
    redis.AskError,
    redis.InvalidResponse,
    OSError,
    EOFError,
    asyncio.TimeoutError,
)
_DENIED: Final = (
    redis.AuthenticationError,
    redis.AuthorizationError,
    redis.NoPermissionError,
    redis.AuthenticationWrongNumberOfArgsError,
)
_SCRIPT: Final = ("ERR user_script", "ERR Error running script", "ERR Error compiling script")
"""How errors of the scripts themselves begin; the next attempt would fail alike."""


def outage(error: BaseException) -> StoreDown | None:
    """What `error` says about the whole store, or `None` if it concerns one command."""
    if isinstance(error, StoreDown):
        return error
    name = type(error).__name__
    if isinstance(error, _DENIED) or "NOAUTH" in str(error)[:32]:
        return StoreDown(name, denied=True)
    if isinstance(error, _AWAY):
        return StoreDown(name)
    if isinstance(error, redis.ResponseError) and not is_foreign(error) and not is_ours(error):
        # MISCONF, NOREPLICAS, BUSY and what servers to come may say.
        return StoreDown(str(error).partition(" ")[0][:32] or name)
    return None


def is_foreign(error: BaseException) -> bool:
    """A key of ours holds a value of another type."""
    return isinstance(error, redis.ResponseError) and "WRONGTYPE" in str(error)


def is_ours(error: BaseException) -> bool:
    """A script of ours failed on what it was given."""
    return isinstance(error, redis.ResponseError) and str(error).startswith(_SCRIPT)
