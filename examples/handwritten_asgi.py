"""An MCP server in plain ASGI, wrapped by hand.

Under `opentelemetry-instrument` with uvicorn this wrapping would come by itself. By hand it also
works with other servers, and where an application sets up the OpenTelemetry SDK in its own code.

opentelemetry-instrument uvicorn examples.handwritten_asgi:app
opentelemetry-instrument hypercorn examples.handwritten_asgi:app
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

from otel_mcp import MCPMiddleware

Message: TypeAlias = MutableMapping[str, Any]
Send: TypeAlias = Callable[[Message], Awaitable[None]]

TOOL = {
    "name": "reverse",
    "description": "Reverse a text.",
    "inputSchema": {
        "type": "object",
        "properties": {"text": {"type": "string"}},
        "required": ["text"],
    },
}


def answer(method: str, params: dict[str, Any]) -> dict[str, Any]:
    """Return the result or the error of one request."""
    match method:
        case "initialize":
            return {
                "result": {
                    "protocolVersion": "2025-11-25",
                    "capabilities": {"tools": {}},
                    "serverInfo": {"name": "handwritten", "version": "1.0.0"},
                }
            }
        case "ping":
            return {"result": {}}
        case "tools/list":
            return {"result": {"tools": [TOOL]}}
        case "tools/call" if params.get("name") == "reverse":
            text = str(params.get("arguments", {}).get("text", ""))
            return {"result": {"content": [{"type": "text", "text": text[::-1]}], "isError": False}}
        case "tools/call":
            return {"error": {"code": -32602, "message": "Unknown tool"}}
        case _:
            return {"error": {"code": -32601, "message": "Method not found"}}


async def mcp_server(scope: Message, receive: Callable[[], Awaitable[Message]], send: Send) -> None:
    """Answer POST requests of the revisions up to 2025-11-25 with plain JSON, without sessions."""
    if scope["type"] != "http":
        raise NotImplementedError(f"{scope['type']} is not supported")
    if scope["method"] != "POST":
        await _respond(send, 405)
        return
    body, more = b"", True
    while more:
        event = await receive()
        body, more = body + event.get("body", b""), event.get("more_body", False)
    try:
        message = json.loads(body)
        if "id" not in message:
            await _respond(send, 202)
            return
        reply = answer(message["method"], message.get("params", {}))
        payload = {"jsonrpc": "2.0", "id": message["id"], **reply}
    except (ValueError, LookupError, TypeError):
        error = {"code": -32700, "message": "Parse error"}
        await _respond(send, 400, {"jsonrpc": "2.0", "id": None, "error": error})
        return
    await _respond(send, 200, payload)


async def _respond(send: Send, status: int, payload: dict[str, Any] | None = None) -> None:
    body = b"" if payload is None else json.dumps(payload).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


app = MCPMiddleware(mcp_server)
