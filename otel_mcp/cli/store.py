"""Redis as commands use it: opened as the server opens it, its troubles in one line that says what to do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import urlsplit

from otel_mcp.cli.terminal import Code, Failure, say

if TYPE_CHECKING:
    from otel_mcp.settings import Settings
    from otel_mcp.store.base import StoreDown

T = TypeVar("T")
Command = tuple[Any, ...]
_URLS: Final = "redis://, rediss://, unix://, redis+sentinel://host:26379/mymaster or redis+cluster://host:6379"
_SCANNED: Final = 10_000
"""Keys that one SCAN looks at: some ms of the server's."""
_PATIENCE: Final = {"socket_timeout": 5.0, "socket_connect_timeout": 3.0}
"""Seconds; a person waits longer than a server may."""


def configured(redis_url: str | None) -> Settings:
    """The settings of this environment.

    Raises:
        Failure: they name no Redis.
    """
    from otel_mcp.settings import PREFIX, load

    settings = load(redis_url=redis_url)
    if not settings.redis_url:
        raise Failure(Code.USAGE, "no Redis", f"set {PREFIX}REDIS_URL as the server has it, or give --redis-url")
    return settings


class Connection:
    """One client of Redis, Sentinel or Cluster, used by one loop."""

    def __init__(self, settings: Settings) -> None:
        """Connect to nothing yet.

        Raises:
            Failure: the URL cannot be used.
        """
        from otel_mcp.store.redis.cluster import Cluster
        from otel_mcp.store.redis.connect import connect

        try:
            self._client: Any = connect(settings.redis_url or "", **_PATIENCE, **_nameless())
        except ValueError:
            # Without its text, which may repeat the password.
            raise Failure(Code.USAGE, "the Redis URL cannot be used", _URLS) from None
        self.is_cluster = isinstance(self._client, Cluster)
        """Keys lie on several nodes: no command is about keys of several slots."""

    async def run_all(self, commands: Sequence[Command]) -> list[Any]:
        """The results of all, in one round trip to each node; an error where a key holds what is not ours.

        Raises:
            StoreDown: Redis cannot be used, or one of the commands is not allowed.
        """
        from otel_mcp.store.redis.errors import is_foreign

        with _translated():
            if self.is_cluster:
                results = await self._client.run_all(commands)
            else:
                pipeline = self._client.pipeline(transaction=False)
                for command in commands:
                    pipeline.execute_command(*command)
                results = await pipeline.execute(raise_on_error=False)
            for result in results:
                if isinstance(result, Exception) and not is_foreign(result):
                    raise result
            return results

    async def scan(self, pattern: str, kind: str) -> AsyncIterator[bytes]:
        """Every key that is like `pattern` and holds a `kind`; looks at all keys there are.

        Raises:
            StoreDown: Redis cannot be used, or this is not allowed.
        """
        with _translated():
            if self.is_cluster:
                await self._client.initialize()
            for node in self._client.get_primaries() if self.is_cluster else [self._client]:
                cursor: Any = 0
                while True:
                    cursor, keys = await node.execute_command(
                        "SCAN", cursor, "MATCH", pattern, "COUNT", _SCANNED, "TYPE", kind
                    )
                    for key in keys:
                        yield key
                    if int(cursor) == 0:
                        break

    async def aclose(self) -> None:
        """Close the connection."""
        await self._client.aclose()


@contextmanager
def _translated() -> Generator[None]:
    from otel_mcp.store.redis.errors import outage

    try:
        yield
    except Exception as error:
        down = outage(error)
        if down is None or down is error:
            raise
        raise down from error


def _nameless() -> dict[str, Any]:
    """Options by which redis-py does not say its name, which takes two commands."""
    try:
        import redis.driver_info  # pyright: ignore[reportUnusedImport]  # noqa: F401
    except ImportError:
        return {"lib_name": None, "lib_version": None}
    return {"driver_info": None}


def run(work: Coroutine[Any, Any, T], settings: Settings) -> T:
    """Run what talks to Redis.

    Raises:
        Failure: Redis cannot be used, or the user has had enough.
    """
    from otel_mcp.store.base import StoreDown

    try:
        return asyncio.run(work)
    except StoreDown as down:
        raise away(down, settings) from None
    except KeyboardInterrupt:
        raise Failure(Code.INTERRUPTED) from None


async def repeat(look: Callable[[], Awaitable[T]], pause: float, settings: Settings) -> AsyncIterator[T]:
    """What `look` finds, every `pause` seconds; waits while a Redis that could be used at first is away.

    Raises:
        StoreDown: it cannot be used at first, or does not let us in any more.
    """
    from otel_mcp.store.base import StoreDown

    found, is_away = False, False
    while True:
        try:
            seen = await look()
        except StoreDown as down:
            if down.denied or not found:
                raise
            if not is_away:
                say(f"otel-mcp: {away(down, settings).message}; waiting for it")
            is_away = True
        else:
            if is_away:
                say("otel-mcp: Redis is back")
            found, is_away = True, False
            yield seen
        await asyncio.sleep(pause)


def away(down: StoreDown, settings: Settings) -> Failure:
    """What to say of a Redis that cannot be used."""
    from otel_mcp.settings import PREFIX

    where, variable = address(settings.redis_url or ""), f"{PREFIX}REDIS_URL"
    if down.denied:
        hint = f"check user, password and permissions in {variable} (SECURITY.md lists what an account needs)"
        return Failure(Code.STORE, f"Redis at {where} does not let us in ({down.reason})", hint)
    hint = f"is it running, and is it the one of {variable}?"
    return Failure(Code.STORE, f"Redis at {where} cannot be used ({down.reason})", hint)


def address(url: str) -> str:
    """Where a URL points to, without user, password and options."""
    parts = urlsplit(url)
    return parts.netloc.rpartition("@")[2] or parts.path
