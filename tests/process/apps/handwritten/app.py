"""A server in bare ASGI, which knows of no lifespan."""

from __future__ import annotations

import json
from typing import Any

TOOLS = [{"name": "add", "inputSchema": {"type": "object"}}]


def answer(message: dict[str, Any]) -> dict[str, Any] | None:
    """The response to a message, nothing to a notification."""
    if "id" not in message:
        return None
    result: dict[str, Any]
    match message["method"]:
        case "initialize":
            result = {
                "protocolVersion": message["params"]["protocolVersion"],
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "handwritten", "version": "1.0"},
            }
        case "tools/list":
            result = {"tools": TOOLS}
        case "tools/call":
            result = {"content": [{"type": "text", "text": "3"}], "isError": False}
        case _:
            return {"jsonrpc": "2.0", "id": message["id"], "error": {"code": -32601, "message": "no such method"}}
    return {"jsonrpc": "2.0", "id": message["id"], "result": result}


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer POST requests."""
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    response = answer(json.loads(body)) if scope["method"] == "POST" else None
    status = 405 if scope["method"] != "POST" else 202 if response is None else 200
    content = b"" if response is None else json.dumps(response).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
