"""One variant of the server in a process of its own: ``python -m benchmarks.variant NAME SCENARIO [RATE]``.

Reads lines with numbers, serves so many calls one after another, and answers each
line with the CPU of the whole process: `processes` starts two of these and compares.
Settings and timers are the defaults, so what is done later is done as a server
does it, between the calls and after them. In the scenarios of uvicorn the calls
come through a socket, from `remote` in another process. With a rate, timers go by
calls instead of seconds: so many make a second.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from importlib import import_module
from time import perf_counter, process_time_ns
from typing import Any, Final, cast

import uvicorn
from mcp.server.mcpserver import Context, MCPServer
from opentelemetry import _logs, metrics, trace
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk._logs import LoggerProvider, ReadableLogRecord
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor, LogRecordExporter, LogRecordExportResult
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
from starlette.responses import JSONResponse, PlainTextResponse, Response

from benchmarks import requests
from benchmarks.drive import WARM, ASGIApp, Lifespan, serve, settle_memory

VARIANTS: Final = (
    "native",
    "otel_mcp",
    "otel_mcp, memory",
    "otel_mcp, audit and tenants",
    "otel_mcp + HTTP span",
    "otel_mcp, audit and tenants + HTTP span",
    "opentelemetry asgi",
    "empty BaseHTTPMiddleware",
    "opentel-mcp",
)
"""``native`` is the SDK with its own spans and nothing else."""
UVICORN: Final = "uvicorn, "
"""How scenarios begin in which a real server answers on a socket and exports by OTLP."""
NO_MCP: Final = ("GET, no MCP", "JSON POST, no MCP")
"""Scenarios of requests that are none of ours; of the second one only the body tells."""
SCENARIOS: Final = (
    "2025-11-25",
    "2026-07-28",
    "100 kB result",
    "100 progress events",
    "unsampled",
    *NO_MCP,
    f"{UVICORN}2025-11-25",
    f"{UVICORN}2026-07-28",
)
_EVENTS: Final = 100
_BEGINNING, _END, _STEP = 6.0, 2.0, 0.25
"""Seconds by the clock of calls: before any are counted, with the first sweep; after them; and until it moves on."""


class _NoSpans(SpanExporter):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.SUCCESS


class _NoLogs(LogRecordExporter):
    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        return LogRecordExportResult.SUCCESS

    def force_flush(self, timeout_millis: int = 10_000) -> bool:
        return True

    def shutdown(self) -> None:
        return None


class _NoMetrics(MetricExporter):
    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **_: Any) -> MetricExportResult:
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return True

    def shutdown(self, timeout_millis: float = 30_000, **_: Any) -> None:
        return None


def _providers(scenario: str) -> None:
    """Providers as ``opentelemetry-instrument`` makes them; only behind a real server their exporters do anything."""
    real = scenario.startswith(UVICORN)
    tracers = TracerProvider(sampler=ALWAYS_OFF if scenario == "unsampled" else ALWAYS_ON)
    tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter() if real else _NoSpans()))
    trace.set_tracer_provider(tracers)
    logs = LoggerProvider()
    logs.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter() if real else _NoLogs()))
    _logs.set_logger_provider(logs)
    reader = PeriodicExportingMetricReader(OTLPMetricExporter() if real else _NoMetrics())
    metrics.set_meter_provider(MeterProvider([reader]))


def make_server() -> MCPServer:
    """A real server with one tool of each size, and two routes that are no MCP."""
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

    @server.custom_route("/health", methods=["GET"])
    async def health(_: StarletteRequest) -> Response:  # pyright: ignore[reportUnusedFunction]
        return PlainTextResponse("ok")

    @server.custom_route("/api", methods=["POST"])
    async def api(request: StarletteRequest) -> Response:  # pyright: ignore[reportUnusedFunction]
        return JSONResponse(await request.json())

    return server


async def _pass(request: StarletteRequest, call_next: Callable[[StarletteRequest], Awaitable[Response]]) -> Response:
    return await call_next(request)


def configure(variant: str) -> uvicorn.Config:
    """The app of a variant, as uvicorn serves it."""
    if variant.startswith("otel_mcp"):
        from otel_mcp import MCPInstrumentor

        options: dict[str, Any] = {"audit": "events", "tenant": "header:user-agent"} if "audit" in variant else {}
        options["http_span"] = "on" if variant.endswith("HTTP span") else "off"
        options["redis_url"] = None if variant.endswith("memory") else os.environ["BENCH_REDIS_URL"]
        MCPInstrumentor().instrument(skip_dep_check=True, **options)
    server = make_server()
    if variant == "opentel-mcp":
        import_module("opentel_mcp").instrument_mcp_server(server)
    app: Any = server.streamable_http_app()
    if variant == "empty BaseHTTPMiddleware":
        app = BaseHTTPMiddleware(app, _pass)
    elif variant == "opentelemetry asgi":
        from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware  # pyright: ignore[reportMissingTypeStubs]

        app = OpenTelemetryMiddleware(app)
    config = uvicorn.Config(
        app, port=0, log_config=None, interface="asgi3", proxy_headers=False, timeout_keep_alive=600
    )
    config.load()
    return config


class _Clock:
    """Stands still but for the calls that are served, so that as many are drained and written together in each run."""

    def __init__(self, rate: float) -> None:
        self._now = time.monotonic()
        self._step = 1 / rate
        time.monotonic = lambda: self._now

    def around(self, app: ASGIApp) -> ASGIApp:
        """Return the app as it is served: each call takes as long as the rate says."""

        async def timed(scope: Any, receive: Any, send: Any) -> None:
            self._now += self._step
            await app(scope, receive, send)

        return timed

    async def settle(self, seconds: float) -> None:
        """Let the timers do what the calls have left."""
        for _ in range(round(seconds / _STEP)):
            self._now += _STEP
            await asyncio.get_running_loop().run_in_executor(None, time.sleep, 0.1)


async def _in_process(app: ASGIApp, scenario: str, clock: _Clock | None) -> None:
    """Serve as many calls as each line says, and answer with the CPU of this process before and after."""
    loop = asyncio.get_running_loop()
    async with Lifespan(app):
        request = await requests.of_scenario(app, scenario)
        app = app if clock is None else clock.around(app)
        await serve(app, request, WARM)
        if clock is not None:
            await clock.settle(_BEGINNING)  # What these have left is not to be counted with the others.
        settle_memory()
        print("ready", flush=True)
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            began, started = process_time_ns(), perf_counter()
            await serve(app, request, int(line))
            wall = perf_counter() - started
            if clock is not None:
                await clock.settle(_END)
            print(json.dumps({"began": began, "wall": wall}), flush=True)


async def _on_a_socket(config: uvicorn.Config) -> None:
    """Serve connections to the port that is printed; answer each line with the CPU of this process so far."""
    loop = asyncio.get_running_loop()
    server = uvicorn.Server(config)
    serving = asyncio.ensure_future(server.serve())
    while not server.started:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    print(server.servers[0].sockets[0].getsockname()[1], flush=True)
    while await loop.run_in_executor(None, sys.stdin.readline):
        print(json.dumps({"began": process_time_ns()}), flush=True)
    server.should_exit = True
    await serving


async def main(variant: str, scenario: str, rate: str | None = None) -> None:
    """Serve what is asked for on standard input, until it ends."""
    clock = _Clock(float(rate)) if rate is not None else None
    logging.disable(logging.WARNING)
    _providers(scenario)
    config = configure(variant)
    if scenario.startswith(UVICORN):
        await _on_a_socket(config)
    else:
        await _in_process(cast(Any, config).loaded_app, scenario, clock)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
