"""Is it flat? ``python -m tests.soak --minutes 60``; ends non-zero where something grows.

A real server with every kind of client, a real Valkey that drops all connections now and then and hangs once a minute.
After a warm-up (a third of the time, ten minutes at most) everything that could leak is sampled, and held against a
limit on its growth over the time measured. ``--leak tasks`` leaks on purpose; ``--prove`` has each kind of leak found;
``--without`` runs the same server without us, for comparison.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import httpx

from examples.demo.otlp_receiver import OtlpReceiver
from tests.soak.leaks import LEAKS
from tests.soak.server import SoakServer
from tests.soak.traffic import Traffic
from tests.soak.trend import Limit, Trend, trend
from tests.support.stores import Server as Valkey

LIMITS: Final = {
    "rss KiB": Limit(2048, 0.02),
    "objects": Limit(2000, 0.005),
    "tasks": Limit(5),
    "descriptors": Limit(5),
    "threads": Limit(1),
    "connections": Limit(3),
    "deadlines": Limit(20, 0.1),
}
_CONTAINER: Final = Limit(20, 0.1, room=300)  # Tables are bounded to 200 in `app`; a slope overshoots.
"""What our own containers may grow; all of them are bounded."""
_CLIENTS: Final = 6
_PERIOD: Final = 0.8
"""Clients, and seconds from one session of a client to its next."""
_BROKEN: Final = 0.0002
"""Share of exchanges that may break: clients that cancel and reuse connections now and then find one closed."""
_DROP_EVERY: Final = 15.0
_HANG_EVERY: Final = 60.0
"""Seconds between two times that Valkey drops all connections, and hangs for a second."""


class Samples:
    """Figures over time."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self._figures: list[dict[str, float]] = []

    async def take(self, server: SoakServer, store: Any) -> None:
        """One sample; what is counted from outside comes first, since counting inside takes memory."""
        figures = await asyncio.to_thread(server.outside, store)
        async with httpx.AsyncClient(trust_env=False, timeout=20) as http:
            figures.update((await http.get(f"{server.url}/inside")).json())
        self.times.append(time.monotonic())
        self._figures.append(figures)

    def trends(self) -> list[Trend]:
        """How each figure went; a container that comes later was empty before."""
        names = dict.fromkeys(name for figures in self._figures for name in figures)
        return [
            trend(name, self.times, [figures.get(name, 0.0) for figures in self._figures], LIMITS.get(name, _CONTAINER))
            for name in names
        ]


async def _sampled(samples: Samples, server: SoakServer, store: Any, seconds: float) -> None:
    warm_up = min(max(seconds / 3, 10.0), 600.0)
    interval = max((seconds - warm_up) / 120, 2.0)
    until = time.monotonic() + seconds
    await asyncio.sleep(warm_up)
    while time.monotonic() < until - 1:
        await samples.take(server, store)
        await asyncio.sleep(interval)


async def _trouble(valkey: Valkey, store: Any) -> None:
    """What any network does to any server; nothing is lost by it."""
    hang_at = time.monotonic() + _HANG_EVERY / 2
    while True:
        await asyncio.sleep(_DROP_EVERY)
        store.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        if time.monotonic() >= hang_at:
            hang_at += _HANG_EVERY
            valkey.hang()
            await asyncio.sleep(1.0)
            valkey.resume()


async def _run(server: SoakServer, valkey: Valkey, samples: Samples, traffic: Traffic, seconds: float) -> None:
    store = valkey.client()
    trouble = asyncio.create_task(_trouble(valkey, store))
    try:
        await asyncio.gather(traffic.run(seconds), _sampled(samples, server, valkey.client(), seconds))
    finally:
        trouble.cancel()
        with suppress(asyncio.CancelledError):
            await trouble
        valkey.resume()
        store.close()


