"""One visit of a client at a server, message by message, in the words of either revision; and what was answered."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import httpx

LEGACY: Final = "2025-11-25"
MODERN: Final = "2026-07-28"
_CLIENT: Final = {"name": "visitor", "version": "1.0"}
_META: Final = {
    "io.modelcontextprotocol/protocolVersion": MODERN,
    "io.modelcontextprotocol/clientInfo": _CLIENT,
    "io.modelcontextprotocol/clientCapabilities": {},
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
}
_IDS: Final = re.compile(r"[0-9a-f]{32}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_KEPT: Final = ("content-type", "content-encoding", "mcp-session-id", "www-authenticate")
_MINTED: Final = "om1."
"""Begins every id that the package gives to a client."""
_PATIENCE: Final = 60


@dataclass(frozen=True)
class Call:
    """A tool call, and what an operator should see of it."""

    tool: str
    arguments: tuple[tuple[str, Any], ...] = ()
    failure: str | None = None
    """``otel_mcp.failure``."""
    error: str | None = None
    """``error.type``; with it goes the status ERROR."""


GOOD: Final = Call("add", (("a", 1), ("b", 2)))
FAILING: Final = Call("fail", failure="exception", error="tool_error")
UNKNOWN: Final = Call("nobody_has_this", failure="unknown_tool", error="tool_error")
WRONG: Final = Call("add", (("a", "x"), ("b", 2)), failure="invalid_arguments", error="tool_error")
CALLS: Final = (GOOD, GOOD, FAILING, UNKNOWN, WRONG, GOOD)


@dataclass(frozen=True)
class Answer:
    """An answer without what differs from run to run, and without headers of ours."""

    asked: str
    status: int
    headers: tuple[tuple[str, str], ...]
    text: str


class Visit:
    """Sends the messages of one client, one after another."""

    def __init__(
        self, url: str, revision: str, calls: tuple[Call, ...], headers: dict[str, str], *, joins: str | None = None
    ) -> None:
        """Prepare it.

        Args:
            url: the server's endpoint.
            revision: `LEGACY` or `MODERN`.
            calls: what is called.
            headers: sent with everything.
            joins: the id of a session that somebody else has begun, or nothing where the server has given none; then
                there is no handshake and no goodbye.
        """
        self.revision = revision
        self.calls = calls
        self.answers: list[Answer] = []
        self.requests: list[tuple[str, str]] = []
        """Method and id of each that has one."""
        self._url = url
        self._headers = headers
        self.credential = headers.get("authorization", "")
        self._joins = joins
        self.session = joins or ""

    def run(self) -> None:
        """Begin, list and call as this revision has it."""
        with httpx.Client(timeout=_PATIENCE, trust_env=False, follow_redirects=True) as self._http:
            if self.revision == LEGACY and self._joins is None:
                hello = {"protocolVersion": LEGACY, "capabilities": {}, "clientInfo": _CLIENT}
                self._post("initialize", hello)
                self._post("notifications/initialized", None)
            if self._joins is None:
                self._post("tools/list", {})
            for call in self.calls:
                self._post("tools/call", {"name": call.tool, "arguments": dict(call.arguments)}, call.tool)

    def leave(self) -> None:
        """End the session, where the server or we have given one."""
        if self.session and self._joins is None:
            with httpx.Client(timeout=_PATIENCE, trust_env=False, follow_redirects=True) as http:
                goodbye = http.delete(self._url, headers=self._named())
            # Without us there would be none to an id of ours.
            if not self.session.startswith(_MINTED):
                self._note("DELETE", goodbye)

    def _post(self, method: str, params: dict[str, Any] | None, name: str = "") -> None:
        message: dict[str, Any] = {"jsonrpc": "2.0", "method": method}
        headers = {"accept": "application/json, text/event-stream", **self._named()}
        if self.revision == MODERN:
            params = {**(params or {}), "_meta": _META}
            headers |= {"mcp-protocol-version": MODERN, "mcp-method": method, **({"mcp-name": name} if name else {})}
        elif method != "initialize":
            headers["mcp-protocol-version"] = LEGACY
        if not method.startswith("notifications/"):
            message["id"] = len(self.requests) + 1
            self.requests.append((method, str(message["id"])))
        if params is not None:
            message["params"] = params
        response = self._http.post(self._url, json=message, headers=headers)
        self.session = response.headers.get("mcp-session-id", self.session) if self.revision == LEGACY else ""
        self._note(f"{method} {name}", response)

    def _named(self) -> dict[str, str]:
        return {**self._headers, **({"mcp-session-id": self.session} if self.session else {})}

    def _note(self, asked: str, response: httpx.Response) -> None:
        headers = [(name, response.headers[name]) for name in _KEPT if name in response.headers]
        kept = tuple((name, _IDS.sub("<id>", value)) for name, value in headers if not value.startswith(_MINTED))
        text = "\n".join(json.dumps(message, sort_keys=True) for message in _messages(response))
        self.answers.append(Answer(asked, response.status_code, kept, _IDS.sub("<id>", text)))


def _messages(response: httpx.Response) -> Iterator[Any]:
    if not response.headers.get("content-type", "").startswith("text/event-stream"):
        try:
            yield response.json()
        except ValueError:
            yield response.text
        return
    for line in response.text.splitlines():
        if line.startswith("data:") and line.removeprefix("data:").strip():
            yield json.loads(line.removeprefix("data:"))
