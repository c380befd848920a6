"""What follows on a connection is not part of the request before it.

uvicorn resumes reading from within `receive` and `send` of a request. On asyncio
what it reads then, and the requests that it begins with it, keep the context of
that moment.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from mcp.server.mcpserver import MCPServer
from opentelemetry import trace
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from otel_mcp import MCPInstrumentor, current
from otel_mcp.model.call import current_call

pytestmark = pytest.mark.anyio

LARGE = 200_000
"""Bytes of a body for which uvicorn stops reading, and resumes when the app asks for more."""
MCP_HEADERS = (
    "Content-Type: application/json\r\nAccept: application/json, text/event-stream\r\n"
    "MCP-Protocol-Version: 2025-11-25\r\n"
)


class Connection:
    """One connection that is kept alive, without a client that does anything of its own."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def ask(self, method: str, path: str, body: bytes = b"", headers: str = "") -> str:
        """The body of the answer."""
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
        self._writer.write(head.encode() + body)
        answer = await self._reader.readuntil(b"\r\n\r\n")
        if length := re.search(rb"content-length: (\d+)", answer, re.IGNORECASE):
            return (await self._reader.readexactly(int(length[1]))).decode()
        text = b""
        while size := int(await self._reader.readline(), 16):
            text += (await self._reader.readexactly(size + 2))[:-2]
        await self._reader.readline()
        return text.decode()

    async def call(self, size: int) -> str:
        params = {"name": "length", "arguments": {"text": "a" * size}}
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).encode()
        return await self.ask("POST", "/mcp", body, MCP_HEADERS)


async def seen(_: Request) -> PlainTextResponse:
    """What a handler that is no MCP finds around itself."""
    context = trace.get_current_span().get_span_context()
    return PlainTextResponse(f"span {context.is_valid}, call {current_call.get() is not None}")


class Ready(uvicorn.Server):
    """A server that says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        self.listening.set()


@asynccontextmanager
async def connected(app: Any, protocol: str) -> AsyncGenerator[Connection]:
    """A connection to `app` on uvicorn, in this loop."""
    server = Ready(uvicorn.Config(app, port=0, http=protocol, log_level="warning"))
    serving = asyncio.create_task(server.serve())
    await server.listening.wait()
    reader, writer = await asyncio.open_connection(*server.servers[0].sockets[0].getsockname()[:2])
    try:
        yield Connection(reader, writer)
    finally:
        writer.close()
        server.should_exit = True
        await serving


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    yield InMemorySpanExporter()
    MCPInstrumentor().uninstrument()
    current.discard()


@pytest.mark.parametrize("json_response", [True, False], ids=["json", "sse"])
@pytest.mark.parametrize("protocol", ["h11", "httptools"])
@pytest.mark.parametrize("around", [False, True], ids=["alone", "within an HTTP instrumentation"])
async def test_requests_after_a_large_one_are_not_beneath_it(
    exporter: InMemorySpanExporter, protocol: str, json_response: bool, around: bool
) -> None:
    tracers = TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    MCPInstrumentor().instrument(tracer_provider=tracers, meter_provider=MeterProvider(), service_name="keep alive")
    server = MCPServer("shop", log_level="WARNING")

    @server.tool()
    async def length(text: str) -> int:
        return len(text)

    app: Any = server.streamable_http_app(stateless_http=True, json_response=json_response)
    app.router.routes.append(Route("/seen", seen))
    if around:
        app = OpenTelemetryMiddleware(app, excluded_urls="seen", tracer_provider=tracers)

    async with connected(app, protocol) as connection:
        for size in (LARGE, 10, LARGE):
            assert f'"text":"{size}"' in await connection.call(size)
            assert await connection.ask("GET", "/seen") == "span False, call False"

    calls = [span for span in exporter.get_finished_spans() if span.name == "tools/call length"]
    assert len({trace_of(span) for span in calls}) == 3


def trace_of(span: ReadableSpan) -> int:
    assert span.context is not None
    return span.context.trace_id
