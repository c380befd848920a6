"""What is replaced in other people's modules is put back, every piece of it, as often as one likes."""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from types import ModuleType

import httpx2
import pytest
from mcp.server.mcpserver import MCPServer
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from otel_mcp import MCPInstrumentor
from otel_mcp.integrations.patching import TARGETS

LIBRARIES = ("starlette", "uvicorn", "mcp", "fastmcp")
Attributes = dict[tuple[str, str, str], object]

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module", autouse=True)
def _libraries() -> None:
    for module in ("starlette.applications", "uvicorn.config", "fastmcp.server.telemetry", "fastmcp"):
        importlib.import_module(module)
    for module, _ in TARGETS:
        with suppress(ModuleNotFoundError):  # some are of older versions
            importlib.import_module(module)


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    """Spans of an instrumented process; nothing is instrumented afterwards."""
    exporter = InMemorySpanExporter()
    yield exporter
    if MCPInstrumentor().is_instrumented_by_opentelemetry:
        MCPInstrumentor().uninstrument()


def _attributes() -> Attributes:
    """Every attribute of every module and class of the libraries."""
    found: Attributes = {}
    modules: dict[str, ModuleType | None] = {**sys.modules}  # `None` blocks an import.
    for name, module in modules.items():
        if name.partition(".")[0] not in LIBRARIES or module is None:
            continue
        for attribute, value in list(vars(module).items()):
            found[name, "", attribute] = value
            if inspect.isclass(value) and value.__module__ == name:
                found.update({(name, value.__qualname__, inner): held for inner, held in vars(value).items()})
    return found


def _changed(before: Attributes, after: Attributes) -> set[str]:
    return {".".join(key) for key in before.keys() | after.keys() if before.get(key) is not after.get(key)}


def _instrument(exporter: InMemorySpanExporter) -> None:
    tracers = TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    MCPInstrumentor().instrument(tracer_provider=tracers, meter_provider=MeterProvider())


async def _call() -> httpx2.Response:
    """A sessionless tool call through a server of the SDK."""
    server = MCPServer("shop", log_level="WARNING")

    @server.tool()
    async def add(a: int, b: int) -> int:
        return a + b

    app = server.streamable_http_app(stateless_http=True, json_response=True)
    message = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "tools/call",
        "params": {
            "name": "add",
            "arguments": {"a": 1, "b": 2},
            "_meta": {
                "io.modelcontextprotocol/protocolVersion": "2026-07-28",
                "io.modelcontextprotocol/clientInfo": {"name": "direct", "version": "1"},
                "io.modelcontextprotocol/clientCapabilities": {},
            },
        },
    }
    headers = {
        "content-type": "application/json",
        "accept": "application/json, text/event-stream",
        "mcp-protocol-version": "2026-07-28",
        "mcp-method": "tools/call",
        "mcp-name": "add",
    }
    transport = httpx2.ASGITransport(app=app)
    client = httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000")
    async with server.session_manager.run(), client:
        return await client.post("/mcp", content=json.dumps(message), headers=headers)


def test_uninstrument_puts_back_the_very_objects_that_were_there(exporter: InMemorySpanExporter) -> None:
    before = _attributes()

    for _ in range(2):
        _instrument(exporter)
        replaced = _changed(before, _attributes())
        assert {name.partition(".")[0] for name in replaced} == set(LIBRARIES)

        MCPInstrumentor().uninstrument()
        assert _changed(before, _attributes()) == set()


def test_nothing_is_replaced_twice(exporter: InMemorySpanExporter) -> None:
    _instrument(exporter)
    once = _attributes()

    MCPInstrumentor().instrument()

    assert _changed(once, _attributes()) == set()


async def test_server_is_observed_again_after_it_was_not(exporter: InMemorySpanExporter) -> None:
    async def seen() -> list[str]:
        exporter.clear()
        answer = await _call()
        assert answer.json()["result"]["structuredContent"] == {"result": 3}
        names = [span.name for span in exporter.get_finished_spans() if "session.id" in (span.attributes or {})]
        assert ("x-session-id" in answer.headers) is bool(names)
        return names

    assert await seen() == []
    for _ in range(2):
        _instrument(exporter)
        assert await seen() == ["tools/call add"]

        MCPInstrumentor().uninstrument()
        assert await seen() == []
