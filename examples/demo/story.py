"""What happens in the demo, from the first client to the last session's end."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Final

from . import driver, patient
from .driver import Tally
from .progress import Progress
from .stack import Stack
from .views import (
    END_REASON,
    OPERATION_DURATION,
    SESSION_ENDED,
    SESSION_RESUMED,
    TOOLS_CALL,
    tool_call_spans,
)

SHORT_TTL: Final = 6
"""Seconds that an idle session lives after the restart, so that one can be seen to expire."""

BUSY: Final = 6.0
"""Seconds that one client goes on calling before the restart."""

_ROOT: Final = Path(__file__).resolve().parents[2]
_ARRIVAL: Final = 20.0
_EXPIRY: Final = 60.0


class ClientFailed(Exception):
    """A client could not do what it was to do."""


async def play(stack: Stack, progress: Progress) -> Tally:
    """Drive the server through a restart and the end of its sessions.

    Where telemetry stays out it goes no further: the checks of the tally say what is missing.

    Raises:
        ServerFailed: The server did not come up.
        ClientFailed: The client in a process of its own ended before it was done.
    """
    tally, telemetry, url = Tally(), stack.telemetry, stack.url

    def arrived() -> bool:
        stored = sum(seen.document.tool_call_count for seen in stack.sessions.sessions())
        counted = telemetry.total(OPERATION_DURATION, TOOLS_CALL)
        messages = tally.calls + tally.rounds
        return stored >= tally.calls and min(counted, len(tool_call_spans(telemetry))) >= messages

    def resumed() -> bool:
        return telemetry.total(SESSION_RESUMED) >= 1

    def expired() -> bool:
        reported = len(telemetry.events("session.end")) >= telemetry.total(SESSION_ENDED)
        return reported and telemetry.total(SESSION_ENDED, {END_REASON: "expired"}) >= 1

    with progress.step("Server started: uvicorn, two processes and one that keeps its sessions, no code changed"):
        await stack.start_server(keeping=True)
    async with driver.connect(url, tally, name="shop-assistant", version="1.0.2", mode=driver.LEGACY) as staying:
        with progress.step(
            "Seven clients of two protocol revisions call tools, two of which ask a person, and begin a task"
        ):
            await staying.call("find_orders", customer=driver.CUSTOMER)
            async with asyncio.TaskGroup() as group:
                for client in (driver.first_shift, patient.concierge):
                    group.create_task(client(url, tally))
                group.create_task(patient.telephone_desk(stack.keeping_url, tally))
        if not await progress.wait("All calls have arrived", arrived, deadline=_ARRIVAL):
            return tally
        with progress.step("One client goes on calling for a while"):
            await driver.stay_busy(staying, until=time.monotonic() + BUSY)
        await progress.wait("All calls have arrived", arrived, deadline=_ARRIVAL)
        with progress.step(f"Server restarted; idle sessions now expire after {SHORT_TTL} s"):
            await asyncio.to_thread(stack.stop_server)
            await stack.start_server(session_ttl=SHORT_TTL)
        with progress.step("Two clients go on with their sessions, one says goodbye"):
            await driver.planner_returns(url, tally)
            await staying.call("stock_level", sku="LAMP-OAK")
            await staying.call("find_orders", customer=driver.CUSTOMER)
    with progress.step("A new client is killed, without a goodbye"):
        await _leave(url, tally)
    await progress.wait("All calls have arrived", arrived, deadline=_ARRIVAL)
    await progress.wait("A session is counted as resumed", resumed, deadline=_ARRIVAL)
    await progress.wait("The killed client's session expires", expired, deadline=_EXPIRY)
    return tally


async def _leave(url: str, tally: Tally) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "examples.demo.leaver", url),
        cwd=_ROOT,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        line = await asyncio.wait_for(process.stdout.readline(), timeout=60)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
    if not line:
        raise ClientFailed("the client in a process of its own ended before it was done")
    report = json.loads(line)
    tally.calls += report["calls"]
    tally.failures += report["failures"]
    tally.clients |= set(report["clients"])
