"""Servers for process tests; started ahead of the test that wants them, ended with it."""

from __future__ import annotations

import secrets
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.servers import FASTMCP, PROMPT_EXPORT, SDK, TWO_WORKERS, Launch, Server

AUDIT = "OTEL_PYTHON_MCP_AUDIT"


@dataclass
class Servers:
    """Starts servers, each under a service name of its own.

    Starting takes longest, so the next ones on the list are started while a test works with the present one.
    """

    folder: Path
    redis_url: str
    wanted: list[Launch]
    """What tests will ask for, in this order."""
    ahead: int = 2
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(2))
    _started: dict[Launch, Future[Server]] = field(default_factory=dict["Launch", "Future[Server]"])

    @contextmanager
    def running(self, launch: Launch, *, redis_url: str | None = None) -> Generator[Server]:
        """A server for the time of the block."""
        service = f"{launch}-{secrets.token_hex(3)}"
        with Server(launch, service=service, redis_url=redis_url or self.redis_url, folder=self.folder) as server:
            yield server

    @contextmanager
    def next(self, launch: Launch) -> Generator[Server]:
        """A server that is on the list for the time of the block."""
        at = self.wanted.index(launch)
        for coming in self.wanted[at : at + 1 + self.ahead]:
            if coming not in self._started:
                self._started[coming] = self._pool.submit(self._start, coming)
        with self._started[launch].result() as server:
            yield server

    def close(self) -> None:
        """End whatever was started ahead and never asked for."""
        self._pool.shutdown()
        for started in self._started.values():
            if started.exception() is None:
                started.result().close()

    def _start(self, launch: Launch) -> Server:
        service = f"{launch}-{secrets.token_hex(3)}"
        server = Server(launch, service=service, redis_url=self.redis_url, folder=self.folder)
        server.start()
        return server


def _wanted(items: list[pytest.Item]) -> list[Launch]:
    """The launches that selected tests are parametrised with."""
    launches: dict[Launch, None] = {}
    for item in items:
        callspec = getattr(item, "callspec", None)
        for value in callspec.params.values() if callspec is not None else ():
            if isinstance(value, Launch):
                launches[value] = None
    return list(launches)


@pytest.fixture(scope="session")
def servers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, valkey_url: str
) -> Iterator[Servers]:
    """Starts servers that write to the shared Valkey."""
    starter = Servers(tmp_path_factory.mktemp("servers"), valkey_url, _wanted(request.session.items))
    yield starter
    starter.close()


@pytest.fixture
def server(request: pytest.FixtureRequest, servers: Servers) -> Iterator[Server]:
    """The server of one test, which gives its launch by indirect parametrisation."""
    with servers.next(request.param) as server:
        yield server


@pytest.fixture(
    scope="session",
    params=[
        Launch(library, "two-workers", TWO_WORKERS, stateless=True, environment=PROMPT_EXPORT | {AUDIT: "events"})
        for library in (SDK, FASTMCP)
    ],
    ids=str,
)
def two_workers(request: pytest.FixtureRequest, servers: Servers) -> Iterator[Server]:
    """A stateless server with two worker processes that exports at once, for tests that leave it as it was."""
    with servers.next(request.param) as server:
        yield server
