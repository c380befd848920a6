"""From the first request of a process to its end, on whatever loops it runs."""

from __future__ import annotations

import asyncio
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExporter, PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

import otel_mcp
from otel_mcp import MCPInstrumentor, MCPMiddleware, SessionState, current
from otel_mcp.api import sessions
from otel_mcp.runtime import Runtime
from otel_mcp.settings import load
from otel_mcp.types import Message, Receive, Send
from tests.support.answers import Server, result
from tests.support.asgi import post, read, respond
from tests.support.messages import MODERN_HEADERS, call, initialize, legacy_headers, modern
from tests.support.providers import Telemetry
from tests.support.waiting import wait_until
from tests.unit.conftest import MakeRuntime


def test_a_loop_ends_although_something_was_submitted_in_its_last_turn(runtime: Runtime, telemetry: Telemetry) -> None:
    async def serve() -> set[asyncio.Task[Any]]:
        await post(MCPMiddleware(Server(), runtime), call(), legacy_headers("own"))
        telemetry.metrics()  # Submits what has finished, and wakes the background task.
        tasks = asyncio.all_tasks() - {asyncio.current_task()}  # type: ignore[arg-type]
        for task in tasks:
            task.cancel()
        _, unfinished = await asyncio.wait(tasks, timeout=60)
        for task in unfinished:
            task.cancel()  # So that a failing test does not hang for ever.
        return unfinished

    assert asyncio.run(serve()) == set()


def test_what_was_served_is_written_when_the_loop_ends(runtime: Runtime) -> None:
    async def serve() -> None:
        await post(MCPMiddleware(Server(session_id="own"), runtime), initialize())
        runtime.recorder.drain()

    async def look() -> Any:
        return await runtime.sessions.load("own")

    asyncio.run(serve())

    assert asyncio.run(look()).request_count == 1


def test_a_runtime_serves_one_loop_after_another(runtime: Runtime, telemetry: Telemetry) -> None:
    app = MCPMiddleware(Server(session_id="own"), runtime)

    for number in range(5):
        reply = asyncio.run(post(app, call(request_id=number), legacy_headers("own")))
        assert reply.session_id == "own"

    assert len(telemetry.spans()) == 5


@pytest.mark.anyio
async def test_the_runtime_is_made_at_the_first_request_that_may_be_mcp(telemetry: Telemetry) -> None:
    current.configure(
        tracer_provider=telemetry.tracer_provider, meter_provider=telemetry.meter_provider, service_name="configured"
    )
    app = MCPMiddleware(Server())
    try:
        assert current.runtime is None
        await post(app, b"a=b", [("content-type", "application/x-www-form-urlencoded")])
        reply = await post(app, modern(), MODERN_HEADERS)
        made = current.runtime

        assert made is not None
        assert made is current.build()
        assert made.settings.service_name == "configured"
        assert reply.session_id is not None
        assert [span.name for span in telemetry.spans()] == ["POST /mcp", "tools/call add"]
    finally:
        current.discard()


@pytest.mark.anyio
async def test_arguments_count_where_the_runtime_was_needed_before_them(telemetry: Telemetry) -> None:
    providers = {"tracer_provider": telemetry.tracer_provider, "meter_provider": telemetry.meter_provider}
    current.configure(**providers)
    try:
        await SessionState.load("unknown")
        await post(MCPMiddleware(Server()), modern(), MODERN_HEADERS)
        first = current.runtime
        current.configure(**providers)
        assert current.runtime is first is not None
        assert [span.name for span in telemetry.span_exporter.get_finished_spans()] == ["POST /mcp"]

        MCPInstrumentor().instrument(service_name="given", **providers)

        assert [span.name for span in telemetry.span_exporter.get_finished_spans()] == ["POST /mcp", "tools/call add"]
        reply = await post(MCPMiddleware(Server()), modern(), MODERN_HEADERS)
        assert current.runtime is not first
        made = current.build()
        assert made is not None
        assert made.settings.service_name == "given"
        made.recorder.drain()
        assert await SessionState.load(str(reply.session_id)) is not None
    finally:
        if MCPInstrumentor().is_instrumented_by_opentelemetry:
            MCPInstrumentor().uninstrument()
        current.discard()
    assert current.build() is None


