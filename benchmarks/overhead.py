"""What otel_mcp adds to a ``tools/call``, in CPU time: ``python -m benchmarks.overhead``.

Every variant is put around the same app in one process, has its turns in random
order within each cycle, and is compared with the native turn of the same cycle.
What is done later, in batches (metrics, session deltas, observers), is measured
by itself and added. Ends non-zero when the budget is exceeded for sure.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import random
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from statistics import median
from time import thread_time_ns
from typing import Any, Final, cast

import uvicorn
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware  # pyright: ignore[reportMissingTypeStubs]
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request as StarletteRequest
from starlette.responses import Response

from benchmarks import requests, server
from benchmarks.drive import ASGIApp, Lifespan, Request, call, settle_memory
from benchmarks.intervals import Estimate, median_of, ratio_of, sum_of
from benchmarks.switch import Mode, Switch
from otel_mcp import guard

BUDGET: Final = 1.15
"""Times the CPU of a native call, for everything but the HTTP span."""
BATCH: Final = 64
"""Calls that are drained together under load; the default of ``OTEL_PYTHON_MCP_FLUSH_CALLS``."""
_TURN: Final = 5
"""Calls of one turn that count, by their median. The call before them finds the caches as another variant left them."""
_NEVER: Final = {"flush_calls": 100_000, "flush_interval": 100_000.0, "sweep_interval": 100_000.0}
"""Settings with which nothing is drained but by the benchmark, which does it where it is measured."""
PACKAGES: Final = ("mcp", "opentelemetry-sdk", "opentelemetry-instrumentation-asgi", "starlette", "pydantic-core")


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to serve a call."""

    name: str
    app: ASGIApp
    mode: Mode = Mode.NATIVE
    http_span: bool = False

    @property
    def observed(self) -> bool:
        return self.mode is Mode.OBSERVED


