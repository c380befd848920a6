"""Answers of MCP, and a scripted server that gives them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from otel_mcp.types import Message, Receive, Send
from tests.support.asgi import event, read, respond, stream

OK: Final[Message] = {"content": [{"type": "text", "text": "3"}], "isError": False}


FAILED: Final[Message] = {"content": [{"type": "text", "text": "secret reason"}], "isError": True}


def result(request_id: object = 1, value: object = None) -> Message:
    """A JSON-RPC result."""
    return {"jsonrpc": "2.0", "id": request_id, "result": OK if value is None else value}


def error(code: int, request_id: object = 1, message: str = "secret reason") -> Message:
    """A JSON-RPC error."""
    return {"jsonrpc": "2.0", "id": request_id, "error": {"code": code, "message": message}}


def initialized(request_id: object = 0, version: str = "2025-11-25") -> Message:
    """The answer to ``initialize``."""
    return result(
        request_id, {"protocolVersion": version, "capabilities": {}, "serverInfo": {"name": "s", "version": "1"}}
    )


class Server:
    """A scripted MCP server: answers each method with what it was given, in the way of its mode.

    Stateful servers give out a session id at ``initialize`` and refuse every other id.
    """

    def __init__(
        self, results: Mapping[str, Message] | None = None, *, session_id: str | None = None, sse: bool = False
    ) -> None:
        self.results = dict(results or {})
        self.session_id = session_id
        self.sse = sse
        self.scopes: list[Message] = []

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        claimed = dict(scope["headers"]).get(b"mcp-session-id", b"").decode("latin-1")
        body = await read(receive)
        message = json.loads(body) if body else {}
        own = [("mcp-session-id", self.session_id)] if self.session_id is not None else []
        method = message.get("method")
        if self.session_id is not None and method != "initialize" and claimed != self.session_id:
            await respond(send, error(-32600, None), 404)
        elif scope["method"] != "POST":
            await respond(send, b"", 200 if own else 405, own)
        elif "id" not in message:
            await respond(send, b"", 202, own)
        else:
            answer = {"jsonrpc": "2.0", "id": message["id"], **self._answer(method)}
            await (stream(send, [event(answer)], own) if self.sse else respond(send, answer, 200, own))

    def _answer(self, method: str | None) -> Message:
        if method in self.results:
            return self.results[method]
        if method == "initialize":
            return {"result": {"protocolVersion": "2025-11-25", "capabilities": {}}}
        return {"result": {"tools": [{"name": "add"}]} if method == "tools/list" else OK}
