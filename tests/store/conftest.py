"""A real server for each module, and the store on it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from otel_mcp.store.base import ProducerId
from otel_mcp.store.redis.store import RedisStore
from tests.support.stores import SERVERS, Server, settings


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
    store = RedisStore(settings(server.url), process)
    yield store
    await store.aclose()


@pytest.fixture
def process() -> ProducerId:
    return ProducerId()