@dataclass(slots=True)
class Samples:
    """Microseconds of CPU: by variant and cycle, and of what was drained, per call."""

    calls: dict[str, list[float]]
    drained: list[float] = field(default_factory=list[float])

    def extra(self, name: str, reference: str = "native") -> list[float]:
        """Differences to the reference, cycle by cycle."""
        return [ours - native for ours, native in zip(self.calls[name], self.calls[reference], strict=True)]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table."""

    name: str
    cpu: float | None
    delta: Estimate | None = None
    ratio: Estimate | None = None
    budget: float | None = None

    @property
    def exceeded(self) -> bool:
        return self.budget is not None and self.ratio is not None and self.ratio.low > self.budget


class Bench:
    """The app, instrumented once, and its variants."""

    def __init__(self) -> None:
        self.telemetry = server.Telemetry()
        self.switch = Switch(self.telemetry.tracer_provider, **_NEVER)
        self.app = server.make_app()
        # What a server of uvicorn's serves when it has been loaded by an instrumented process.
        config = uvicorn.Config(self.app, log_config=None, interface="asgi3", proxy_headers=False)
        config.load()
        self.observed_app: ASGIApp = cast(Any, config).loaded_app
        self.waiting = 0
        self.observed = 0
        self._number = 0

    def variants(self) -> list[Variant]:
        """What the budget is about. Nothing else shares these cycles: other middleware would fill the caches."""
        return [
            Variant("native", self.app),
            Variant("native once more", self.app),
            Variant("otel_mcp", self.observed_app, Mode.OBSERVED),
        ]

    def compared(self) -> list[Variant]:
        """For comparison, in cycles of their own."""
        return [
            Variant("native", self.app),
            Variant("seams without a runtime", self.observed_app, Mode.INERT),
            Variant("otel_mcp + HTTP span", self.observed_app, Mode.OBSERVED, http_span=True),
            Variant("empty BaseHTTPMiddleware", BaseHTTPMiddleware(self.app, _pass)),
            Variant("opentelemetry asgi", OpenTelemetryMiddleware(self._as_function)),  # pyright: ignore[reportArgumentType]
        ]

    async def _as_function(self, scope: Any, receive: Any, send: Any) -> None:
        # asgiref takes a switched `__call__` for an app of ASGI 2.
        await self.app(scope, receive, send)

    async def once(self, variant: Variant, request: Request) -> float:
        """Microseconds of CPU of one call."""
        self._number += 1
        self.switch.select(variant.mode, http_span=variant.http_span)
        exchange, cpu = await call(variant.app, request, self._number)
        if exchange.status != 200:
            raise RuntimeError(f"{variant.name}: HTTP {exchange.status} {b''.join(exchange.chunks)!r}")
        return cpu

    async def measure(self, variants: Sequence[Variant], request: Request, cycles: int) -> Samples:
        """Give each variant a turn a cycle, in random order; drain whenever a batch is full."""
        order, source = list(variants), random.Random(cycles)
        samples = Samples({variant.name: [] for variant in variants})
        for _ in range(cycles):
            source.shuffle(order)
            for variant in order:
                turn = [await self.once(variant, request) for _ in range(1 + _TURN)]
                samples.calls[variant.name].append(median(turn[1:]))
                if variant.observed and request.path == "/mcp":
                    self.waiting += len(turn)
                    self.observed += len(turn)
                    if self.waiting >= BATCH:
                        samples.drained.append(await self.drain())
        return samples

    async def measure_drain(self, request: Request, calls: int) -> list[float]:
        """What is done later where calls are so rare that each is drained by itself."""
        variant = next(variant for variant in self.variants() if variant.observed)
        drained: list[float] = []
        for _ in range(calls):
            await self.once(variant, request)
            self.waiting += 1
            self.observed += 1
            drained.append(await self.drain())
        return drained

    async def drain(self) -> float:
        """Do what a full batch or the timer would do; microseconds of CPU per call. The flush is not part of it."""
        self.switch.select(Mode.OBSERVED)
        runtime, drained = self.switch.runtime, self.waiting
        self.waiting = 0
        began = thread_time_ns()
        runtime.recorder.drain()
        runtime.observers.ensure_running()
        observers = [task for task in asyncio.all_tasks() if task.get_name().startswith("otel_mcp observer")]
        if observers:
            await asyncio.wait(observers)
        cpu = (thread_time_ns() - began) / 1000
        await runtime.sessions.flush()
        return cpu / drained


async def _pass(request: StarletteRequest, call_next: Callable[[StarletteRequest], Awaitable[Response]]) -> Response:
    return await call_next(request)


def rows(samples: Samples) -> list[Row]:
    """The table of one kind of ``tools/call``."""
    native = samples.calls["native"]
    table = [Row("native", median(native))]
    for name, calls in samples.calls.items():
        if name == "native":
            continue
        extra = samples.extra(name)
        if name.startswith("otel_mcp"):
            later = samples.drained
            budget = BUDGET if name == "otel_mcp" else None
            if budget:
                table.append(Row("  on the path", None, median_of(extra)))
                table.append(Row(f"  drained, by {BATCH}", None, median_of(later)))
            total = sum_of(extra, later)
            table.append(Row(name, median(calls) + median(later), total, ratio_of(native, extra, later), budget))
        else:
            table.append(Row(name, median(calls), median_of(extra), ratio_of(native, extra)))
    return table


def plain_rows(samples: Samples) -> list[Row]:
    """The table of traffic that is no MCP."""
    native = samples.calls["native"]
    others = [name for name in samples.calls if name != "native"]
    return [
        Row("native", median(native)),
        *(
            Row(name, median(samples.calls[name]), median_of(extra), ratio_of(native, extra))
            for name in others
            for extra in [samples.extra(name)]
        ),
    ]


def show(title: str, table: Sequence[Row], digits: int = 0) -> None:
    """Print one table."""
    print(f"\n{title}\n{'':30}{'us CPU':>10}{'more':>9}{'95 %':>16}{'times':>9}{'95 %':>17}")
    for row in table:
        line = f"{row.name:30}{'' if row.cpu is None else f'{row.cpu:.{digits}f}':>10}"
        if row.delta is not None:
            line += f"{row.delta.value:>+9.{digits}f}"
            line += f"{f'[{row.delta.low:.{digits}f}, {row.delta.high:.{digits}f}]':>16}"
        if row.ratio is not None:
            line += f"{row.ratio.value:>9.3f}{f'[{row.ratio.low:.3f}, {row.ratio.high:.3f}]':>17}"
        if row.budget is not None:
            line += f"   <= {row.budget}: {'EXCEEDED' if row.exceeded else 'kept'}"
        print(line)


async def run(cycles: int) -> dict[str, list[Row]]:
    """Measure everything, printing as it goes."""
    bench = Bench()
    tables: dict[str, list[Row]] = {}
    async with Lifespan(bench.app):
        bench.switch.select(Mode.OBSERVED)
        calls = {
            "tools/call, 2025-11-25, one stateful session": await requests.legacy(bench.observed_app),
            "tools/call, 2026-07-28, one inferred session": requests.modern(),
        }
        others = {"GET, no MCP": requests.health(), "JSON POST, no MCP": requests.api()}
        for request in (*calls.values(), *others.values()):
            await bench.measure([*bench.compared(), bench.variants()[-1]], request, 50)
        settle_memory()
        for title, request in calls.items():
            samples = await bench.measure(bench.variants(), request, cycles)
            tables[title] = rows(samples)
            samples = await bench.measure(bench.compared(), request, cycles // 2)
            tables[title] += rows(samples)[1:]
            show(title, tables[title])
            alone = median_of(await bench.measure_drain(request, cycles))
            tables[f"{title}: drained one by one"] = [Row("drained, by 1", None, alone)]
            print(f"{'  drained, by 1':40}{alone.value:>+9.0f}{f'[{alone.low:.0f}, {alone.high:.0f}]':>16}")
        for title, request in others.items():
            tables[title] = plain_rows(await bench.measure(bench.variants(), request, cycles))
            show(title, tables[title], 1)
    _verify(bench)
    return tables


def _verify(bench: Bench) -> None:
    """What was measured must have been observed, and nothing else."""
    bench.telemetry.tracer_provider.force_flush()
    counted = bench.telemetry.count("mcp.server.operation.duration", mcp_method_name="tools/call")
    assert counted == bench.observed - bench.waiting, (counted, bench.observed, bench.waiting)
    assert bench.telemetry.count("otel_mcp.tool.result.size") == counted
    assert bench.telemetry.exporter.with_session >= counted, (bench.telemetry.exporter.with_session, counted)
    assert not guard.failures, guard.failures


def report(tables: dict[str, list[Row]], cycles: int) -> dict[str, Any]:
    """The same as JSON."""
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "cycles": cycles,
        "budget": BUDGET,
        "tables": {title: [asdict(row) for row in table] for title, table in tables.items()},
    }


def main() -> int:
    """Measure, print, and tell by the exit status whether the budget was kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a fifth of the cycles: wider intervals")
    parser.add_argument("--cycles", type=int, default=500, help="turns of each variant (default %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the numbers there")
    arguments = parser.parse_args()
    cycles = arguments.cycles // 5 if arguments.quick else arguments.cycles
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    print(f"Python {platform.python_version()}, {versions}; {cycles} cycles")
    tables = asyncio.run(run(cycles))
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(report(tables, cycles), file, indent=1)
    exceeded = [title for title, table in tables.items() if any(row.exceeded for row in table)]
    for title in exceeded:
        print(f"\nover the budget: {title}", file=sys.stderr)
    return 1 if exceeded else 0


if __name__ == "__main__":
    sys.exit(main())
