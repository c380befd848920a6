"""One client for each running event loop of this process, and commands run through it.

Connections belong to the loop and the process that opened them. After a fork
the child never touches those of its parent, not even to close them: the two
share the sockets and the loop's selector. With its defaults redis-py waits nine
seconds for a server that hangs, so we set shorter timeouts.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast
from urllib.parse import urlsplit

from opentelemetry.instrumentation.utils import is_instrumentation_enabled, suppress_instrumentation
from redis import exceptions as redis
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from otel_mcp.guard import guarded
from otel_mcp.loops import once_more_if_late
from otel_mcp.store.redis.cluster import TIMEOUTS, Cluster, cluster, sentinel
from otel_mcp.store.redis.codec import Script
from otel_mcp.store.redis.errors import is_foreign, outage

TIMEOUT: Final = 0.5
"""Seconds for connecting and for each reply."""
CONNECTIONS: Final = 16
"""Maximum per server: for a flush, lookups, and documents that tools load and save."""
AT_ONCE: Final = 12
"""Maximum number of concurrent commands or pipelines in one loop; others wait. redis-py fails if all connections are in
use, and a cluster client needs some to read the slot map."""

_RECENT: Final = 64
"""Maximum number of members of a sorted set that are read at once."""


class Pipeline(Protocol):
    """Commands that are sent together."""

    def execute_command(self, *args: Any) -> Any: ...

    async def execute(self, raise_on_error: bool = True) -> list[Any]: ...


class Client(Protocol):
    """What we use of redis-py's clients."""

    async def execute_command(self, *args: Any) -> Any: ...

    def pipeline(self, transaction: Any = None) -> Pipeline: ...

    async def aclose(self) -> None: ...


def connect(url: str, **options: Any) -> Client:
    """Make a client for a ``redis``, ``rediss``, ``unix``, ``redis+sentinel`` or ``redis+cluster`` URL.

    ``redis+sentinel://host:port,host:port/service/db`` and
    ``redis+cluster://host:port,host:port``, with ``rediss+`` for TLS. The query
    takes redis-py's options; ``sentinel_username`` and ``sentinel_password``
    are for the sentinels themselves. `options` are redis-py's as well, and yield to those of the URL.
    Nothing connects before the first command.

    Raises:
        ValueError: the URL cannot be used.
    """
    settings: dict[str, Any] = {
        "retry": Retry(NoBackoff(), 0),
        "socket_timeout": TIMEOUT,
        "socket_connect_timeout": TIMEOUT,
        "health_check_interval": 0,
        "max_connections": CONNECTIONS,
        # One id with half a surrogate pair must not keep a batch from being sent.
        "encoding_errors": "replace",
        # Every server supports it, without a handshake.
        "protocol": 2,
        **options,
    }
    scheme, _, kind = urlsplit(url).scheme.partition("+")
    if kind == "sentinel":
        return cast(Client, sentinel(url, scheme, settings))
    if kind == "cluster":
        return cast(Client, cluster(url, scheme, settings))
    return cast(Client, Redis.from_url(url, **settings))  # pyright: ignore[reportUnknownMemberType]


@dataclass(frozen=True, slots=True)
class Run:
    """One script with its keys, or a plain command: its name, keys and arguments."""

    script: Script | str
    keys: tuple[str, ...]
    args: tuple[Any, ...] = ()

    def command(self, *, by_source: bool = False) -> tuple[Any, ...]:
        if isinstance(self.script, str):
            return (self.script, *self.keys, *self.args)
        if by_source:
            return ("EVAL", self.script.source, len(self.keys), *self.keys, *self.args)
        return ("EVALSHA", self.script.sha, len(self.keys), *self.keys, *self.args)


def put_recent(key: str, member: object, at: int, most: int, kept: float) -> list[Run]:
    """Make the commands that put `member`, of the instant `at`, into a sorted set of the newest `most`.

    The set expires after `kept` seconds; `recent` reads it. Instants are microseconds.
    """
    put = Run("ZADD", (key,), (at, member))
    return [put, Run("ZREMRANGEBYRANK", (key,), (0, -most - 1)), Run("PEXPIRE", (key,), (round(kept * 1000),))]


def recent(key: str, now: int, kept: float) -> Run:
    """Make the command that reads its first members that are no older than `kept` seconds."""
    return Run("ZRANGEBYSCORE", (key,), (now - round(kept * 1e6), "+inf", "LIMIT", 0, _RECENT))


