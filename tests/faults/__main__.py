"""The same client on a server with and without us, while the store fails: ``python -m tests.faults``.

For each fault five runs. In each, every request goes to both servers, one after the other in random order, before,
during and after the fault. Then the answers, the times, the log and the documents in the store are held against what is
promised in ``docs/reliability.md``. ``--quick`` makes one short run of some and does not judge times.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Final

from examples.demo.otlp_receiver import OtlpReceiver
from tests.faults.client import Client, Measured
from tests.faults.sides import RECOVERY, WARNINGS, Side
from tests.faults.stores import FAULTS, Fault, Store

LATER: Final = 0.1
"""Seconds by which the slowest answer may be later."""
RATIO: Final = 1.10
"""Times the p99 of the server without us, as medians over the runs."""
_WARM_UP: Final = 1.5
_FOR_EVER: Final = 600.0
_QUIET_FOR: Final = 2.5
"""Seconds after which nothing more will be written: two flush intervals and some."""


@dataclass
class Run:
    """One run of one fault."""

    p99: dict[str, float]
    """Seconds, by side."""
    slowest: dict[str, float]
    requests: int
    different: list[str]
    warnings: int
    recoveries: int
    failures: list[str]
    """Lines of the log about failures of ours."""
    sent: int
    counted: int
    """Calls by which the documents have grown; where the store forgot, what is in them."""
    at_least: int
    """Of them, sent when the fault had begun: they must be there in any case."""
    dropped: int
    written_after: float
    """Seconds from the end of the fault."""


@dataclass
class Row:
    """All runs of one fault."""

    fault: Fault
    runs: list[Run] = field(default_factory=list[Run])

    @property
    def p99(self) -> dict[str, float]:
        return {side: median(run.p99[side] for run in self.runs) for side in ("with", "without")}

    @property
    def ratio(self) -> float:
        return self.p99["with"] / self.p99["without"]

    @property
    def later(self) -> float:
        """Seconds by which the slowest answer of all runs is later than the slowest without us."""
        return max(run.slowest["with"] for run in self.runs) - max(run.slowest["without"] for run in self.runs)

    def wrong(self, *, judge_times: bool) -> list[str]:
        """What is not as promised."""
        found: list[str] = []
        for run in self.runs:
            found += [f"answered differently: {line}" for line in run.different[:3]]
            found += [f"our failure: {line}" for line in run.failures[:3]]
            expected = self.fault.outages
            if (run.warnings, run.recoveries) != (expected, expected) and (
                expected is not None or run.warnings != run.recoveries or run.warnings > 1
            ):
                found.append(f"{run.warnings} warnings and {run.recoveries} recoveries")
            if self.fault.loses:
                if not run.at_least <= run.counted:
                    found.append(f"{run.counted} calls in the store, {run.at_least} were sent since")
            elif run.counted + run.dropped != run.sent:
                found.append(f"{run.counted} calls in the store, {run.dropped} dropped, {run.sent} sent")
            if bool(run.dropped) != self.fault.drops:
                found.append(f"{run.dropped} calls dropped")
        if judge_times and self.ratio > RATIO:
            found.append(f"p99 is {self.ratio:.2f} times that without us")
        if judge_times and self.later > LATER:
            found.append(f"the slowest answer is {self.later * 1000:.0f} ms later")
        return found


@dataclass
class Stage:
    """A store and the two servers on it."""

    fault: Fault
    store: Store
    observed: Side
    plain: Side
    otlp: OtlpReceiver
    client: Client = field(init=False)
    warm_up: int = 0
    """Calls that were sent before the first run."""

    def __post_init__(self) -> None:
        self.client = Client(self.observed.port, self.plain.port)
        self.warm_up = len(asyncio.run(self.client.run(_WARM_UP)).started)
        asyncio.run(self.client.settle())

    def total(self) -> int:
        """Tool calls that the documents tell."""
        return sum(
            json.loads(text).get("tool_call_count", 0) for text in self.store.documents().values() if _ours(text)
        )

    def dropped(self) -> int:
        """Tool calls that were counted as dropped."""
        if self.fault.drops:
            self.observed.export()
        return round(self.otlp.telemetry.total("otel_mcp.store.dropped"))


def _ours(text: bytes) -> bool:
    return text.startswith(b'{"session_id"')


@contextmanager
def _stage(fault: Fault) -> Generator[Stage]:
    store = fault.store()
    try:
        with tempfile.TemporaryDirectory() as folder, OtlpReceiver(capacity=1000) as otlp:
            observed, plain = (Side(Path(folder), otlp.endpoint, store.url, observed=on) for on in (True, False))
            try:
                for side in (observed, plain):
                    side.wait()
                yield Stage(fault, store, observed, plain, otlp)
            finally:
                for side in (observed, plain):
                    side.stop()
    finally:
        store.close()


async def _driven(stage: Stage, seconds: tuple[float, float, float]) -> tuple[Measured, float, float]:
    """The client's view, and when the fault had begun and ended."""
    before, during, after = seconds
    running = asyncio.create_task(stage.client.run(_FOR_EVER))
    await asyncio.sleep(before)
    await asyncio.to_thread(stage.store.begin)
    begun = time.monotonic()
    await asyncio.sleep(during)
    await asyncio.to_thread(stage.store.end)
    ended = time.monotonic()
    stage.client.until = ended + after
    return await running, begun, ended


