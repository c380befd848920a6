"""The client: sends the same to both sides, one after the other in random order, and holds the answers together."""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass, field
from typing import Any, Final

from tests.faults.http import Answer, Connection

_ACCEPT: Final = {"accept": "application/json, text/event-stream", "content-type": "application/json"}
_META: Final = "io.modelcontextprotocol/"
MODERN: Final = "2026-07-28"
STEADY: Final = 4
"""Clients that go on calling, in a session each; they come first."""


@dataclass
class Measured:
    """What one run of the client saw."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {"with": [], "without": []})
    """From sending to the last byte, by side."""
    started: list[float] = field(default_factory=list[float])
    """When each tool call was sent to the side with us, by the monotonic clock."""
    different: list[str] = field(default_factory=list[str])


class Client:
    """Legacy and sessionless clients, steady and new ones."""

    def __init__(self, observed: int, plain: int) -> None:
        """`observed` and `plain` are ports of loopback."""
        self._ports = {"with": observed, "without": plain}
        self._number = 0
        self.until = 0.0
        """When to stop, by the monotonic clock; may be set while it runs."""

    async def run(self, seconds: float, *, workers: int = 2, pause: float = 0.004) -> Measured:
        """Call for so long."""
        measured = Measured()
        self.until = time.monotonic() + seconds
        await asyncio.gather(*(self._worker(number, measured, pause) for number in range(workers)))
        return measured

    async def settle(self) -> None:
        """Have both servers collect their garbage."""
        for port in self._ports.values():
            connection = Connection(port)
            await connection.post("/settle", b"", {})
            connection.close()

    async def _worker(self, number: int, measured: Measured, pause: float) -> None:
        sides = {side: Connection(port) for side, port in self._ports.items()}
        while time.monotonic() < self.until:
            self._number += 1
            kind = random.random()
            if kind < 0.9:
                await self._call(sides, measured, f"steady-{self._number % STEADY}/1.0")
            elif kind < 0.94:
                await self._call(sides, measured, f"new-{number}-{self._number}/{random.random()}")
            elif kind < 0.97:
                await self._legacy(sides, measured)
            else:
                await self._call(sides, measured, f"steady-{self._number % STEADY}/1.0", tool="fail")
            await asyncio.sleep(random.uniform(0, 2 * pause))
        for connection in sides.values():
            connection.close()

    async def _call(self, sides: dict[str, Connection], measured: Measured, agent: str, tool: str = "add") -> None:
        info = {"name": agent.partition("-")[0], "version": "1.0"}
        meta = {f"{_META}protocolVersion": MODERN, f"{_META}clientInfo": info, f"{_META}clientCapabilities": {}}
        headers = {
            "user-agent": agent, "mcp-protocol-version": MODERN, "mcp-method": "tools/call", "mcp-name": tool,
        }  # fmt: skip
        arguments = {"a": self._number, "b": 1} if tool == "add" else {"text": "no"}
        params = {"name": tool, "arguments": arguments, "_meta": meta}
        await self._both(sides, measured, "tools/call", params, headers, headers)

    async def _legacy(self, sides: dict[str, Connection], measured: Measured) -> None:
        """A handshake and a call; the id that only the side with us gives out goes back to that side."""
        agent = {"user-agent": f"desk/{self._number}"}
        info = {"name": "desk", "version": "1.0"}
        params: dict[str, Any] = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": info}
        answers = await self._both(sides, measured, "initialize", params, agent, agent)
        version = {**agent, "mcp-protocol-version": "2025-11-25"}
        given = answers["with"].headers.get(b"mcp-session-id", b"").decode() if "with" in answers else None
        own = {**version, "mcp-session-id": given} if given else version
        params = {"name": "add", "arguments": {"a": 1, "b": 2}}
        await self._both(sides, measured, "tools/call", params, own, version)

    async def _both(
        self,
        sides: dict[str, Connection],
        measured: Measured,
        method: str,
        params: dict[str, Any],
        observed: dict[str, str],
        plain: dict[str, str],
    ) -> dict[str, Answer]:
        body = json.dumps({"jsonrpc": "2.0", "id": self._number, "method": method, "params": params}).encode()
        answers: dict[str, Answer] = {}
        seen: dict[str, object] = {}
        for side in random.sample(("with", "without"), 2):
            headers = {**_ACCEPT, **(observed if side == "with" else plain)}
            began = time.perf_counter()
            if side == "with" and method == "tools/call":
                measured.started.append(time.monotonic())
            try:
                answer = await sides[side].post("/mcp", body, headers)
                answers[side], seen[side] = answer, (answer.status, answer.body)
            except (OSError, EOFError, ValueError) as error:
                seen[side] = type(error).__name__
            measured.seconds[side].append(time.perf_counter() - began)
        if seen["with"] != seen["without"]:
            measured.different.append(f"{method}: {seen['with']} and not {seen['without']}"[:300])
        return answers
