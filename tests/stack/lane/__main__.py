"""Run the lane: `python -m tests.stack.lane`."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from pathlib import Path
from typing import Final

from . import clicks, entry, logs, metrics, pipelines, pods, restarts, traces, traffic
from .ask import Prometheus
from .builds import NotBuilt
from .seen import Proof, Seen
from .stack import Stack

PROOFS: Final = (
    metrics.PROOFS
    | traces.PROOFS
    | clicks.PROOFS
    | logs.PROOFS
    | entry.PROOFS
    | pipelines.PROOFS
    | pods.PROOFS
    | restarts.PROOFS
)


def main() -> int:
    """Run it, and say what was proven and what was not."""
    options = argparse.ArgumentParser(prog="python -m tests.stack.lane", description=__doc__)
    options.add_argument("--keep", action="store_true", help="stay up after the checks, until Ctrl-C")
    options.add_argument("--seconds", type=float, default=45, help="how long to send traffic")
    options.add_argument("--pictures", type=Path, help="draw the dashboards into this folder; needs matplotlib")
    given = options.parse_args()
    # Ending the lane ends what it has started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began = time.monotonic()
    try:
        passed, failed = _run(given)
    except NotBuilt as missing:
        print(f"\n*** NOT PROVEN, nothing of it: {missing}\n", file=sys.stderr)
        return 1
    print(f"\nlane: {passed} passed, {failed} failed in {time.monotonic() - began:.0f} s")
    return 1 if failed else 0


def _run(given: argparse.Namespace) -> tuple[int, int]:
    with Stack() as stack:
        print(f"up: {', '.join(f'{name} {port}' for name, port in stack.ports.items())}", flush=True)
        began = time.time()
        try:
            restarts.restart_under(stack)
            tally = asyncio.run(traffic.drive(stack.mcp_url, stack.keeping_url, given.seconds))
        except BaseException:
            print(stack.tails(), file=sys.stderr)
            raise
        print(f"{tally.calls} tool calls, {tally.failures} of them failed, {len(tally.clients)} clients", flush=True)
        if not tally.calls:
            return 0, 1
        ended = time.time()
        time.sleep(stack.settles_within)
        seen = Seen(stack, Prometheus(stack.url("prometheus")), stack.traces, began)
        if given.pictures:
            _draw(seen, given.pictures, ended)
        results = [_report(seen, name, proof) for name, proof in PROOFS.items()]
        for name, standin in stack.missing.items():
            print(f"*** NOT PROVEN with {name}, only with {standin}", flush=True)
        if given.keep:
            _wait_for_interrupt(stack)
    return sum(results), len(results) - sum(results)


def _draw(seen: Seen, folder: Path, ended: float) -> None:
    from .pictures import Pictures  # matplotlib is no part of the proof

    folder.mkdir(parents=True, exist_ok=True)
    for name in ("overview", "sessions", "tools", "resources", "pipeline"):
        Pictures(seen.prometheus, seen.began, ended).draw(name, folder / f"{name}.png")
        print(f"drawn {folder / name}.png", flush=True)


def _report(seen: Seen, name: str, proof: Proof) -> bool:
    found = list(proof(seen))
    if found:
        # What a busy machine has not brought there yet is there a while later.
        print(f"     {name} fails, and is tried again:", *found, sep="\n       ", flush=True)
        time.sleep(seen.stack.settles_within)
        found = list(proof(seen))
    print(f"{'FAIL' if found else 'ok  '} {name}", flush=True)
    for problem in found:
        print(f"       {problem}", flush=True)
    return not found


def _wait_for_interrupt(stack: Stack) -> None:
    print(f"Prometheus {stack.url('prometheus')}  Jaeger {stack.url('jaeger')}  MCP {stack.mcp_url}", flush=True)
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    raise SystemExit(main())
