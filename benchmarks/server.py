"""The server that is measured: a real MCP server with one small tool, and two routes that are no MCP."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Final

from mcp.server.mcpserver import MCPServer
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from starlette.requests import Request as StarletteRequest
from starlette.responses import JSONResponse, PlainTextResponse, Response

from benchmarks.drive import ASGIApp, Request, call
from benchmarks.switch import SwitchedProvider

_META: Final = (
    b'"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28",'
    b'"io.modelcontextprotocol/clientInfo":{"name":"bench","version":"1.0"},'
    b'"io.modelcontextprotocol/clientCapabilities":{"sampling":{},"elicitation":{"form":{},"url":{}}},'
    b'"io.modelcontextprotocol/logLevel":"info"}'
)
_COMMON: Final = (
    (b"host", b"127.0.0.1:8000"),
    (b"accept-encoding", b"gzip, deflate"),
    (b"connection", b"keep-alive"),
    (b"user-agent", b"python-httpx2/2.16.2"),
    (b"accept", b"application/json, text/event-stream"),
)
_JSON: Final = (b"content-type", b"application/json")
_LEGACY_VERSION: Final = b"2025-11-25"


class NoExporter(SpanExporter):
    """Exports nowhere; counts what it was given."""

    def __init__(self) -> None:
        self.spans = 0
        self.with_session = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.spans += len(spans)
        self.with_session += sum("session.id" in (span.attributes or {}) for span in spans)
        return SpanExportResult.SUCCESS


class Telemetry:
    """Providers as a real process has them, that lead nowhere: spans in batches, metrics read when asked for."""

    def __init__(self) -> None:
        self.exporter = NoExporter()
        self.tracer_provider = SwitchedProvider(BatchSpanProcessor(self.exporter, max_queue_size=100_000))
        self.reader = InMemoryMetricReader()
        self.meter_provider = MeterProvider([self.reader])
        trace.set_tracer_provider(self.tracer_provider)
        metrics.set_meter_provider(self.meter_provider)

    def count(self, metric: str, **attributes: str) -> int:
        """How many measurements a histogram has with these attributes (dots written as underscores)."""
        wanted = {name.replace("_", "."): value for name, value in attributes.items()}
        data = self.reader.get_metrics_data()
        points: list[Any] = [
            point
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for found in scope.metrics
            if found.name == metric
            for point in found.data.data_points
        ]
        return sum(point.count for point in points if wanted.items() <= dict(point.attributes).items())


def make_app() -> ASGIApp:
    """A Starlette app of the SDK's."""
    server = MCPServer("bench", version="1.0", log_level="ERROR")

    @server.tool()
    def add(a: int, b: int) -> int:  # pyright: ignore[reportUnusedFunction]
        """Add two numbers."""
        return a + b

    @server.custom_route("/health", methods=["GET"])
    async def health(_: StarletteRequest) -> Response:  # pyright: ignore[reportUnusedFunction]
        return PlainTextResponse("ok")

    @server.custom_route("/api", methods=["POST"])
    async def api(request: StarletteRequest) -> Response:  # pyright: ignore[reportUnusedFunction]
        return JSONResponse(await request.json())

    for name in ("mcp", "otel_mcp"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return server.streamable_http_app()


def health() -> Request:
    """A GET that is no MCP."""
    return Request("GET", "/health", (*_COMMON[:4], (b"accept", b"*/*")))


def api() -> Request:
    """A JSON POST that is no MCP, though only its body tells."""
    return Request("POST", "/api", (*_COMMON, _JSON), b'{"number":%d,"items":[1,2,3],"name":"somebody"}')


def modern() -> Request:
    """A ``tools/call`` of the sessionless revision, as the SDK's client sends it."""
    headers = (
        *_COMMON,
        _JSON,
        (b"mcp-protocol-version", b"2026-07-28"),
        (b"mcp-method", b"tools/call"),
        (b"mcp-name", b"add"),
    )
    body = b'{"jsonrpc":"2.0","id":%%d,"method":"tools/call","params":{"name":"add","arguments":{"a":1,"b":2},%b}}'
    return Request("POST", "/mcp", headers, body % _META)


async def legacy(app: ASGIApp) -> Request:
    """A ``tools/call`` within a stateful session, which is opened through the app."""
    initialize = (
        b'{"jsonrpc":"2.0","id":%d,"method":"initialize","params":{"protocolVersion":"2025-11-25",'
        b'"capabilities":{"sampling":{}},"clientInfo":{"name":"bench","version":"1.0"}}}'
    )
    opened, _ = await call(app, Request("POST", "/mcp", (*_COMMON, _JSON), initialize))
    session_id = opened.headers[b"mcp-session-id"]
    headers = (*_COMMON, _JSON, (b"mcp-session-id", session_id), (b"mcp-protocol-version", _LEGACY_VERSION))
    initialized = b'{"jsonrpc":"2.0","method":"notifications/initialized","params":{"n":%d}}'
    told, _ = await call(app, Request("POST", "/mcp", headers, initialized))
    assert told.status == 202, told.status
    body = b'{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":"add","arguments":{"a":1,"b":2}}}'
    return Request("POST", "/mcp", headers, body)
