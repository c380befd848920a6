"""The demo's clients, through the proxy, until every dashboard has something to show."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any

from mcp.shared.exceptions import MCPError
from mcp_types import ErrorData

from examples import traffic
from examples.demo import driver, patient


async def drive(url: str, keeping_url: str, seconds: float) -> driver.Tally:
    """Run the clients again and again, after one that left without a goodbye and one that looks after nothing.

    Long enough for several exports, several evaluations of the rules, and an expired session.

    Args:
        url: of all replicas.
        keeping_url: of a server that keeps its sessions.
        seconds: how long at least.
    """
    tally = driver.Tally()
    until = time.monotonic() + seconds
    await traffic.leave(url)
    await patient.drifter(url, tally)
    await _engaged(keeping_url, tally)
    while time.monotonic() < until:
        await driver.first_shift(url, tally)
        for client in (driver.new_agent, traffic.stuck_agent, traffic.registry, traffic.letter_writer):
            await client(url, tally)
        await asyncio.gather(patient.concierge(url, tally), patient.telephone_desk(keeping_url, tally))
        await asyncio.sleep(1)
    return tally


async def _engaged(url: str, tally: driver.Tally) -> None:
    """Book a courier for a customer who cannot be asked."""

    async def ask(context: Any, params: Any) -> ErrorData:
        return ErrorData(code=-1, message="the line is engaged")

    about = {"name": "engaged-line", "version": "0.8.0", "mode": driver.LEGACY}
    async with driver.connect(url, tally, **about, elicitation_callback=ask) as caller:
        with suppress(MCPError):
            await caller.call("book_courier", order="A-1002")