class _Held:
    """The client and semaphore of one loop."""

    __slots__ = ("client", "loop", "turns")

    def __init__(self, loop: asyncio.AbstractEventLoop, client: Client) -> None:
        self.loop = weakref.ref(loop)
        self.client = client
        self.turns = asyncio.Semaphore(AT_ONCE)


@contextmanager
def translated() -> Generator[None]:
    """Keep our commands out of traces, and turn an outage into `StoreDown`."""
    # For lookups of a request, `lookups` suppresses them already, once for all.
    with suppress_instrumentation() if is_instrumentation_enabled() else nullcontext():
        try:
            yield
        except Exception as error:
            down = outage(error)
            if down is None or down is error:
                raise
            raise down from error


class RedisLink:
    """Runs commands on the client of the running loop."""

    def __init__(self, connect: Callable[[], Client]) -> None:
        self._connect = connect
        self._clients: dict[int, _Held] = {}
        _links.add(self)

    def _held(self) -> _Held:
        """Return client and semaphore of the running loop, made on first use."""
        loop = asyncio.get_running_loop()
        known = self._clients.get(id(loop))
        if known is not None and known.loop() is loop:
            return known
        self.forget_closed()
        held = self._clients[id(loop)] = _Held(loop, self._connect())
        return held

    def leave_to_parent(self) -> None:
        """Start again in a forked child."""
        _inherited.append(self._clients)
        self._clients = {}

    def forget_closed(self) -> None:
        """Drop clients whose loop is gone; their sockets close with them."""
        for key, held in list(self._clients.items()):
            loop = held.loop()
            if loop is None or loop.is_closed():
                self._clients.pop(key, None)

    async def aclose(self) -> None:
        """Close the client of the running loop."""
        known = self._clients.pop(id(asyncio.get_running_loop()), None)
        if known is not None:
            with guarded("redis close"), suppress_instrumentation():
                await known.client.aclose()

    async def run(self, run: Run) -> Any:
        """Run one script or command."""
        held = self._held()
        async with held.turns:
            with translated():
                try:
                    return await once_more_if_late(lambda: _run(held.client, run.command()), TIMEOUTS)
                except redis.NoScriptError:
                    return await _run(held.client, run.command(by_source=True))

    async def run_all(self, runs: Sequence[Run]) -> list[Any]:
        """Run many in one round trip; an error takes the place of its result.

        Scripts that the server does not know (restarted, failed over, a new
        node) are sent again with their source.
        """
        held = self._held()
        async with held.turns:
            with translated():
                commands = list(map(Run.command, runs))
                results = await once_more_if_late(lambda: run_all(held.client, commands), TIMEOUTS)
                for result in results:
                    if isinstance(result, redis.NoScriptError):
                        await self._slow_run_by_source(held.client, runs, results)
                        break
        return results

    async def answers(self, runs: Sequence[Run]) -> list[Any]:
        """Run many as `run_all` does, but raise their errors; ``None`` = the key is not ours."""
        results = await self.run_all(runs)
        for at, result in enumerate(results):
            if isinstance(result, Exception):
                if not is_foreign(result):
                    raise outage(result) or result
                results[at] = None
        return results

    async def _slow_run_by_source(self, client: Client, runs: Sequence[Run], results: list[Any]) -> None:
        unknown = [at for at, result in enumerate(results) if isinstance(result, redis.NoScriptError)]
        again = await run_all(client, [runs[at].command(by_source=True) for at in unknown])
        for at, result in zip(unknown, again, strict=True):
            results[at] = result


async def _run(client: Client, command: tuple[Any, ...]) -> Any:
    if not isinstance(client, Cluster):
        return await client.execute_command(*command)
    (result,) = await client.run_all([command])
    if isinstance(result, Exception):
        raise result
    return result


async def run_all(client: Client, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Run all in one round trip to each server; return the results, with an error in the place of its result."""
    if isinstance(client, Cluster):
        return await client.run_all(commands)
    pipeline = client.pipeline(transaction=False)
    for command in commands:
        pipeline.execute_command(*command)
    return await pipeline.execute(raise_on_error=False)


_inherited: Final[list[object]] = []
"""Clients of the parent process; never collected, see above."""
_links: Final[weakref.WeakSet[RedisLink]] = weakref.WeakSet()


def _leave_to_parent() -> None:
    for link in list(_links):
        link.leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)
