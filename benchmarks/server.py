"""The server that is measured: a real MCP server with one small tool, and two routes that are no MCP."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from mcp.server.mcpserver import MCPServer
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from starlette.requests import Request as StarletteRequest
from starlette.responses import JSONResponse, PlainTextResponse, Response

from benchmarks.drive import ASGIApp
from benchmarks.switch import SwitchedProvider


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
