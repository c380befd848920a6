"""A loop that is late itself has given the store's answer no chance to be read: that is no outage of the store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from otel_mcp.model.delta import Flush, WriteResult
from otel_mcp.sessions.service import Sessions
from otel_mcp.store.base import StoreDown
from otel_mcp.store.memory import MemoryStore
from otel_mcp.store.redis.client import TIMEOUT, RedisLink, Run, connect
from tests.support.stores import Listener, delta, settings


class LeapingLoop(asyncio.SelectorEventLoop):
    """A loop whose clock can be put forward, as if it had been kept from running meanwhile."""

    ahead = 0.0

    def time(self) -> float:
        return super().time() + self.ahead


class Redis:
    """Speaks enough of the protocol to be connected to; has the loop be late before it answers a command."""

    def __init__(self, loop: LeapingLoop, leaps: int = 0, *, silent: bool = False) -> None:
        self.loop = loop
        self.leaps = leaps
        """So many answers come after the loop was kept for longer than the time limit."""
        self.silent = silent
        self.asked: list[bytes] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while count := await reader.readline():
            parts: list[bytes] = []
            for _ in range(int(count[1:])):
                size = int((await reader.readline())[1:])
                parts.append((await reader.readexactly(size + 2))[:-2])
            if parts[0] in (b"GET", b"EVALSHA"):
                self.asked.append(parts[0])
                if self.leaps > 0:
                    self.leaps -= 1
                    self.loop.ahead += 2 * TIMEOUT
                if self.silent:
                    continue
            writer.write(b"+OK\r\n")
            await writer.drain()
        writer.close()


def run(work: Callable[[LeapingLoop], Coroutine[Any, Any, None]]) -> None:
    loop = LeapingLoop()
    try:
        loop.run_until_complete(work(loop))
    finally:
        loop.close()


async def asked(redis: Redis, *, alone: bool = True) -> object:
    """One command through a link; what came back or was raised."""
    server = await asyncio.start_server(redis, "127.0.0.1", 0)
    link = RedisLink(lambda: connect(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"))
    try:
        return await (link.run(Run("GET", ("key",))) if alone else link.run_all([Run("GET", ("key",))]))
    except StoreDown as down:
        return down.reason
    finally:
        await link.aclose()
        server.close()


@pytest.mark.parametrize(("leaps", "works", "times"), [(0, True, 1), (1, True, 2), (2, False, 2)])
@pytest.mark.parametrize("alone", [True, False], ids=["command", "pipeline"])
def test_commands_are_sent_once_more_where_the_loop_was_late(leaps: int, works: bool, times: int, alone: bool) -> None:
    async def work(loop: LeapingLoop) -> None:
        redis = Redis(loop, leaps)
        answer = await asked(redis, alone=alone)
        assert answer == ((b"OK" if alone else [b"OK"]) if works else "TimeoutError")
        assert len(redis.asked) == times

    run(work)


def test_a_store_that_says_nothing_is_asked_once() -> None:
    async def work(loop: LeapingLoop) -> None:
        redis = Redis(loop, silent=True)

        async def on_time() -> None:
            # The clock goes on in steps that are no lateness.
            while True:
                await asyncio.sleep(0)
                loop.ahead += 0.001

        clock = asyncio.ensure_future(on_time())
        assert (await asked(redis), len(redis.asked)) == ("TimeoutError", 1)
        clock.cancel()

    run(work)


class LateStore(MemoryStore):
    """Keeps the loop for longer than anybody waits, so many times."""

    def __init__(self, loop: LeapingLoop, leaps: int) -> None:
        super().__init__(settings(None))
        self.loop = loop
        self.leaps = leaps

    async def apply(self, deltas: Sequence[Flush]) -> list[WriteResult]:
        if self.leaps > 0:
            self.leaps -= 1
            self.loop.ahead += 60
            await asyncio.Event().wait()
        return await super().apply(deltas)


@pytest.mark.parametrize(("leaps", "lines"), [(1, 0), (2, 1)])
def test_a_late_loop_at_the_end_is_no_outage(caplog: pytest.LogCaptureFixture, leaps: int, lines: int) -> None:
    async def work(loop: LeapingLoop) -> None:
        sessions = Sessions(settings(None), Listener(), store=LateStore(loop, leaps))
        sessions.submit(delta(1))
        await sessions.aclose(5)

    run(work)
    assert len([line for line in caplog.messages if "Redis cannot be used" in line]) == lines
