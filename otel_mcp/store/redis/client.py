"""One client for each running event loop of this process, and scripts run through it.

Connections belong to the loop and the process that opened them. After a fork
the child never touches those of its parent, not even to close them: the two
share the sockets and the loop's selector.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Final

from opentelemetry.instrumentation.utils import is_instrumentation_enabled, suppress_instrumentation
from redis.exceptions import NoScriptError
from redis.exceptions import TimeoutError as RedisTimeout

from otel_mcp.guard import guarded
from otel_mcp.loops import Lateness, once_more_if_late
from otel_mcp.store.redis.cluster import Cluster
from otel_mcp.store.redis.connect import AT_ONCE, Client
from otel_mcp.store.redis.errors import outage
from otel_mcp.store.redis.scripts import Script

TIMEOUTS: Final = (asyncio.TimeoutError, RedisTimeout)
_inherited: Final[list[object]] = []
"""Clients of the parent process; never collected, see above."""


@dataclass(frozen=True, slots=True)
class Run:
    """One script on its keys, or a plain command: its name and what follows."""

    script: Script | str
    keys: tuple[str, ...]
    args: tuple[Any, ...] = ()

    def command(self, *, by_source: bool = False) -> tuple[Any, ...]:
        if isinstance(self.script, str):
            return (self.script, *self.keys, *self.args)
        if by_source:
            return ("EVAL", self.script.source, len(self.keys), *self.keys, *self.args)
        return ("EVALSHA", self.script.sha, len(self.keys), *self.keys, *self.args)


class _Held:
    """What one loop holds."""

    __slots__ = ("client", "loop", "turns")

    def __init__(self, loop: asyncio.AbstractEventLoop, client: Client) -> None:
        self.loop = weakref.ref(loop)
        self.client = client
        self.turns = asyncio.Semaphore(AT_ONCE)


@contextmanager
def _translated() -> Generator[None]:
    """Keep our commands out of traces, and turn an outage into `StoreDown`."""
    # For a request's question `lookups` has seen to the former, once for all of them.
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
        """What the running loop holds; its client is made on first use."""
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
            with _translated():
                try:
                    return await once_more_if_late(lambda: _run(held.client, run.command()), TIMEOUTS)
                except NoScriptError:
                    return await _run(held.client, run.command(by_source=True))

    async def run_all(self, runs: Sequence[Run]) -> list[Any]:
        """Run many in one round trip; an error stands in the place of its result.

        A server that does not know the scripts (restarted, failed over, a new
        node) gets those again that it refused, with their source.
        """
        held = self._held()
        async with held.turns:
            with _translated():
                commands = [run.command() for run in runs]
                results = await once_more_if_late(lambda: _pipelined(held.client, commands), TIMEOUTS)
                unknown = [at for at, result in enumerate(results) if isinstance(result, NoScriptError)]
                if unknown:
                    again = await _pipelined(held.client, [runs[at].command(by_source=True) for at in unknown])
                    for at, result in zip(unknown, again, strict=True):
                        results[at] = result
        return results


async def _run(client: Client, command: tuple[Any, ...]) -> Any:
    if not isinstance(client, Cluster):
        return await client.execute_command(*command)
    (result,) = await client.run_all([command])
    if isinstance(result, Exception):
        raise result
    return result


async def _pipelined(client: Client, commands: list[tuple[Any, ...]]) -> list[Any]:
    if isinstance(client, Cluster):
        return await _on_nodes(client, commands)
    pipeline = client.pipeline(transaction=False)
    for command in commands:
        pipeline.execute_command(*command)
    return await pipeline.execute(raise_on_error=False)


async def _on_nodes(client: Cluster, commands: list[tuple[Any, ...]]) -> list[Any]:
    """A node that runs into a time limit leaves its error in the results, with the answers of the others."""
    with Lateness() as lateness:
        results = await client.run_all(commands)
    late = [at for at, result in enumerate(results) if isinstance(result, TIMEOUTS)] if lateness.is_much else []
    if late:
        again = await client.run_all([commands[at] for at in late])
        for at, result in zip(late, again, strict=True):
            results[at] = result
    return results


_links: Final[weakref.WeakSet[RedisLink]] = weakref.WeakSet()


def _leave_to_parent() -> None:
    for link in list(_links):
        link.leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)