def run(stage: Stage, fault: Fault, seconds: tuple[float, float, float]) -> Run:
    """One run, judged later."""
    if fault.absent:
        base = 0  # The calls of the warm-up wait, too.
    else:
        if stage.warm_up:
            time.sleep(_QUIET_FOR)  # Until the warm-up is written.
        stage.observed.new_lines()
        base = stage.total()
    dropped = stage.dropped()
    gc.collect()
    gc.disable()
    measured, begun, ended = asyncio.run(_driven(stage, seconds))
    gc.enable()
    sent = len(measured.started) + (stage.warm_up if fault.absent else 0)
    stage.warm_up = 0
    base = 0 if fault.absent or fault.loses else base
    at_least = sum(at > begun for at in measured.started)
    until = ended + fault.recovers_within
    lines: list[str] = []
    counted = written = 0.0
    quiet_since = time.monotonic()
    while True:
        lines += stage.observed.new_lines()
        total = stage.total() - base
        if total != counted:
            counted, quiet_since, written = total, time.monotonic(), time.monotonic() - ended
        warned = sum(any(text in line for text in WARNINGS) for line in lines)
        back = sum(RECOVERY in line for line in lines)
        now = time.monotonic()
        complete = fault.loses or counted + stage.dropped() - dropped == sent
        if now > until or (now - quiet_since > _QUIET_FOR and back >= warned and counted and complete):
            break
        time.sleep(0.1)
    return Run(
        {side: _p99(values) for side, values in measured.seconds.items()},
        {side: max(values) for side, values in measured.seconds.items()},
        len(measured.seconds["with"]),
        measured.different,
        warned,
        back,
        [line for line in lines if ("otel_mcp: " in line and " failed with " in line) or "Traceback" in line],
        sent,
        int(counted),
        at_least,
        stage.dropped() - dropped,
        written,
    )


def _p99(values: list[float]) -> float:
    return sorted(values)[int(0.99 * (len(values) - 1))]


def measure(fault: Fault, count: int, seconds: tuple[float, float, float]) -> Row:
    """`count` runs of one fault."""
    row = Row(fault)
    while len(row.runs) < count:
        with _stage(fault) as stage:
            row.runs += [run(stage, fault, seconds) for _ in range(1 if fault.fresh else count)]
    return row


def _line(row: Row, undisturbed: Row | None) -> str:
    """`undisturbed` is the row without a fault: what is dearer than there is what the fault costs."""
    runs, p99 = row.runs, row.p99
    relative = "" if undisturbed is None else f"{row.ratio / undisturbed.ratio:.2f}"
    return (
        f"| {row.fault.name} | {sum(run.requests for run in runs)} | {p99['without'] * 1000:.1f} | "
        f"{p99['with'] * 1000:.1f} | {row.ratio:.2f} | {relative} | {row.later * 1000:+.0f} | "
        f"{'/'.join(str(run.warnings) for run in runs)} | {max(run.written_after for run in runs):.1f} | "
        f"{sum(run.sent for run in runs)} | {sum(run.counted for run in runs)} | {sum(run.dropped for run in runs)} |"
    )


_HEAD: Final = (
    "| fault | requests | p99 without, ms | p99 with, ms | ratio | to that of none | slowest, ms | warnings | "
    "written after, s | calls | in the store | dropped |\n|---|---|---|---|---|---|---|---|---|---|---|---|"
)


def main() -> int:
    """Measure, print the table, and tell what is not as promised."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short run of some faults, times are not judged")
    parser.add_argument("--runs", type=int, default=5, help="paired runs of each fault (default %(default)s)")
    parser.add_argument("--only", default="", help="faults whose name contains this")
    arguments = parser.parse_args()
    count, seconds = (1, (0.8, 1.8, 1.0)) if arguments.quick else (arguments.runs, (3.0, 3.0, 3.0))
    wrong: list[str] = []
    undisturbed: Row | None = None
    print(_HEAD, flush=True)
    for fault in FAULTS:
        if arguments.only not in fault.name or (arguments.quick and not fault.quick):
            continue
        row = measure(fault, count, seconds)
        if fault.store is Store:
            undisturbed = row
        print(_line(row, undisturbed), flush=True)
        for line in row.wrong(judge_times=not arguments.quick):
            wrong.append(f"{fault.name}: {line}")
            print(f"  {line}", file=sys.stderr, flush=True)
    print("\n" + ("\n".join(wrong) if wrong else "as promised"))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
