"""One variant of the server in a process of its own: ``python -m benchmarks.variant NAME SCENARIO``.

Reads ``run N`` lines, serves N calls one after another, and answers each line
with the CPU of the whole process: `processes` starts two of these and compares.
Settings and timers are the defaults, so what is done later is done as a server
does it, between the calls and after them.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from importlib import import_module
from time import perf_counter, process_time_ns
from typing import Any, Final, cast

import uvicorn
from mcp.server.mcpserver import Context, MCPServer
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    MetricExporter,
    MetricExportResult,
    MetricsData,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request as StarletteRequest
from starlette.responses import Response

from benchmarks import requests
from benchmarks.drive import ASGIApp, Lifespan, Request, call, settle_memory

VARIANTS: Final = (
    "native",
    "otel_mcp",
    "otel_mcp, memory",
    "otel_mcp + HTTP span",
    "opentelemetry asgi",
    "empty BaseHTTPMiddleware",
    "opentel-mcp",
)
"""``native`` is the SDK with its own spans and nothing else."""
SCENARIOS: Final = ("2025-11-25", "2026-07-28", "100 kB result", "100 progress events", "unsampled")
_WARM: Final = 200
_EVENTS: Final = 100


class _NoSpans(SpanExporter):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.SUCCESS


class _NoMetrics(MetricExporter):
    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **_: Any) -> MetricExportResult:
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return True

    def shutdown(self, timeout_millis: float = 30_000, **_: Any) -> None:
        return None


def _providers(scenario: str) -> None:
    """Providers as ``opentelemetry-instrument`` makes them, whose exporters do nothing."""
    tracers = TracerProvider(sampler=ALWAYS_OFF if scenario == "unsampled" else ALWAYS_ON)
    tracers.add_span_processor(BatchSpanProcessor(_NoSpans()))
    trace.set_tracer_provider(tracers)
    metrics.set_meter_provider(MeterProvider([PeriodicExportingMetricReader(_NoMetrics())]))


def make_server() -> MCPServer:
    """A real server with one tool of each size."""
    server = MCPServer("bench", version="1.0", log_level="ERROR")

    @server.tool()
    def add(a: int, b: int) -> int:  # pyright: ignore[reportUnusedFunction]
        """Add two numbers."""
        return a + b

    @server.tool()
    def large() -> str:  # pyright: ignore[reportUnusedFunction]
        """A result of 100 kB."""
        return "x" * 50_000  # The SDK sends it twice, as text and as structured content.

    @server.tool()
    async def steps(ctx: Context) -> int:  # pyright: ignore[reportUnusedFunction, reportMissingTypeArgument, reportUnknownParameterType]
        """Report progress on the way."""
        for number in range(_EVENTS):
            await ctx.report_progress(number, _EVENTS)
        return _EVENTS

    return server


async def _pass(request: StarletteRequest, call_next: Callable[[StarletteRequest], Awaitable[Response]]) -> Response:
    return await call_next(request)


def make_app(variant: str) -> ASGIApp:
    """The app of a variant, as uvicorn would serve it."""
    if variant.startswith("otel_mcp"):
        from otel_mcp import MCPInstrumentor

        http_span = "on" if variant.endswith("HTTP span") else "off"
        redis_url = None if variant.endswith("memory") else os.environ["BENCH_REDIS_URL"]
        MCPInstrumentor().instrument(skip_dep_check=True, http_span=http_span, redis_url=redis_url)
    server = make_server()
    if variant == "opentel-mcp":
        import_module("opentel_mcp").instrument_mcp_server(server)
    app: Any = server.streamable_http_app()
    if variant == "empty BaseHTTPMiddleware":
        app = BaseHTTPMiddleware(app, _pass)
    elif variant == "opentelemetry asgi":
        from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware  # pyright: ignore[reportMissingTypeStubs]

        app = OpenTelemetryMiddleware(app)
    config = uvicorn.Config(app, log_config=None, interface="asgi3", proxy_headers=False)
    config.load()
    return cast(Any, config).loaded_app


async def _request(app: ASGIApp, scenario: str) -> Request:
    if scenario == "2025-11-25":
        return await requests.legacy(app)
    if scenario == "100 kB result":
        return requests.modern("large", b"{}")
    if scenario == "100 progress events":
        return requests.modern("steps", b"{}", progress=True)
    return requests.modern()


async def _serve(app: ASGIApp, request: Request, calls: int) -> None:
    for number in range(calls):
        exchange, _ = await call(app, request, number + 1)
        if exchange.status != 200:
            raise RuntimeError(f"HTTP {exchange.status} {b''.join(exchange.chunks)!r}")


async def main(variant: str, scenario: str) -> None:
    """Serve what is asked for on standard input, until it ends."""
    logging.disable(logging.WARNING)
    _providers(scenario)
    app = make_app(variant)
    loop = asyncio.get_running_loop()
    async with Lifespan(app):
        request = await _request(app, scenario)
        await _serve(app, request, _WARM)
        settle_memory()
        print("ready", flush=True)
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            began, started = process_time_ns(), perf_counter()
            await _serve(app, request, int(line))
            print(
                json.dumps({"began": began, "wall": perf_counter() - started, "ended": process_time_ns()}), flush=True
            )


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:3]))