@pytest.mark.anyio
@pytest.mark.parametrize("value", ["true", "TRUE", " True "])
async def test_where_opentelemetry_is_switched_off_nothing_is_made(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", value)

    reply = await post(MCPMiddleware(Server()), initialize())

    assert reply.status == 200
    assert "mcp-session-id" not in reply.headers
    assert current.runtime is None
    with pytest.raises(RuntimeError, match="OTEL_SDK_DISABLED"):
        sessions()


@pytest.mark.anyio
async def test_after_uninstrument_what_is_still_wrapped_passes_through(telemetry: Telemetry) -> None:
    current.configure(tracer_provider=telemetry.tracer_provider, meter_provider=telemetry.meter_provider)
    app = MCPMiddleware(Server())
    await post(app, modern(), MODERN_HEADERS)

    current.discard()
    reply = await post(app, modern(), MODERN_HEADERS)

    assert reply.session_id is None
    assert [span.name for span in telemetry.spans()] == ["POST /mcp", "tools/call add"]


@pytest.mark.anyio
async def test_a_tool_author_asks_for_the_session_of_the_request(
    make_runtime: MakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = make_runtime()
    monkeypatch.setattr(current, "runtime", runtime)
    seen: list[str | None] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await read(receive)
        state = otel_mcp.current_session()
        seen.append(state.session_id if state is not None else None)
        await respond(send, result())

    assert otel_mcp.current_session() is None
    for _ in range(2):
        reply = await post(MCPMiddleware(app), modern(), MODERN_HEADERS)

    assert seen[1] == reply.session_id is not None
    assert otel_mcp.current_session() is None
    assert sessions() is runtime.sessions


class Exporter(MetricExporter):
    """Takes anything, unless it hangs."""

    def __init__(self, over: Event | None) -> None:
        super().__init__()
        self._over = over
        self.has_sent = False

    def export(self, metrics_data: object, timeout_millis: float = 0, **_: object) -> Any:
        if self._over is not None:
            self._over.wait(60)
        self.has_sent = True
        return SimpleNamespace(name="SUCCESS")

    def force_flush(self, timeout_millis: float = 0) -> bool:
        return True

    def shutdown(self, timeout_millis: float = 0, **_: object) -> None: ...


@pytest.mark.anyio
@pytest.mark.parametrize("hanging", ["traces", "metrics", "logs"])
async def test_an_exporter_that_hangs_keeps_no_other_from_sending(
    hanging: str, monkeypatch: pytest.MonkeyPatch, failures: Any
) -> None:
    monkeypatch.setattr("otel_mcp.runtime._FLUSH_SECONDS", 0.3)
    over = Event()
    exporters: dict[str, Any] = {of: Exporter(over if of == hanging else None) for of in ("traces", "metrics", "logs")}
    traces, logs = TracerProvider(), LoggerProvider()
    traces.add_span_processor(BatchSpanProcessor(exporters["traces"], schedule_delay_millis=1e6))
    logs.add_log_record_processor(BatchLogRecordProcessor(exporters["logs"], schedule_delay_millis=1e6))
    meters = MeterProvider([PeriodicExportingMetricReader(exporters["metrics"], 1e9)])
    runtime = Runtime(load(audit="events"), traces, meters, logs)
    try:
        await post(MCPMiddleware(Server(), runtime), modern(), MODERN_HEADERS)
        await runtime.shut_down()
        # Another may be sending still: a busy machine is no exporter that waits for the one that hangs.
        others = [exporter for of, exporter in exporters.items() if of != hanging]
        await asyncio.to_thread(wait_until, lambda: all(exporter.has_sent for exporter in others))
        sent = {of for of, exporter in exporters.items() if exporter.has_sent}
    finally:
        over.set()
        runtime.disable()
        for provider in (traces, meters, logs):
            provider.shutdown()

    assert sent == {"traces", "metrics", "logs"} - {hanging}
    assert failures == {}


def test_the_package_names_what_it_offers() -> None:
    assert sorted(otel_mcp.__all__) == [
        "MCPInstrumentor",
        "MCPMiddleware",
        "Observer",
        "SessionLogFilter",
        "SessionState",
        "ToolCall",
        "__version__",
        "current_session",
    ]
    assert all(hasattr(otel_mcp, name) for name in otel_mcp.__all__)
    assert otel_mcp.MCPInstrumentor is MCPInstrumentor
    with pytest.raises(AttributeError, match="nothing"):
        _ = otel_mcp.nothing
