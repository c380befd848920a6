"""Single commands on connections that stay at hand.

A request waits for some of them. A client of redis-py takes a connection from
its pool for each command, gives it back, counts both, and before Python 3.12
begins a task only to be able to give up sending: twice the time, and twice as
many turns of the loop, each of which may be another request's. What is used here
are the connections that its pool makes: addresses, TLS, passwords, Sentinels
and what their errors mean stay redis-py's.
"""

from __future__ import annotations

import math
import time
from typing import Any, Final

from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as Disconnected
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as Late

from otel_mcp.sessions.redis_client import Client

_KEPT: Final = 2
"""Connections that stay at hand when nobody asks."""


def asker(client: Client) -> Asker | None:
    """One for `client`, unless that is of a kind (or an age) that has to be asked itself."""
    # Before redis-py 8 it takes a turn of the loop to learn whether a connection is still good.
    if isinstance(client, Redis) and hasattr(AbstractConnection, "can_read"):
        return Asker(client.connection_pool)
    return None


class Asker:
    """Asks on the connections of one pool; no more at a time than the pool has."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._idle: list[Any] = []

    async def ask(self, command: tuple[Any, ...]) -> Any:
        """The reply to one command.

        Raises:
            RedisError, OSError: as redis-py's client does.
        """
        connection = await self._connected()
        limit = math.inf if connection.socket_timeout is None else connection.socket_timeout
        good = False
        try:
            # Nothing else is under way on it, so the few bytes of a command never wait to be sent.
            connection.socket_timeout = None
            started = time.monotonic()
            await connection.send_command(*command)
            reply = await connection.read_response(timeout=limit)
            # So redis-py says that none has come.
            if reply is None and time.monotonic() - started >= limit:
                raise Late("no reply in time")
            good = True
        except ResponseError:
            good = True
            raise
        finally:
            connection.socket_timeout = None if limit == math.inf else limit
            if good and len(self._idle) < _KEPT:
                self._idle.append(connection)
            else:
                await self._give_back(connection, good=good)
        return reply

    async def _connected(self) -> Any:
        while self._idle:
            connection = self._idle.pop()
            if await _is_good(connection):
                return connection
            await self._give_back(connection, good=False)
        return await self._pool.get_connection()

    async def _give_back(self, connection: Any, *, good: bool) -> None:
        if not good:
            await connection.disconnect(nowait=True)
        await self._pool.release(connection)


async def _is_good(connection: Any) -> bool:
    """Whether the other side has neither closed it nor left something on it."""
    try:
        return connection.is_connected and not await connection.can_read()
    except (Disconnected, Late, OSError):
        return False
