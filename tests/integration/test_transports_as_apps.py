"""The SDK's transports, taken for apps by those who first ask what kind of callable they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest
from mcp.server.mcpserver import MCPServer
from mcp.server.streamable_http_manager import StreamableHTTPASGIApp, StreamableHTTPSessionManager
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware  # pyright: ignore[reportMissingTypeStubs]
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from starlette.applications import Starlette
from starlette.routing import Mount
from uvicorn import Config

from otel_mcp import MCPInstrumentor

pytestmark = pytest.mark.anyio
CALL = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "add", "arguments": {"a": 1, "b": 2}}}
HEADERS = {"accept": "application/json, text/event-stream", "mcp-protocol-version": "2025-06-18"}
ENTRIES: dict[str, Callable[[StreamableHTTPSessionManager], Any]] = {
    "handle_request": lambda manager: manager.handle_request,
    "StreamableHTTPASGIApp": StreamableHTTPASGIApp,
}


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    tracers = TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    MCPInstrumentor().instrument(tracer_provider=tracers, meter_provider=MeterProvider())
    yield exporter
    MCPInstrumentor().uninstrument()


@pytest.fixture
def manager() -> StreamableHTTPSessionManager:
    server = MCPServer("shop", log_level="WARNING")

    @server.tool()
    async def add(a: int, b: int) -> int:  # pyright: ignore[reportUnusedFunction]
        return a + b

    return StreamableHTTPSessionManager(server._lowlevel_server, stateless=True, json_response=True)  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize("entry", ENTRIES)
async def test_a_middleware_around_a_transport_serves_it(
    exporter: InMemorySpanExporter, manager: StreamableHTTPSessionManager, entry: str
) -> None:
    app = Starlette(routes=[Mount("/mcp", app=OpenTelemetryMiddleware(ENTRIES[entry](manager)))])

    async with manager.run(), httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://host") as client:
        answer = await client.post("/mcp/", json=CALL, headers={**HEADERS, "host": "127.0.0.1:8000"})

    assert answer.status_code == 200
    spans = [span for span in exporter.get_finished_spans() if (span.attributes or {}).get("gen_ai.tool.name") == "add"]
    assert [span.kind for span in spans] == [SpanKind.SERVER]


def test_a_server_recognises_each_transport(
    exporter: InMemorySpanExporter, manager: StreamableHTTPSessionManager
) -> None:
    config = Config(StreamableHTTPASGIApp(manager), lifespan="off", log_config=None)

    config.load()

    assert config.interface == "asgi3"
