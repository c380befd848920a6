"""What a log record costs more where it gets its session: ``python -m benchmarks.logs``.

The records are made inside a real ``tools/call`` of the SDK 2.x, by the API of OpenTelemetry and
by `logging`, in adjacent blocks with and without ours. Ends non-zero when the budget is exceeded
for sure.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import sys
from collections.abc import Callable, Sequence
from contextvars import Context, copy_context
from time import thread_time_ns
from typing import Final

from mcp.server.mcpserver import MCPServer
from opentelemetry import trace
from opentelemetry.sdk._logs import LoggerProvider, ReadableLogRecord
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor, LogRecordExporter, LogRecordExportResult
from opentelemetry.sdk.trace import TracerProvider

from benchmarks import requests
from benchmarks.drive import Lifespan, call, settle_memory
from benchmarks.intervals import Estimate, median_of
from otel_mcp import MCPInstrumentor, SessionLogFilter, guard

BUDGET: Final = 2.0
"""Microseconds of CPU that a record may cost more."""
_BLOCK: Final = 200
"""Records of one block; the mean of a block is one sample."""

_LINE: Final = "a line"


class _NoExporter(LogRecordExporter):
    """Exports nowhere; counts what it was given."""

    def __init__(self) -> None:
        self.with_session = 0

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        records = [record.log_record for record in batch]
        self.with_session += sum(
            record.body == _LINE and "session.id" in (record.attributes or {}) for record in records
        )
        return LogRecordExportResult.SUCCESS

    def shutdown(self) -> None:
        pass

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return True


class _Formatted(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        self.format(record)


def _provider() -> tuple[LoggerProvider, _NoExporter]:
    provider, exporter = LoggerProvider(), _NoExporter()
    provider.add_log_record_processor(BatchLogRecordProcessor(exporter, max_queue_size=100_000))
    return provider, exporter


def _emitting(provider: LoggerProvider) -> Callable[[], None]:
    logger = provider.get_logger("benchmark")
    return lambda: logger.emit(body=_LINE, attributes={"code.function.name": "add", "code.line.number": 7})


def _logging(name: str, log_filter: logging.Filter | None) -> Callable[[], None]:
    handler, logger = _Formatted(), logging.getLogger(name)
    handler.setFormatter(logging.Formatter("%(name)s %(message)s"))
    if log_filter is not None:
        handler.addFilter(log_filter)
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.WARNING)
    return lambda: logger.warning(_LINE)


def _block(log: Callable[[], None]) -> float:
    """Microseconds of CPU for each record."""
    began = thread_time_ns()
    for _ in range(_BLOCK):
        log()
    return (thread_time_ns() - began) / 1000 / _BLOCK


def _measure(native: Callable[[], None], ours: Callable[[], None], cycles: int) -> tuple[Estimate, Estimate]:
    """Measure the native cost, and how much more it is with ours."""
    alone, more, source = list[float](), list[float](), random.Random(cycles)
    for cycle in range(cycles + 5):
        pair = [native, ours]
        source.shuffle(pair)
        spent = {log: _block(log) for log in pair}
        if cycle >= 5:
            alone.append(spent[native])
            more.append(spent[ours] - spent[native])
    return median_of(alone), median_of(more)


def _measure_in_span(native: Callable[[], None], ours: Callable[[], None], cycles: int) -> tuple[Estimate, Estimate]:
    with trace.get_tracer("app").start_as_current_span("query"):
        return _measure(native, ours, cycles)


async def _context_of_a_call(observed: LoggerProvider) -> Context:
    """Serve one tool call under instrumentation; return the context that its tool ran in."""
    MCPInstrumentor().instrument(skip_dep_check=True, logger_provider=observed)
    server, inside = MCPServer("bench", version="1.0", log_level="ERROR"), list[Context]()

    @server.tool()
    async def add(a: int, b: int) -> int:  # pyright: ignore[reportUnusedFunction]
        inside.append(copy_context())
        return a + b

    app = server.streamable_http_app()
    async with Lifespan(app):
        for number in range(2):
            exchange, _ = await call(app, requests.modern(), number)
            assert exchange.status == 200, exchange.chunks
    return inside[-1]


def main() -> int:
    """Measure, print, and tell by the exit status whether the budget was kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cycles", type=int, default=300, help="pairs of blocks for each row (default %(default)s)")
    cycles = parser.parse_args().cycles
    logging.getLogger("otel_mcp").setLevel(logging.ERROR)
    trace.set_tracer_provider(TracerProvider())
    (native, untouched), (observed, exporter) = _provider(), _provider()
    inside = asyncio.run(_context_of_a_call(observed))
    settle_memory()

    processor = (_emitting(native), _emitting(observed))
    log_filter = (_logging("native", None), _logging("filtered", SessionLogFilter()))
    exceeded = False
    print(f"{'us CPU for a record':48}{'native':>22}{'more':>22}")
    for name, (plain, ours) in (("LogRecordProcessor", processor), ("SessionLogFilter", log_filter)):
        for place, context, measure in (
            ("inside a call", inside, _measure),
            ("beneath a span of the tool's", inside, _measure_in_span),
            ("outside any call", Context(), _measure),
        ):
            alone, more = context.copy().run(measure, plain, ours, cycles)
            exceeded |= more.low > BUDGET
            print(f"{name + ', ' + place:48}{alone.text(2):>22}{more.text(2):>22}")
    for provider in (native, observed):
        provider.shutdown()
    assert exporter.with_session == 2 * (cycles + 5) * _BLOCK, exporter.with_session
    assert untouched.with_session == 0
    assert not guard.failures, guard.failures
    print(f"at most {BUDGET:g} us more: {'EXCEEDED' if exceeded else 'kept'}")
    return exceeded


if __name__ == "__main__":
    sys.exit(main())
