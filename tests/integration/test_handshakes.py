"""What the SDK refuses to shake hands with begins no session; how it says so is its own affair."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
from mcp.server.mcpserver import MCPServer
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.applications import Starlette

from otel_mcp import MCPInstrumentor, current

pytestmark = pytest.mark.anyio
ANN = {"authorization": "Bearer e30." + urlsafe_b64encode(b'{"sub": "ann"}').decode() + ".sig"}
HEADERS = {"accept": "application/json, text/event-stream", "host": "127.0.0.1:8000"}


@dataclass
class Emitted:
    spans: InMemorySpanExporter
    logs: InMemoryLogRecordExporter

    def sources(self) -> list[Any]:
        """Of the sessions of the handshakes, by their spans."""
        spans = [span for span in self.spans.get_finished_spans() if span.name == "initialize"]
        return [(span.attributes or {}).get("otel_mcp.session.source") for span in spans]

    def begun(self) -> int:
        return sum(log.log_record.event_name == "session.start" for log in self.logs.get_finished_logs())


@pytest.fixture
def emitted() -> Iterator[Emitted]:
    made, tracers, loggers = Emitted(InMemorySpanExporter(), InMemoryLogRecordExporter()), TracerProvider(), None
    tracers.add_span_processor(SimpleSpanProcessor(made.spans))
    loggers = LoggerProvider()
    loggers.add_log_record_processor(SimpleLogRecordProcessor(made.logs))
    MCPInstrumentor().instrument(tracer_provider=tracers, meter_provider=MeterProvider(), logger_provider=loggers)
    yield made
    MCPInstrumentor().uninstrument()


def app(*, stateless: bool, json: bool) -> Starlette:
    return MCPServer("shop", log_level="ERROR").streamable_http_app(stateless_http=stateless, json_response=json)


def handshake(**client: Any) -> dict[str, Any]:
    params = {"protocolVersion": "2025-06-18", "capabilities": {}, **client}
    return {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}


@pytest.mark.parametrize("json", [True, False], ids=["json", "stream"])
@pytest.mark.parametrize("stateless", [True, False], ids=["stateless", "stateful"])
async def test_only_a_handshake_that_the_sdk_takes_begins_a_session(
    emitted: Emitted, *, stateless: bool, json: bool
) -> None:
    served = app(stateless=stateless, json=json)

    async with (
        served.router.lifespan_context(served),
        httpx2.AsyncClient(transport=httpx2.ASGITransport(served), base_url="http://host", headers=HEADERS) as client,
    ):
        refused = await client.post("/mcp", json=handshake())
        taken = await client.post("/mcp", json=handshake(clientInfo={"name": "c", "version": "1"}))
        runtime = current.runtime
        assert runtime is not None
        await runtime.shut_down()

    assert ("error" in refused.text, "error" in taken.text) == (True, False)
    assert "x-session-id" not in refused.headers
    assert ("mcp-session-id" in refused.headers) is not stateless
    assert taken.headers["x-session-id"] == taken.headers["mcp-session-id"]
    assert emitted.sources() == ["none", "header"]
    assert emitted.begun() == 1


@pytest.mark.parametrize("who", [{}, ANN], ids=["nobody", "a user"])
async def test_who_has_shaken_hands_with_the_sdk_says_goodbye_to_it(emitted: Emitted, who: dict[str, str]) -> None:
    served = app(stateless=False, json=True)

    async with (
        served.router.lifespan_context(served),
        httpx2.AsyncClient(transport=httpx2.ASGITransport(served), base_url="http://host", headers=HEADERS) as client,
    ):
        client.headers.update(who)
        opened = await client.post("/mcp", json=handshake(clientInfo={"name": "c", "version": "1"}))
        left = await client.delete("/mcp", headers={"mcp-session-id": opened.headers["mcp-session-id"]})
        runtime = current.runtime
        assert runtime is not None
        await runtime.shut_down()

    assert left.status_code == 200
    assert [log.log_record.event_name for log in emitted.logs.get_finished_logs()] == ["session.start", "session.end"]
