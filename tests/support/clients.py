"""The official MCP client, and a record of what it really put on the wire and got back."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import httpx2
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult, Implementation, RequestParamsMeta

LEGACY: Final = "legacy"
"""The revisions up to 2025-11-25: a handshake, then a session id in a header."""
MODERN: Final = "2026-07-28"
"""The revision without handshake and without session id."""


@dataclass
class Wire:
    """What one client sent and got, as HTTP saw it."""

    messages: Counter[str] = field(default_factory=Counter[str])
    """JSON-RPC methods of the messages sent."""
    requests: Counter[str] = field(default_factory=Counter[str])
    """Those of them that have an id, and so an answer."""
    transport_ids: set[str] = field(default_factory=set[str])
    """Every ``Mcp-Session-Id`` that a response carried."""
    public_ids: set[str] = field(default_factory=set[str])
    """Every ``X-Session-Id`` that a response carried."""

    async def sent(self, request: httpx2.Request) -> None:
        """Note the message of a request."""
        if request.method != "POST":
            return
        message = json.loads(request.content)
        if "method" in message:
            self.messages[message["method"]] += 1
            self.requests[message["method"]] += "id" in message

    async def got(self, response: httpx2.Response) -> None:
        """Note the ids of a response."""
        if transport_id := response.headers.get("mcp-session-id"):
            self.transport_ids.add(transport_id)
        if public_id := response.headers.get("x-session-id"):
            self.public_ids.add(public_id)


@dataclass
class Caller:
    """A connected client that counts its tool calls."""

    name: str
    mode: str
    client: Client
    wire: Wire
    calls: Counter[str] = field(default_factory=Counter[str])
    """Tool calls sent, by tool."""
    failed: int = 0

    async def call(self, tool: str, *, meta: RequestParamsMeta | None = None, **arguments: Any) -> CallToolResult:
        """Call a tool; an error result is counted, a broken call raises."""
        self.calls[tool] += 1
        result = await self.client.call_tool(tool, arguments, meta=meta)
        self.failed += bool(result.is_error)
        return result

    @property
    def session_id(self) -> str:
        """The session that the server named to this client; for legacy clients the transport's."""
        (only,) = self.wire.transport_ids if self.mode == LEGACY else self.wire.public_ids
        return only


@asynccontextmanager
async def connect(
    url: str, *, name: str, mode: str, headers: Mapping[str, str] | None = None, goodbye: bool = False
) -> AsyncGenerator[Caller]:
    """Connect a client under a name of its own.

    Args:
        url: The server's endpoint.
        name: The name in its clientInfo.
        mode: `LEGACY` or `MODERN`.
        headers: Sent with every request.
        goodbye: End the session on leaving, as this client does by default.
    """
    wire = Wire()
    async with httpx2.AsyncClient(
        headers=dict(headers or {}),
        event_hooks={"request": [wire.sent], "response": [wire.got]},
        timeout=60,
        trust_env=False,
    ) as http:
        transport = streamable_http_client(url, http_client=http, terminate_on_close=goodbye)
        info = Implementation(name=name, version="1.0")
        failure: Exception | None = None
        async with Client(transport, mode=mode, client_info=info, read_timeout_seconds=60) as client:
            try:
                yield Caller(name, mode, client, wire)
            except Exception as error:
                # Kept from the task groups of the client, which would wrap it once for each of them.
                failure = error
        if failure is not None:
            raise failure
