"""A Redis Cluster as it is used here: what one node does not do, the others still do.

redis-py gives up a pipeline as a whole where one node is gone, and reads the
map of all slots and commands again whenever it has doubts, for which the loop
waits. Here each node has a pipeline of its own, each command says by itself
which key it is about, and a moved slot is learned from the node that has it not.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from redis.asyncio.cluster import ClusterNode, PipelineCommand, RedisCluster
from redis.exceptions import AskError, MovedError, RedisError, SlotNotCoveredError, TimeoutError
from redis.exceptions import ConnectionError as Disconnected

_SCRIPTS: Final = frozenset({"EVAL", "EVALSHA"})
_PAUSE: Final = 1.0
"""Seconds between two looks at the map of slots."""


class _NoCommands:
    """Stands for redis-py's list of all commands, which every new map of slots costs a round trip and some ms."""

    async def initialize(self, _: ClusterNode) -> None:
        return


class Cluster(RedisCluster):
    """redis-py's client, for commands whose first key tells the slot."""

    RedisClusterRequestTTL = 4
    """Tries of a command whose slot is on its way: what waits is written with the next flush."""

    def __init__(self, nodes: Sequence[tuple[str, int]], **settings: Any) -> None:
        """Connect to nothing yet; `nodes` are hosts and ports of some of the cluster."""
        # A node that does not have a slot tells who has it: no need to ask for the whole map.
        options: dict[str, Any] = {"reinitialize_steps": 0, **settings}
        super().__init__(  # pyright: ignore[reportUnknownMemberType]
            startup_nodes=[ClusterNode(host, port) for host, port in nodes], require_full_coverage=False, **options
        )
        self.commands_parser: Any = _NoCommands()
        self._look_at = 0.0

    async def _determine_slot(self, command: str, *args: Any) -> int:
        return self.keyslot(_key(command, args))

    async def run_all(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """The results of all, in one round trip to each node; an error stands in the place of its result.

        Raises:
            RedisError, OSError: no node tells where the keys are.
        """
        await self.initialize()
        results: list[Any] = [None] * len(commands)
        parts: dict[str, list[int]] = {}
        for at, (command, *args) in enumerate(commands):
            with suppress(SlotNotCoveredError):
                node: Any = self.get_node_from_key(_key(command, args))
                parts.setdefault(node.name, []).append(at)
                continue
            results[at] = SlotNotCoveredError("nobody serves that slot")
        await asyncio.gather(*(self._run_part(commands, part, results) for part in parts.values()))
        if any(isinstance(result, (Disconnected, TimeoutError)) for result in results):
            await self._look_again()
        return results

    async def _run_part(self, commands: Sequence[tuple[Any, ...]], part: list[int], results: list[Any]) -> None:
        pipeline = self.pipeline()
        for at in part:
            pipeline.execute_command(*commands[at])
        try:
            found = await pipeline.execute(raise_on_error=False, allow_redirections=False)
        except (RedisError, OSError) as error:
            found = [error] * len(part)
        for at, result in zip(part, found, strict=True):
            results[at] = await self._elsewhere(commands[at], result) if isinstance(result, AskError) else result

    async def _elsewhere(self, command: tuple[Any, ...], told: AskError) -> Any:
        """The result from where the slot has moved to, or is on its way to."""
        try:
            if isinstance(told, MovedError):
                return await self.execute_command(*command)
            where: Any = told
            node: Any = self.get_node(where.host, where.port)
            if node is None:
                return told
            # On one connection, and not, as redis-py does it, on any two.
            asked = [PipelineCommand(0, "ASKING"), PipelineCommand(1, *command)]
            await node.execute_pipeline(asked)
            return asked[1].result
        except (RedisError, OSError) as error:
            return error

    async def _look_again(self) -> None:
        """Another node may have taken over. To read the map takes some ms, so not too often."""
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + _PAUSE
        with suppress(RedisError, OSError):  # The next command will say so.
            await self.nodes_manager.initialize()


def _key(command: str, args: Sequence[Any]) -> Any:
    return args[2] if command in _SCRIPTS else args[0]
