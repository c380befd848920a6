"""Steady traffic for the compose stack: `python -m examples.traffic http://localhost:8080/mcp`.

The clients of the demo and some that are worse, over and over, a few at a time, with pauses. Now and then one is
killed without a goodbye, so that sessions expire too. Runs until it is stopped.
"""

from __future__ import annotations

import asyncio
import random
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from mcp.shared.exceptions import MCPError

from .demo import driver, patient

Client = Callable[[str, driver.Tally], Awaitable[None]]


async def stuck_agent(url: str, tally: driver.Tally) -> None:
    """Ask the same again and again, as a model does that does not see what the answer means."""
    async with driver.connect(url, tally, name="stuck-agent", version="0.4.0", mode=driver.LEGACY) as caller:
        for _ in range(5):
            await caller.call("stock_level", sku="LAMP-ELM")


async def registry(url: str, tally: driver.Tally) -> None:
    """Look what there is, and call nothing."""
    async with driver.connect(url, tally, name="glama", version="1.0.0", mode=driver.LEGACY) as caller:
        await caller.client.list_tools()


async def letter_writer(url: str, tally: driver.Tally) -> None:
    """Take a prompt, and read a resource that there is and one that there is not."""
    for mode in (driver.LEGACY, driver.MODERN):
        async with driver.connect(url, tally, name="letter-writer", version="1.1.0", mode=mode) as caller:
            await caller.client.list_resources()
            await caller.client.list_prompts()
            await caller.client.read_resource("shop://returns-policy")
            await caller.client.get_prompt("apology", {"order": "A-1001"})
            with suppress(MCPError):
                await caller.client.read_resource("shop://warranty")


CLIENTS: Final[tuple[Client, ...]] = (
    driver.support_desk,
    driver.catalogue_sync,
    driver.planner_agent,
    driver.night_report,
    driver.new_agent,
    stuck_agent,
    registry,
    letter_writer,
    patient.concierge,
    patient.drifter,
)
AT_ONCE: Final = 3
LONGEST_PAUSE: Final = 6.0
LEAVES_ONE_IN: Final = 8


async def one_of(url: str, turn: int) -> None:
    """Be one client after another, for ever."""
    choose = random.Random(turn)
    while True:
        await asyncio.sleep(choose.uniform(0.5, LONGEST_PAUSE))
        # A server that restarts is part of the picture; the next client finds it again.
        with suppress(Exception):
            if choose.randrange(LEAVES_ONE_IN) == 0:
                await leave(url)
            else:
                await choose.choice(CLIENTS)(url, driver.Tally())


async def leave(url: str) -> None:
    """Run a client in a process of its own and kill it when it has made its calls."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "examples.demo.leaver", url),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        assert process.stdout is not None
        await asyncio.wait_for(process.stdout.readline(), timeout=60)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def main(url: str) -> None:
    """Drive the server until SIGTERM or Ctrl-C."""
    task = asyncio.ensure_future(asyncio.gather(*(one_of(url, turn) for turn in range(AT_ONCE))))
    for name in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(name, task.cancel)
    with suppress(asyncio.CancelledError):
        await task


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
