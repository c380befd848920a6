"""The one task that writes and sweeps: it starts, or the next request starts it."""

from __future__ import annotations

import asyncio
import time

import pytest

from otel_mcp.sessions.service import Sessions
from tests.support.stores import Listener, settings

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("error")]


async def test_a_task_that_could_not_start_is_started_by_the_next_request(monkeypatch: pytest.MonkeyPatch) -> None:
    flushed = asyncio.Event()

    async def turn() -> None:
        flushed.set()

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError

    loop = asyncio.get_running_loop()
    worker = Sessions(settings(flush_interval=0.001), Listener()).worker
    worker.turn = turn
    with monkeypatch.context() as patched:
        patched.setattr(loop, "create_task", broken)
        with pytest.raises(RuntimeError):
            worker.start(loop)

    worker.start(loop)
    try:
        await asyncio.wait_for(flushed.wait(), 60)
    finally:
        worker.stop()
        await asyncio.sleep(0)


async def test_connections_stay_until_the_task_has_ended_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    under_way = asyncio.Event()

    async def turn() -> None:
        under_way.set()
        for _ in range(1000):
            await asyncio.sleep(0)
        order.append("turn")

    async def close() -> None:
        order.append("close")

    sessions = Sessions(settings(flush_interval=0.001), Listener())
    sessions.worker.turn = turn
    monkeypatch.setattr(sessions.worker, "_close", close)
    sessions.worker.start(asyncio.get_running_loop())
    await asyncio.wait_for(under_way.wait(), 60)

    await sessions.aclose()

    assert order == ["turn", "close"]


async def test_a_loop_that_is_late_when_it_ends_still_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    sessions = Sessions(settings(flush_interval=60), Listener())
    worker, loop = sessions.worker, asyncio.get_running_loop()

    async def write() -> None:
        order.append("write")

    async def close() -> None:
        order.append("close")

    monkeypatch.setattr(worker, "_write_last", write)
    monkeypatch.setattr(worker, "_close", close)
    worker.start(loop)
    await asyncio.sleep(0)  # It waits for work.
    loop.call_soon(time.sleep, 0.2)

    await worker.aclose(0.1)

    assert order == ["write", "close"]
