"""The clients of the demo: the official MCP client, in both revisions of the protocol.

Each coroutine is one client with a name of its own. All it tells the rest of the demo is the
`Tally`: how many tool calls went out and how many of them came back as errors, which is what
the telemetry is held against.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import anyio
import anyio.to_thread
import httpx2
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import Implementation

LEGACY: Final = "legacy"
"""The revisions up to 2025-11-25: a handshake, then a session id in a header."""

MODERN: Final = "2026-07-28"
"""The revision without handshake and without session id."""

_META: Final = "io.modelcontextprotocol/"

CUSTOMER: Final = "ada@example.com"
CARD: Final = "4111-1111"
ADDRESS: Final = "12 Rose Lane"
SECRETS: Final = (CUSTOMER, CARD, ADDRESS)
"""What must not turn up in what is exported or stored; the card is in an error text, the address an answer."""

CUSTOMERS: Final = ("acme", "umbrella")
"""Whose the clients are; a gateway would say so once it has verified a token."""

THINKING: Final = 2.0
"""Seconds between two calls of a client that is in no hurry."""


@dataclass
class Tally:
    """What the clients did."""

    calls: int = 0
    failures: int = 0
    rounds: int = 0
    """Requests with which calls went on once a person had answered (2026-07-28)."""
    answers: int = 0
    """Of persons who were asked while a call was under way (up to 2025-11-25)."""
    tasks: int = 0
    progress_events: int = 0
    clients: set[str] = field(default_factory=set[str])


@dataclass(frozen=True)
class Caller:
    """A connected client that counts its tool calls."""

    client: Client
    tally: Tally

    async def call(self, tool: str, **arguments: Any) -> None:
        """Call a tool; an error result is counted, a broken call raises."""
        self.tally.calls += 1
        result = await self.client.call_tool(tool, arguments, progress_callback=self._progress)
        self.tally.failures += bool(result.is_error)

    async def _progress(self, progress: float, total: float | None = None, message: str | None = None) -> None:
        self.tally.progress_events += 1


@asynccontextmanager
async def connect(
    url: str, tally: Tally, *, name: str, version: str, mode: str, **options: Any
) -> AsyncGenerator[Caller]:
    """Connect a client under a name of its own, so that each is a session of its own; with options of the SDK's."""
    info = Implementation(name=name, version=version)
    headers = {"x-org": CUSTOMERS[len(name) % len(CUSTOMERS)]}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=httpx2.Timeout(30, read=300)) as http,
        Client(
            streamable_http_client(url, http_client=http),
            mode=mode,
            client_info=info,
            read_timeout_seconds=30,
            **options,
        ) as client,
    ):
        tally.clients.add(name)
        yield Caller(client, tally)


async def support_desk(url: str, tally: Tally) -> None:
    """Look things up, fail to charge a card, and say goodbye."""
    async with connect(url, tally, name="support-desk", version="2.1.0", mode=LEGACY) as caller:
        await caller.call("stock_level", sku="LAMP-OAK")
        await caller.call("find_orders", customer=CUSTOMER)
        await caller.call("charge_card", order="A-1001", card=CARD)
        await caller.call("stock_level", sku="CHAIR-R")


async def catalogue_sync(url: str, tally: Tally) -> None:
    """Import a catalogue, which streams progress."""
    async with connect(url, tally, name="catalogue-sync", version="0.9.3", mode=LEGACY) as caller:
        await caller.call("import_catalogue", pages=8)
        await caller.call("stock_level", sku="DESK-180")


async def planner_agent(url: str, tally: Tally) -> None:
    """Plan with a slow forecast and several look-ups at once."""
    async with connect(url, tally, name="planner-agent", version="5.0.0", mode=MODERN) as caller:
        skus = ("LAMP-OAK", "DESK-180", "CHAIR-R")
        async with anyio.create_task_group() as group:
            group.start_soon(partial(caller.call, "forecast_demand", weeks=6))
            for sku in skus:
                group.start_soon(partial(caller.call, "stock_level", sku=sku))
        await caller.call("find_orders", customer="grace@example.com")


async def night_report(url: str, tally: Tally) -> None:
    """Report on orders; its last call fails, its import streams progress."""
    async with connect(url, tally, name="night-report", version="1.2.0", mode=MODERN) as caller:
        await caller.call("find_orders", customer=CUSTOMER)
        await caller.call("import_catalogue", pages=5)
        await caller.call("charge_card", order="A-1002", card=CARD)


async def new_agent(url: str, tally: Tally) -> None:
    """Call wrongly, as models do: a missing argument until it is there, and a tool that there is not.

    Twice each, so that two replicas that take turns both see a call corrected.
    """
    async with connect(url, tally, name="new-agent", version="0.1.0", mode=MODERN) as caller:
        for arguments in ({"article": "LAMP-OAK"}, {"sku": "LAMP-OAK"}):
            await caller.call("stock_level", **arguments)
            await caller.call("stock_level", **arguments)
        await caller.call("charge_card", order="A-1001")
        await caller.call("refund_order", order="A-1001")
    await anyio.to_thread.run_sync(_knock, url, "new-agent")


def _knock(url: str, name: str) -> None:
    """Send a request whose header disagrees with its body, which a server refuses."""
    meta = {f"{_META}protocolVersion": MODERN, f"{_META}clientInfo": {"name": name, "version": "0.1.0"}}
    meta[f"{_META}clientCapabilities"] = {}
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": meta}}
    headers = {
        "content-type": "application/json",
        "accept": "application/json, text/event-stream",
        "mcp-protocol-version": MODERN,
        "mcp-method": "prompts/list",
    }
    with suppress(HTTPError):
        urlopen(Request(url, json.dumps(message).encode(), headers), timeout=30).close()


async def stay_busy(caller: Caller, until: float) -> None:
    """Look things up now and then until a moment of the monotonic clock."""
    lookups = itertools.cycle(("LAMP-OAK", "DESK-180", "CHAIR-R"))
    while time.monotonic() < until:
        await caller.call("stock_level", sku=next(lookups))
        await anyio.sleep(THINKING)


async def planner_returns(url: str, tally: Tally) -> None:
    """Come back under the name of before, which without a session id is all there is to go by."""
    async with connect(url, tally, name="planner-agent", version="5.0.0", mode=MODERN) as caller:
        await caller.call("find_orders", customer="alan@example.com")


async def first_shift(url: str, tally: Tally) -> None:
    """Run the clients that come and go before the server is restarted."""
    async with anyio.create_task_group() as group:
        for client in (support_desk, catalogue_sync, planner_agent, night_report):
            group.start_soon(client, url, tally)