def soak(seconds: float, *, leak: str = "", observed: bool = True, quiet: bool = False) -> list[str]:
    """Run it; what is wrong."""
    samples, valkey = Samples(), Valkey()
    with tempfile.TemporaryDirectory() as folder, OtlpReceiver(capacity=1000) as otlp:
        server = SoakServer(valkey.url, otlp.endpoint, Path(folder) / "log", leak=leak, observed=observed)
        try:
            server.wait()
            traffic = Traffic(server.url, clients=_CLIENTS, period=_PERIOD)
            asyncio.run(_run(server, valkey, samples, traffic, seconds))
            took = server.stop()
            forever = _without_end(valkey.client())
            log = server.log.read_text(errors="replace")
        finally:
            server.stop()
            valkey.close()
        dropped = otlp.telemetry.total("otel_mcp.store.dropped")
    trends = samples.trends()
    if not quiet:
        _show(trends, traffic, samples.times, took)
    wrong = [f"{one.name} grows by {one.growth:.0f}, limit {one.limit:.0f}" for one in trends if one.grows]
    if sum(traffic.broken.values()) > _BROKEN * sum(traffic.statuses.values()) + 2:
        wrong += [f"met by a client: {what}, {count} times" for what, count in traffic.broken.items()]
    wrong += [f"answered {status}: {n} times" for status, n in traffic.statuses.items() if status >= 500]
    wrong += [f"in the log: {line}" for line in log.splitlines() if "otel_mcp" in line and " failed with " in line]
    wrong += [f"keys without an end: {', '.join(forever)}"] if forever else []
    wrong += [f"{dropped:.0f} calls were dropped"] if dropped else []
    return wrong


def _without_end(store: Any) -> list[str]:
    """Keys that would stay for good, but for the one that is meant to."""
    names = [key.decode() for key in store.scan_iter("*") if store.ttl(key) < 0]
    return [name for name in names if not name.endswith(":hash-key")]


def _show(trends: list[Trend], traffic: Traffic, times: list[float], took: float) -> None:
    minutes = (times[-1] - times[0]) / 60
    print(f"\n{len(times)} samples over {minutes:.1f} minutes; SIGTERM took {took:.1f} s")
    print(f"sessions: {sum(traffic.sessions.values())} {dict(traffic.sessions)}")
    print(f"answers: {sum(traffic.statuses.values())} {dict(sorted(traffic.statuses.items()))}")
    print(f"met by clients: {dict(traffic.broken)}")
    print(f"\n{'':44}{'first':>10}{'last':>10}{'growth':>10}{'limit':>10}{'sure':>7}")
    for one in trends:
        if one.name in LIMITS or one.grows or max(one.first, one.last) >= 10:
            mark = "  GROWS" if one.grows else ""
            print(
                f"{one.name[-44:]:44}{one.first:10.0f}{one.last:10.0f}{one.growth:10.1f}{one.limit:10.1f}"
                f"{one.certainty:7.1f}{mark}"
            )


def prove(seconds: float, leaks: Iterable[str]) -> list[str]:
    """Leaks that were not found."""
    missed: list[str] = []
    for leak in leaks:
        figure = LEAKS[leak][1]
        found = [line for line in soak(seconds, leak=leak, quiet=True) if line.startswith(f"{figure} grows")]
        print(f"{leak}: {'; '.join(found) or 'NOT FOUND'}", flush=True)
        missed += [] if found else [f"a leak of {leak} was not found"]
    return missed


def main() -> int:
    """Soak, and tell what grew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="how long (default %(default)s)")
    parser.add_argument("--leak", choices=sorted(LEAKS), default="", help="leak this on purpose")
    parser.add_argument(
        "--prove",
        action="store_true",
        help="have each kind of leak found (or the one of --leak), in so many minutes each",
    )
    parser.add_argument("--without", action="store_true", help="the same server without otel_mcp")
    arguments = parser.parse_args()
    seconds = arguments.minutes * 60
    if arguments.prove:
        wrong = prove(seconds, [arguments.leak] if arguments.leak else LEAKS)
    else:
        wrong = soak(seconds, leak=arguments.leak, observed=not arguments.without)
    print("\n" + ("\n".join(wrong) if wrong else ("every leak was found" if arguments.prove else "flat")))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
