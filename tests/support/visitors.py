"""A client of the older revisions that does with its session id what real ones do: repeat it, come back, leave."""

from __future__ import annotations

from typing import Any, Final

import httpx2

from tests.support.messages import call, initialize, legacy_headers, notify
from tests.unit.identity.test_resolver import jwt

REFUSED: Final = frozenset({400, 404})
"""How servers answer an id that they do not know."""
_VERSION: Final = "2025-06-18"
"""Older servers know it as well."""


class Visitor:
    """A client with a credential of its own. Its methods return the status of the answer."""

    def __init__(self, http: httpx2.AsyncClient, name: str) -> None:
        self._http, self._name = http, name
        self._caller = [jwt(name)]
        self.session_id = ""

    async def open(self) -> None:
        """Begin a session, also where there was another one."""
        answer = await self._post(initialize(version=_VERSION, name=self._name), [])
        self.session_id = answer.headers["mcp-session-id"]
        await self._post(notify("notifications/initialized"))

    async def call(self) -> int:
        """Call a tool in the session that it knows."""
        return (await self._post(call("add", 1, arguments={"a": 1, "b": 2}))).status_code

    async def leave(self) -> int:
        """Give the session up."""
        return (await self._http.delete("/mcp", headers=dict(self._headers()))).status_code

    async def listen(self) -> int:
        """Ask for the session's stream, and leave it."""
        headers = {**dict(self._headers()), "accept": "text/event-stream"}
        async with self._http.stream("GET", "/mcp", headers=headers) as answer:
            return answer.status_code

    def _headers(self) -> list[tuple[str, str]]:
        return [*legacy_headers(self.session_id, _VERSION), *self._caller]

    async def _post(self, message: Any, headers: list[tuple[str, str]] | None = None) -> httpx2.Response:
        own = [("content-type", "application/json"), ("accept", "application/json, text/event-stream")]
        known = self._headers() if headers is None else [*headers, *self._caller]
        return await self._http.post("/mcp", json=message, headers=dict([*own, *known]))
