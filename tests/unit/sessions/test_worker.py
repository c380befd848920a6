"""The one task that writes and sweeps: it starts, or the next request starts it."""

from __future__ import annotations

import asyncio

import pytest

from otel_mcp.sessions import worker as module
from otel_mcp.sessions.worker import Background

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("error")]


async def test_a_task_that_could_not_start_is_started_by_the_next_request(monkeypatch: pytest.MonkeyPatch) -> None:
    flushed = asyncio.Event()

    async def flush() -> None:
        flushed.set()

    async def nothing() -> None:
        pass

    def broken(*_: object) -> None:
        raise RuntimeError

    loop = asyncio.get_running_loop()
    background = Background(
        interval=0.001, sweep_interval=3600, flush=flush, flush_last=nothing, sweep=nothing, close=nothing
    )
    with monkeypatch.context() as patched:
        patched.setattr(module, "_task", broken)
        with pytest.raises(RuntimeError):
            background.start(loop)

    background.start(loop)
    try:
        await asyncio.wait_for(flushed.wait(), 20)
    finally:
        background.stop()
        await asyncio.sleep(0)
