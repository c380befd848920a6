"""The demo's clients, through the proxy, until every dashboard has something to show."""

from __future__ import annotations

import asyncio
import time

from examples import traffic
from examples.demo import driver


async def drive(url: str, seconds: float) -> driver.Tally:
    """Run the clients again and again, after one that left without a goodbye.

    Long enough for several exports, several evaluations of the rules, and an expired session.
    """
    tally = driver.Tally()
    until = time.monotonic() + seconds
    await traffic.leave(url)
    while time.monotonic() < until:
        await driver.first_shift(url, tally)
        for client in (driver.new_agent, traffic.stuck_agent, traffic.registry, traffic.letter_writer):
            await client(url, tally)
        await asyncio.sleep(1)
    return tally
