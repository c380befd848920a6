"""Clients of every kind, in short sessions, one after the other: plain HTTP, as hosts really send it."""

from __future__ import annotations

import asyncio
import json
import random
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Final

import httpx

ACCEPT: Final = {"accept": "application/json, text/event-stream", "content-type": "application/json"}
MODERN: Final = "2026-07-28"
_META: Final = "io.modelcontextprotocol/"


class Traffic:
    """Sends, and counts what was sent and how it was answered."""

    def __init__(self, url: str, *, clients: int, period: float) -> None:
        self._url = url
        self._clients = clients
        self._period = period
        self.sessions: Counter[str] = Counter()
        """Begun, by kind."""
        self.statuses: Counter[int] = Counter()
        self.broken: Counter[str] = Counter()
        """Exceptions that a client met and did not ask for."""

    async def run(self, seconds: float) -> None:
        """All clients at once, for `seconds`."""
        until = asyncio.get_running_loop().time() + seconds
        limits = httpx.Limits(max_connections=200, max_keepalive_connections=20)
        async with httpx.AsyncClient(base_url=self._url, timeout=15, limits=limits, trust_env=False) as http:
            await asyncio.gather(*(self._client(http, until) for _ in range(self._clients)))

    async def _client(self, http: httpx.AsyncClient, until: float) -> None:
        kinds: list[Callable[[httpx.AsyncClient], Awaitable[None]]] = [
            self._stateful, self._stateful, self._stateless, self._stateless, self._modern, self._modern,
            self._chatgpt, self._invented, self._cancelled, self._legacy_sse, self._ordinary,
        ]  # fmt: skip
        loop = asyncio.get_running_loop()
        due = loop.time()
        while loop.time() < until:
            # At a rate of its own, however fast the server is: figures that depend on the load stay comparable.
            due = max(due + random.uniform(0.5, 1.5) * self._period, loop.time())
            kind = random.choice(kinds)
            self.sessions[kind.__name__.strip("_")] += 1
            try:
                await kind(http)
            except (httpx.HTTPError, TimeoutError, KeyError, ValueError, RuntimeError) as error:
                self.broken[f"{kind.__name__} {error!r}"] += 1
            await asyncio.sleep(due - loop.time())

    async def _post(
        self, http: httpx.AsyncClient, path: str, method: str, params: dict[str, Any], **headers: str
    ) -> httpx.Response:
        message: dict[str, Any] = {"jsonrpc": "2.0", "method": method, "params": params}
        if not method.startswith("notifications/"):
            message["id"] = random.randrange(1_000_000)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = await http.post(path, content=json.dumps(message), headers={**ACCEPT, **named})
        self.statuses[answer.status_code] += 1
        return answer

    async def _open(self, http: httpx.AsyncClient, path: str, agent: str) -> dict[str, str]:
        """Shake hands; the headers of what follows."""
        info = {"name": agent.partition("/")[0], "version": "1.0"}
        params = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": info}
        answer = await self._post(http, path, "initialize", params, user_agent=agent)
        headers = {"user_agent": agent, "mcp_protocol_version": "2025-11-25"}
        if session_id := answer.headers.get("mcp-session-id"):
            headers["mcp_session_id"] = session_id
        await self._post(http, path, "notifications/initialized", {}, **headers)
        return headers

    async def _calls(self, http: httpx.AsyncClient, path: str, headers: dict[str, str], meta: dict[str, Any]) -> None:
        await self._post(http, path, "tools/list", {"_meta": meta}, **headers)
        for _ in range(random.randint(1, 6)):
            tool, arguments = random.choice(
                (
                    ("add", {"a": 1, "b": 2}), ("add", {"a": 1, "b": 2}), ("threaded", {"text": "x"}),
                    ("fail", {"text": "no"}), ("crash", {"text": "ouch"}), ("note", {"text": "seen"}),
                    ("add", {"a": "no number"}), (f"unknown-{secrets.token_hex(4)}", {}),
                )
            )  # fmt: skip
            named = {**headers, "mcp_name": tool} if "mcp_method" in headers else headers
            named = {**named, "mcp_method": "tools/call"} if "mcp_method" in headers else named
            await self._post(http, path, "tools/call", {"name": tool, "arguments": arguments, "_meta": meta}, **named)

    async def _stateful(self, http: httpx.AsyncClient) -> None:
        """With a stream that is dropped; some say goodbye, some just leave."""
        headers = await self._open(http, "/stateful/mcp", f"desk/{random.randrange(5)}")
        listening = asyncio.create_task(self._listen(http, "/stateful/mcp", headers))
        try:
            await self._calls(http, "/stateful/mcp", headers, {})
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
        if random.random() < 0.7:
            sent = {name.replace("_", "-"): value for name, value in headers.items()}
            self.statuses[(await http.delete("/stateful/mcp", headers=sent)).status_code] += 1

    async def _listen(self, http: httpx.AsyncClient, path: str, headers: dict[str, str]) -> None:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        async with http.stream("GET", path, headers={"accept": "text/event-stream", **sent}) as answer:
            async for _ in answer.aiter_bytes():
                pass

    async def _stateless(self, http: httpx.AsyncClient) -> None:
        headers = await self._open(http, "/stateless/mcp", f"crawler/{random.randrange(5)}")
        await self._calls(http, "/stateless/mcp", headers, {})
        if random.random() < 0.3:
            sent = {name.replace("_", "-"): value for name, value in headers.items()}
            await http.delete("/stateless/mcp", headers=sent)

    async def _modern(self, http: httpx.AsyncClient) -> None:
        agent = f"planner/{random.randrange(10_000)}"
        info = {"name": "planner", "version": "2.0"}
        meta = {f"{_META}protocolVersion": MODERN, f"{_META}clientInfo": info, f"{_META}clientCapabilities": {}}
        headers = {"user_agent": agent, "mcp_protocol_version": MODERN, "mcp_method": "tools/list"}
        await self._calls(http, "/stateless/mcp", headers, meta)

    async def _chatgpt(self, http: httpx.AsyncClient) -> None:
        """One conversation over many transport sessions, of a call each."""
        meta = {"openai/session": f"v1/{secrets.token_urlsafe(24)}", "openai/userAgent": "ChatGPT/1.2"}
        for _ in range(random.randint(1, 3)):
            headers = await self._open(http, "/stateful/mcp", "openai-mcp/1.0.0")
            params = {"name": "add", "arguments": {"a": 1, "b": 1}, "_meta": meta}
            await self._post(http, "/stateful/mcp", "tools/call", params, **headers)

    async def _invented(self, http: httpx.AsyncClient) -> None:
        """Ids that nobody gave out, and bodies that are no message."""
        for path in ("/stateful/mcp", "/stateless/mcp"):
            for invented in (secrets.token_hex(16), f"om1.{secrets.token_hex(16)}", "x" * 400):
                params = {"name": "add", "arguments": {"a": 1, "b": 2}}
                await self._post(http, path, "tools/call", params, mcp_session_id=invented, user_agent="stranger/0")
            answer = await http.post(path, content=b'{"jsonrpc": "2.0", "id": 1, ', headers=ACCEPT)
            self.statuses[answer.status_code] += 1

    async def _cancelled(self, http: httpx.AsyncClient) -> None:
        """A client that hangs up in the middle of a call, with and without a word."""
        path = random.choice(("/stateful/mcp", "/stateless/mcp"))
        headers = await self._open(http, path, "hasty/1.0")
        params = {"name": "slow", "arguments": {"seconds": 1.0}}
        calling = asyncio.create_task(self._post(http, path, "tools/call", params, **headers))
        await asyncio.sleep(0.1)
        if random.random() < 0.5:
            await self._post(http, path, "notifications/cancelled", {"requestId": 1}, **headers)
        calling.cancel()
        await asyncio.gather(calling, return_exceptions=True)

    async def _legacy_sse(self, http: httpx.AsyncClient) -> None:
        """The transport of 2024-11-05: answers come on the stream."""
        async with http.stream("GET", "/sse", headers={"user-agent": "old/1.0"}) as stream:
            lines = stream.aiter_lines()
            async for line in lines:
                if line.startswith("data:"):
                    break
            else:
                raise RuntimeError("no endpoint")
            path = line.removeprefix("data:").strip()
            info = {"name": "old", "version": "1.0"}
            opening = {"protocolVersion": "2024-11-05", "capabilities": {}, "clientInfo": info}
            await self._post(http, path, "initialize", opening)
            await self._post(http, path, "notifications/initialized", {})
            for number in range(random.randint(1, 3)):
                await self._post(http, path, "tools/call", {"name": "add", "arguments": {"a": number, "b": 1}})
            if random.random() < 0.7:
                async for line in lines:
                    if '"sum"' in line or '"result"' in line:
                        break

    async def _ordinary(self, http: httpx.AsyncClient) -> None:
        for _ in range(5):
            self.statuses[(await http.get("/health")).status_code] += 1
