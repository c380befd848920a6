"""Servers for process tests, ended with the test that wants them, or with all that share one."""

from __future__ import annotations

import secrets
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.servers import FASTMCP, PROMPT, SDK, TWO_WORKERS, Launch, Server

AUDIT = "OTEL_PYTHON_MCP_AUDIT"


@dataclass
class Servers:
    """Starts servers, each under a service name of its own."""

    folder: Path
    redis_url: str

    @contextmanager
    def running(self, launch: Launch, *, redis_url: str | None = None) -> Generator[Server]:
        """A server for the time of the block."""
        service = f"{launch}-{secrets.token_hex(3)}"
        with Server(launch, service=service, redis_url=redis_url or self.redis_url, folder=self.folder) as server:
            yield server


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory, valkey_url: str) -> Servers:
    """Starts servers that write to the shared Valkey."""
    return Servers(tmp_path_factory.mktemp("servers"), valkey_url)


@pytest.fixture
def server(request: pytest.FixtureRequest, servers: Servers) -> Iterator[Server]:
    """The server of one test, which gives its launch by indirect parametrisation."""
    with servers.running(request.param) as server:
        yield server


@pytest.fixture(
    scope="package",
    params=[
        Launch(library, "two-workers", TWO_WORKERS, stateless=True, environment=PROMPT | {AUDIT: "events"})
        for library in (SDK, FASTMCP)
    ],
    ids=str,
)
def two_workers(request: pytest.FixtureRequest, servers: Servers) -> Iterator[Server]:
    """A stateless server with two worker processes that exports at once, for tests that leave it as it was."""
    with servers.running(request.param) as server:
        yield server
