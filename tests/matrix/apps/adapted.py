"""A route that makes a scope of its own for each request and hands it to the SDK's session manager, as adapters do."""

import asyncio
import os
from importlib import import_module
from typing import Any

from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

mcp = import_module(os.environ["APP"]).mcp
server = getattr(mcp, "_lowlevel_server", None) or mcp._mcp_server


async def serve(request: Request) -> Response:
    body = await request.body()
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": request.method,
        "headers": [(name.encode(), value.encode()) for name, value in request.headers.items()],
        "path": request.url.path,
        "raw_path": request.url.path.encode(),
        "query_string": b"",
        "scheme": "http",
        "client": request.client,
        "server": ("127.0.0.1", request.url.port),
    }
    started: dict[str, Any] = {}
    answered = bytearray()
    asked = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> Any:
        for message in asked:
            return message
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            started.update(message)
        else:
            answered.extend(message.get("body", b""))

    manager = StreamableHTTPSessionManager(server, json_response=True, stateless=True)
    async with manager.run():
        await manager.handle_request(scope, receive, send)
    response = Response(bytes(answered), started["status"])
    response.raw_headers.extend(header for header in started["headers"] if header[0] != b"content-length")
    return response


app = Starlette(routes=[Route("/mcp", serve, methods=["GET", "POST", "DELETE"])])
