"""Clients for several servers: a cluster whose nodes fail independently, and a master that a sentinel names."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final, cast
from urllib.parse import urlsplit, urlunsplit

from redis.asyncio.client import Redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import parse_url
from redis.asyncio.sentinel import Sentinel
from redis.exceptions import AskError, MovedError, RedisError, SlotNotCoveredError, TimeoutError
from redis.exceptions import ConnectionError as Disconnected

from otel_mcp.loops import once_more_if_late

TIMEOUTS: Final = (asyncio.TimeoutError, TimeoutError)
_SCRIPTS: Final = frozenset({"EVAL", "EVALSHA"})
_PAUSE: Final = 1.0
"""Minimum seconds between two reads of the slot map, each of which takes some ms."""


class Cluster(RedisCluster):
    """redis-py's client, with one pipeline per node: redis-py's own fails as a whole if one node is down."""

    def __init__(self, nodes: Sequence[tuple[str, int]], **settings: Any) -> None:
        """Initialize without connecting; `nodes` are hosts and ports of some nodes of the cluster."""
        # A node that does not have a slot names the one that does, so the whole map need not be read again.
        options: dict[str, Any] = {"reinitialize_steps": 0, **settings}
        super().__init__(  # pyright: ignore[reportUnknownMemberType]
            startup_nodes=[ClusterNode(host, port) for host, port in nodes], require_full_coverage=False, **options
        )
        self._look_at = 0.0

    async def run_all(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Run all in one round trip to each node; return the results, with an error in the place of its result.

        Raises:
            RedisError, OSError: no node knows where the keys are.
        """
        await self.initialize()
        results: list[Any] = [SlotNotCoveredError("nobody serves that slot")] * len(commands)
        parts: dict[str, list[int]] = {}
        for at, command in enumerate(commands):
            with suppress(SlotNotCoveredError):
                node: Any = self.get_node_from_key(command[3] if command[0] in _SCRIPTS else command[1])
                parts.setdefault(node.name, []).append(at)
        await asyncio.gather(*(self._run_part(commands, part, results) for part in parts.values()))
        if any(isinstance(result, (Disconnected, TimeoutError)) for result in results):
            await self._look_again()
        return results

    async def _run_part(self, commands: Sequence[tuple[Any, ...]], part: list[int], results: list[Any]) -> None:
        async def attempt() -> list[Any]:
            pipeline = self.pipeline()
            for at in part:
                pipeline.execute_command(*commands[at])
            found = await pipeline.execute(raise_on_error=False, allow_redirections=False)
            for result in found:
                if isinstance(result, TIMEOUTS):
                    raise result
            return found

        try:
            found = await once_more_if_late(attempt, TIMEOUTS)
        except (RedisError, OSError) as error:
            found = [error] * len(part)
        for at, result in zip(part, found, strict=True):
            results[at] = await self._elsewhere(commands[at], result) if isinstance(result, AskError) else result

    async def _elsewhere(self, command: tuple[Any, ...], asked: AskError) -> Any:
        """Run a command on the node that its slot has moved to, or is moving to."""
        try:
            if isinstance(asked, MovedError):
                return await self.execute_command(*command)
            there: Any = asked
            node: Any = self.get_node(there.host, there.port)
            # Both must use one connection; redis-py may use two.
            pipeline: Any = self.pipeline()
            pipeline.execute_command("ASKING", target_nodes=node)
            pipeline.execute_command(*command, target_nodes=node)
            return (await pipeline.execute(raise_on_error=False, allow_redirections=False))[1]
        except (RedisError, OSError) as error:
            return error

    async def _look_again(self) -> None:
        """Read the map of slots again: another node may have taken over."""
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + _PAUSE
        with suppress(RedisError, OSError):  # The next command fails as well.
            await self.nodes_manager.initialize()


def cluster(url: str, scheme: str, settings: dict[str, Any]) -> Cluster:
    """Make the client for ``redis+cluster://host:port,host:port``."""
    hosts, _, options = _hosts(url, scheme, 6379)
    return Cluster(hosts, **{**settings, **options, "ssl": scheme == "rediss"})


def sentinel(url: str, scheme: str, settings: dict[str, Any]) -> Any:
    """Make the client for ``redis+sentinel://host:port,host:port/service/db``."""
    hosts, path, options = _hosts(url, scheme, 26379)
    own = {name: options.pop(f"sentinel_{name}", None) for name in ("username", "password")}
    settings = {**settings, **options, "ssl": scheme == "rediss"}
    sentinels: Any = Sentinel(hosts, sentinel_kwargs={**settings, **own}, **settings)
    database = int(path[1]) if len(path) > 1 else 0
    return sentinels.master_for(path[0] if path else "mymaster", redis_class=_Master, db=database)


class _Master(Redis):
    """The master that sentinels name; redis-py leaves the connections to them open."""

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        await super().aclose(close_connection_pool)
        asked: Any = self.connection_pool
        for each in asked.sentinel_manager.sentinels:
            await each.aclose()


def _hosts(url: str, scheme: str, port: int) -> tuple[list[tuple[str, int]], list[str], dict[str, Any]]:
    """Split a URL into hosts, the segments of the path, and redis-py's options."""
    parts = urlsplit(url)
    user, _, hosts = parts.netloc.rpartition("@")
    plain = urlunsplit((scheme, f"{user}@host" if user else "host", "", parts.query, ""))
    options = dict(cast("dict[str, Any]", parse_url(plain)))
    for name in ("host", "port", "db", "connection_class"):
        options.pop(name, None)
    nodes: list[tuple[str, int]] = []
    for host in hosts.split(","):
        node = urlsplit(f"//{host.strip()}")
        if node.hostname:
            nodes.append((node.hostname, node.port or port))
    if not nodes:
        raise ValueError("the Redis URL names no host")
    return nodes, [segment for segment in parts.path.split("/") if segment], options
