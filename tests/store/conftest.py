"""A real server for each module, the store on it, and processes that share it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any, cast

import fakeredis
import pytest

from otel_mcp.store.base import ProducerId, SessionStore
from otel_mcp.store.memory import MemoryStore
from otel_mcp.store.redis.client import Client
from otel_mcp.store.redis.store import RedisStore
from tests.support.stores import SERVERS, Server, settings


class Replicas:
    """Processes of one service that share a store; in memory there is but one."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._memory = MemoryStore(settings())
        self._fake = fakeredis.FakeServer()
        self._made: list[SessionStore] = []
        self.shared = backend != "memory"
        if isinstance(backend, Server):
            backend.client().flushall()

    def store(self, started: float, service: str = "svc") -> tuple[SessionStore, ProducerId]:
        process = ProducerId()
        process.started_at = started
        if self._backend == "memory":
            return self._memory, process
        options = {"service_name": service}
        if isinstance(self._backend, Server):
            made = RedisStore(settings(self._backend.patient_url, **options), process)
        else:
            client = lambda: cast(Client, fakeredis.FakeAsyncRedis(server=self._fake))  # noqa: E731
            made = RedisStore(settings(**options), process, client=client)
        self._made.append(made)
        return made, process

    async def close(self) -> None:
        for store in self._made:
            await store.aclose()


@pytest.fixture(scope="module", params=SERVERS)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    server = Server(request.param)
    yield server
    server.close()


@pytest.fixture(scope="module", params=["memory", "fakeredis", *SERVERS])
def backend(request: pytest.FixtureRequest) -> Iterator[Any]:
    """What a store is made on: a real server, or the name of what stands for one."""
    if request.param in SERVERS:
        server = Server(request.param)
        yield server
        server.close()
    else:
        yield request.param


@pytest.fixture
def raw(server: Server) -> Iterator[Any]:
    """A plain client; the server is empty."""
    with server.client() as client:
        client.flushall()
        yield client


@pytest.fixture
async def store(server: Server, raw: Any, process: ProducerId) -> AsyncIterator[RedisStore]:
    """The store of `process`."""
    store = RedisStore(settings(server.patient_url), process)
    yield store
    await store.aclose()


@pytest.fixture
def process() -> ProducerId:
    return ProducerId()


@pytest.fixture
async def replicas(backend: Any) -> AsyncIterator[Replicas]:
    made = Replicas(backend)
    yield made
    await made.close()
