"""What must be true of the way in: the proxy before the servers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Final
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from mcp.client import Client

from .seen import Proof, Seen

PAGES: Final = 5
APART: Final = 0.2
"""Seconds between the progress events of the demo's import."""


def strangers_hosts_are_turned_away(seen: Seen) -> Iterator[str]:
    """A page that resolves its own name to this machine must not get through the proxy."""
    request = Request(f"{seen.stack.url('proxy')}/health", headers={"Host": "evil.example"})
    try:
        with urlopen(request, timeout=5) as response:
            yield f"the proxy answers {response.status} to a foreign host"
    except HTTPError as error:
        if error.code != 421:
            yield f"the proxy answers {error.code} to a foreign host"


def progress_is_streamed(seen: Seen) -> Iterator[str]:
    """Events must arrive as they are sent, not together at the end."""
    arrived = asyncio.run(_import_catalogue(seen.stack.mcp_url))
    spread = arrived[-1] - arrived[0] if arrived else 0.0
    if len(arrived) != PAGES:
        yield f"{len(arrived)} of {PAGES} progress events arrived"
    if spread < APART * (PAGES - 2):
        yield f"progress events arrived within {spread:.2f} s of each other"


async def _import_catalogue(url: str) -> list[float]:
    arrived: list[float] = []

    async def note(progress: float, total: float | None = None, message: str | None = None) -> None:
        arrived.append(time.monotonic())

    async with Client(url, mode="legacy") as client:
        await client.call_tool("import_catalogue", {"pages": PAGES}, progress_callback=note)
    return arrived


PROOFS: Final[dict[str, Proof]] = {
    "the proxy turns strangers' hosts away": strangers_hosts_are_turned_away,
    "the proxy streams progress": progress_is_streamed,
}
