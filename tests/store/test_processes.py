"""Several processes on one server that hangs, dies and comes back: everything counted once, every end reported once."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from otel_mcp.model.state import SessionState
from tests.support.stores import SERVERS, Server

ROOT = Path(__file__).parents[2]


class Worker:
    """A process of ``tests.store.worker``."""

    def __init__(self, url: str, ends: Path | None = None, **values: Any) -> None:
        command = [sys.executable, "-m", "tests.store.worker", url, json.dumps(values)]
        self._process = subprocess.Popen(
            [*command, str(ends)] if ends else command,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def tell(self, do: str, **values: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **values}) + "\n")
        self._process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the worker died"
        return json.loads(line)

    def stop(self) -> str:
        """End it in order; what it logged."""
        _, logged = self._process.communicate(json.dumps({"do": "stop"}) + "\n", timeout=60)
        assert self._process.returncode == 0, logged
        return logged

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()


@contextmanager
def workers(*started: Worker) -> Generator[tuple[Worker, ...]]:
    try:
        for worker in started:
            worker.hear()
        yield started
    finally:
        for worker in started:
            worker.kill()


def ask(all_workers: tuple[Worker, ...], do: str, **values: Any) -> list[dict[str, Any]]:
    """Have all of them do something at once."""
    for worker in all_workers:
        worker.tell(do, **values)
    return [worker.hear() for worker in all_workers]


def documents(server: Server) -> dict[str, SessionState]:
    with server.client() as client:
        found = [SessionState.model_validate_json(client.get(key)) for key in client.keys("mcp_session:*")]
    return {state.session_id: state for state in found}


def counted(reports: list[dict[str, Any]], what: str) -> Counter[str]:
    return Counter(session_id for report in reports for session_id in report[what])


def durable(kind: str) -> Server:
    """A server that keeps what it acknowledged; with ``everysec`` it may lose a second or two of it."""
    return Server(kind, "--appendonly", "yes", "--appendfsync", "always", "--save", "")


@pytest.fixture
def server() -> Iterator[Server]:
    server = durable("valkey")
    yield server
    server.close()


@pytest.mark.parametrize("kind", SERVERS)
def test_four_processes_count_exactly_through_a_hang_and_a_crash(kind: str) -> None:
    server = durable(kind)
    with workers(*(Worker(server.url) for _ in range(4))) as all_workers:
        for worker in all_workers:
            worker.tell("call", sessions=100, calls=2500, seconds=5.0)
        time.sleep(0.5)
        server.hang()
        time.sleep(3.0)
        server.resume()
        time.sleep(0.3)
        server.kill()
        time.sleep(0.2)
        server.start()
        for worker in all_workers:
            worker.hear()
        reports = ask(all_workers, "settled")
        logged = [worker.stop() for worker in all_workers]

    states = documents(server)
    server.close()
    assert [(report["calls"], report["pending"]) for report in reports] == [(2500, 0)] * 4, logged
    dropped = sum(report["dropped"] for report in reports)
    assert sum(state.tool_call_count for state in states.values()) + dropped == 10_000, (dropped, logged)
    assert dropped == 0, logged
    assert {state.tool_call_count for state in states.values()} == {100}
    assert {state.request_count for state in states.values()} == {100}
    assert counted(reports, "started") == {f"s{number}": 1 for number in range(100)}
    assert counted(reports, "resumed") == {}
    for state in states.values():
        assert 25 <= len(state.tool_calls) <= 50
    for lines in logged:
        # A busy machine may answer too late once more when all write at once: that is an outage, and reported as one.
        assert 1 <= lines.count("Redis cannot be used") <= 5, lines
        assert lines.count("Redis can be used again") == lines.count("Redis cannot be used"), lines
        assert "Traceback" not in lines, lines


def test_every_end_is_reported_once_when_a_sweeper_dies(server: Server, tmp_path: Path) -> None:
    files = [tmp_path / str(number) for number in range(4)]

    def reported(number: int) -> list[str]:
        return files[number].read_text().splitlines() if files[number].exists() else []

    made = [Worker(server.url, file, sweep_interval=0.2, flush_interval=0.1) for file in files]
    with workers(*made) as all_workers:
        ask(all_workers[:1], "call", sessions=1000, calls=1000, seconds=0.1, limit=1.0)
        victim: int | None = None
        until = time.monotonic() + 60
        while len({line for number in range(4) for line in reported(number)}) < 1000:
            assert time.monotonic() < until
            if victim is None:
                victim = next((number for number in range(4) if reported(number)), None)
                if victim is not None:
                    all_workers[victim].kill()
            time.sleep(0.005)

    assert victim is not None
    survivors = Counter(line for number in range(4) if number != victim for line in reported(number))
    assert {line.split(" ", 1)[1] for line in survivors} == {"expired 1"}
    assert set(survivors.values()) == {1}
    assert set(Counter(reported(victim)).values()) == {1}
    # What it had reported, not acknowledged, one batch at most, is reported again: it died before it could export it.
    assert len(survivors.keys() & set(reported(victim))) <= 100


def test_a_changed_catalogue_is_reported_once_though_processes_and_the_store_die(server: Server) -> None:
    with workers(*(Worker(server.url) for _ in range(3))) as former:
        (killed, *_) = ask(former, "list", catalogue="a")
        former[0].kill()
        with workers(*(Worker(server.url) for _ in range(2))) as latter:
            (also_killed, _) = ask(latter, "list", catalogue="b")
            # For a while both are served.
            left = ask(former[1:], "list", catalogue="a")
            latter[0].kill()
            server.kill()
            server.start()
            with workers(Worker(server.url)) as restarted:
                left += ask((latter[1], *restarted), "list", catalogue="b")

    changes = [change for report in (killed, also_killed, *left) for change in report["changes"]]
    assert changes == ["a to b"]


def test_a_killed_process_loses_one_interval_at_most(server: Server) -> None:
    with workers(Worker(server.url, flush_interval=0.1)) as all_workers:
        ask(all_workers, "call", sessions=1, calls=300, seconds=0.2)
        ask(all_workers, "settled")
        ask(all_workers, "call", sessions=1, calls=5, seconds=0.0)

    assert 300 <= documents(server)["s0"].tool_call_count <= 305


def test_a_process_that_ends_in_order_loses_nothing(server: Server) -> None:
    with workers(Worker(server.url, flush_interval=60.0, flush_calls=100_000)) as all_workers:
        ask(all_workers, "call", sessions=3, calls=30, seconds=0.0)
        logged = all_workers[0].stop()

    assert sum(state.tool_call_count for state in documents(server).values()) == 30
    assert logged == ""
