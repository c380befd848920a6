"""An ASGI transport that is not the SDK's: JSON-RPC from a request's body into streams of its own, and back."""

import json
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Any

import anyio
from mcp.shared.message import SessionMessage
from pydantic import TypeAdapter
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

try:
    from mcp_types import JSONRPCMessage
except ImportError:
    from mcp.types import JSONRPCMessage

mcp = import_module(os.environ["APP"]).mcp
server = getattr(mcp, "_lowlevel_server", None) or mcp._mcp_server
message_of = TypeAdapter(JSONRPCMessage)
waiting: dict[Any, Any] = {}
"""Where the answer to a request goes, by its id."""


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncGenerator[dict[str, Any]]:
    to_server, incoming = anyio.create_memory_object_stream(16)
    outgoing, from_server = anyio.create_memory_object_stream(16)

    async def deliver() -> None:
        async for message in from_server:
            plain = json.loads(message.message.model_dump_json(by_alias=True, exclude_none=True))
            if "method" not in plain:
                await waiting.pop(plain["id"]).send(plain)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(deliver)
        tasks.start_soon(server.run, incoming, outgoing, server.create_initialization_options())
        yield {"to_server": to_server}
        tasks.cancel_scope.cancel()


async def serve(request: Request) -> Response:
    if request.method != "POST":
        return Response(status_code=405)
    body = await request.body()
    message = json.loads(body)
    answers, answer = anyio.create_memory_object_stream(1)
    if "id" in message:
        waiting[message["id"]] = answers
    await request.state.to_server.send(SessionMessage(message_of.validate_json(body)))
    if "id" not in message:
        return Response(status_code=202)
    return Response(json.dumps(await answer.receive()), media_type="application/json")


app = Starlette(routes=[Route("/mcp", serve, methods=["GET", "POST", "DELETE"])], lifespan=lifespan)
