"""A runtime of otel_mcp in this process, with everything that it emits in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from otel_mcp.runtime import Runtime
from otel_mcp.settings import load


@dataclass
class Observed:
    """A runtime, and what it has emitted."""

    runtime: Runtime
    exporter: InMemorySpanExporter

    def spans(self) -> list[ReadableSpan]:
        """The finished spans, with those of calls that are still in the queue."""
        self.runtime.recorder.drain()
        return list(self.exporter.get_finished_spans())


@pytest.fixture
async def observed() -> AsyncIterator[Observed]:
    """A runtime that keeps sessions in memory."""
    exporter = InMemorySpanExporter()
    tracers = TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    meters = MeterProvider([InMemoryMetricReader()])
    runtime = Runtime(load(http_span="off"), tracers, meters)
    yield Observed(runtime, exporter)
    await runtime.shut_down()
    runtime.disable()
    tracers.shutdown()
    meters.shutdown()
