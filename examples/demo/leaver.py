"""A client that never says goodbye: it calls two tools, reports, and waits to be killed.

It runs in a process of its own so that the kill is a real one: no DELETE, no closed stream, only
a connection that ends. What it did goes to stdout as one line of JSON.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys

from . import driver


async def leave(url: str) -> None:
    """Call, report, and stay until killed."""
    tally = driver.Tally()
    async with driver.connect(url, tally, name="field-tablet", version="3.3.1", mode=driver.LEGACY) as caller:
        await caller.call("stock_level", sku="DESK-180")
        await caller.call("find_orders", customer="alan@example.com")
        print(json.dumps(dataclasses.asdict(tally), default=sorted), flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(leave(sys.argv[1]))
