"""Replicas of a server behind a relay, their clients, and a ledger of what the clients saw."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from tempfile import TemporaryFile
from typing import Final

import httpx2

from examples.demo.server_process import free_port
from tests.matrix.cells import Cell
from tests.matrix.serving import STOP_WITHIN, start, wait_for
from tests.restarts.relay import Relay
from tests.support.documents import Documents
from tests.support.servers import PLAIN, PROMPT, end_group
from tests.support.visitors import REFUSED, Visitor

PATIENCE: Final = 60.0
"""Seconds until everything has been reported."""
_QUICK: Final = {**PROMPT, **PLAIN}
_HABITS: Final = ("back", "repeat", "back", "listen", "leave", "silent")
"""What a client does once its session is refused, in turn."""


@dataclass
class Ledger:
    """What clients saw."""

    cut: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    """Sessions that were refused, and why."""
    back: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    """Sessions with which clients were served again, and those that they continue (empty: the same one)."""


@dataclass
class Replica:
    """A process of the service."""

    port: int
    process: subprocess.Popen[bytes]


class Service:
    """Replicas behind a relay, and their clients."""

    def __init__(self, cell: Cell, relay: Relay, http: httpx2.AsyncClient, otlp: str, store: str) -> None:
        self._cell = cell
        self.relay = relay
        self._http = http
        self._otlp = otlp
        self.store = store
        self.replicas: list[Replica] = []
        self.visitors: list[tuple[Visitor, str]] = []
        self.ledger = Ledger()

    async def add(self) -> Replica:
        """Start a replica; the relay knows it once it listens."""
        environment = {**_QUICK, "OTEL_PYTHON_MCP_REDIS_URL": self.store}
        with TemporaryFile() as log:
            port = free_port()
            replica = Replica(port, start(self._cell, self._otlp, port, log, environment=environment))
        self.replicas.append(replica)
        await asyncio.to_thread(wait_for, port, replica.process)
        self.relay.ports.append(port)
        return replica

    async def end(self, replica: Replica, *, kill: bool = False) -> None:
        """Take a replica out of the relay, then end it."""
        self.relay.ports.remove(replica.port)
        self.replicas.remove(replica)
        if kill:
            replica.process.kill()
        await asyncio.to_thread(end_group, replica.process, STOP_WITHIN)

    async def come(self, count: int) -> None:
        """Have clients open a session and call a tool, and wait until the store knows."""
        for number in range(count):
            visitor = Visitor(self._http, f"visitor-{number}")
            await visitor.open()
            assert await visitor.call() == 200
            self.visitors.append((visitor, _HABITS[number % len(_HABITS)]))
        known = [visitor.session_id for visitor, _ in self.visitors]
        assert await until(
            lambda: all(self.has_document(each, lambda fields: bool(fields["tool_call_count"])) for each in known)
        )

    async def go_on(self, cause: str) -> None:
        """Have all clients use their sessions, and note what comes of it."""
        for visitor, habit in self.visitors:
            old = visitor.session_id
            if habit == "silent":
                continue
            if habit == "leave":
                await visitor.leave()
                continue
            status = await (visitor.listen() if habit == "listen" else visitor.call())
            if status not in REFUSED:
                continue
            self.ledger.cut[old, cause] = 1
            if habit == "back":
                await visitor.open()
                assert await visitor.call() == 200
                self.ledger.back[visitor.session_id, old] += 1
            elif habit == "repeat":
                assert [await visitor.call() for _ in range(3)] == [status] * 3

    def has_document(self, session_id: str, wanted: Callable[[dict[str, object]], bool]) -> bool:
        """Tell whether the store has a document of the session that is as wanted."""
        documents = Documents(self.store)
        document = documents.get(session_id)
        documents.close()
        return document is not None and wanted(document.fields)


async def until(holds: Callable[[], bool]) -> bool:
    """Wait until something holds, for a while."""
    deadline = time.monotonic() + PATIENCE
    while not holds() and time.monotonic() < deadline:  # noqa: ASYNC110 (what is waited for is elsewhere)
        await asyncio.sleep(0.1)
    return holds()
