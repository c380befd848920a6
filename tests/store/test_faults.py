"""One process and a server that hangs, dies, comes back empty, is far away, or speaks TLS only."""

from __future__ import annotations

import asyncio
import logging
import shutil
import subprocess
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from otel_mcp.model.delta import Flush
from otel_mcp.sessions.service import Sessions
from otel_mcp.store.base import ProducerId, StoreDown
from otel_mcp.store.redis.store import RedisStore
from tests.support.stores import SERVERS, Listener, Server, delta, facts, flush, free_port, settings

pytestmark = pytest.mark.anyio


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    server = Server(request.param)
    yield server
    server.close()


@pytest.fixture
async def store(server: Server) -> AsyncIterator[RedisStore]:
    store = RedisStore(settings(server.url))
    yield store
    await store.aclose()


def fresh(process: ProducerId, calls: int = 1) -> Flush:
    now = time.time()
    return flush(process, delta(calls, of=facts(at=now), at=now))


async def until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(60):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0.01)


async def test_what_ran_after_a_hang_is_recognised(server: Server, store: RedisStore) -> None:
    process = ProducerId()
    await store.apply([fresh(process)])
    server.hang()
    sent = fresh(process, 5)
    with pytest.raises(StoreDown) as caught:
        await store.apply([sent])
    assert caught.value.reason == "TimeoutError"

    server.resume()
    (answer,) = await store.apply([sent])

    # It lay in the socket of the server meanwhile.
    assert (answer.duplicate, answer.total_calls) == (True, 6)


async def test_sessions_begin_again_on_a_server_that_lost_its_data(server: Server, store: RedisStore) -> None:
    process = ProducerId()
    await store.apply([fresh(process, 3)])
    server.kill()
    sent = fresh(process, 2)
    with pytest.raises(StoreDown):
        await store.apply([sent])

    server.start()
    (answer,) = await store.apply([sent])

    assert (answer.created, answer.total_calls) == (True, 2)


async def test_a_server_that_is_absent_at_the_start_is_found_later(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "otel_mcp")
    server.kill()
    listener = Listener()
    sessions = Sessions(settings(server.url, flush_interval=0.01), listener)
    sessions.ensure_running()
    for _ in range(3):
        sessions.submit(delta(2, at=time.time()))
        assert await sessions.describe("abc") is None
    await until(lambda: sessions.degraded)

    server.start()
    await until(lambda: not sessions.degraded and not sessions.pending)

    state = await sessions.load("abc")
    assert state is not None
    assert (state.tool_call_count, listener.started_ids) == (6, ["abc"])
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1
    await sessions.aclose()


async def test_more_tools_than_connections_are_no_outage(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    listener = Listener()
    sessions = Sessions(settings(server.patient_url), listener)
    sessions.submit(delta(2, at=time.time()))
    await sessions.flush()

    states = await asyncio.gather(*(sessions.load("abc") for _ in range(100)))

    assert [state.tool_call_count if state else None for state in states] == [2] * 100
    assert (sessions.degraded, caplog.records) == (False, [])
    await sessions.aclose()


async def test_a_server_that_became_a_replica_is_one_outage_without_pending_writes(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "otel_mcp")
    listener = Listener()
    sessions = Sessions(settings(server.patient_url, flush_interval=0.01, sweep_interval=0.1), listener)
    sessions.ensure_running()
    await until(lambda: listener.operations["sweep", "ok"] >= 2)
    with server.client() as client:
        client.execute_command("REPLICAOF", "127.0.0.1", "1")
        await until(lambda: sessions.degraded)
        # It answers what only reads; that is no recovery.
        await until(lambda: listener.operations["probe", "error"] >= 3)
        assert sessions.degraded
        client.execute_command("REPLICAOF", "NO", "ONE")
    await until(lambda: not sessions.degraded)

    assert [(record.levelno, record.getMessage()[:32]) for record in caplog.records] == [
        (logging.WARNING, "otel_mcp: Redis cannot be used ("),
        (logging.INFO, "otel_mcp: Redis can be used agai"),
    ]
    await sessions.aclose()


@asynccontextmanager
async def far_away(server: Server, delay: float) -> AsyncGenerator[str]:
    """The server behind a link on which everything takes `delay` seconds each way."""
    writers: list[asyncio.StreamWriter] = []
    tasks: list[asyncio.Task[None]] = []

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            await asyncio.sleep(delay)
            writer.write(data)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", server.port)
        writers.extend((writer, back))
        tasks.extend((asyncio.create_task(carry(reader, back)), asyncio.create_task(carry(there, writer))))

    listening = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield server.patient_url.replace(str(server.port), str(listening.sockets[0].getsockname()[1]))
    finally:
        listening.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in writers:
            writer.close()


async def test_a_server_far_away_is_written_to_and_not_waited_for(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    listener = Listener()
    async with far_away(server, 0.1) as url:
        sessions = Sessions(settings(url, flush_interval=0.01), listener)
        sessions.ensure_running()
        assert await sessions.describe("abc") is None
        own = await sessions.hash_key()
        for _ in range(3):
            sessions.submit(delta(2, at=time.time()))
        await until(lambda: not sessions.pending and sessions.shared_key.is_agreed)

        state = await sessions.load("abc")
        assert state is not None
        assert state.tool_call_count == 6
        assert await sessions.hash_key() == own
        assert caplog.records == []
        await sessions.aclose()


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl on PATH")
    key, pem = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    )
    subprocess.run([*command.split(), "-keyout", str(key), "-out", str(pem)], check=True, capture_output=True)
    return key, pem


async def test_a_server_that_speaks_tls(certificate: tuple[Path, Path]) -> None:
    key, pem = certificate
    port = free_port()
    options = {"tls-port": port, "tls-cert-file": pem, "tls-key-file": key, "tls-auth-clients": "no"}
    server = Server("redis", *(str(part) for name, value in options.items() for part in (f"--{name}", value)))
    try:
        trusted = RedisStore(settings(f"rediss://localhost:{port}?ssl_ca_certs={pem}"))
        assert (await trusted.apply([fresh(ProducerId())]))[0].created
        await trusted.aclose()
        stranger = RedisStore(settings(f"rediss://localhost:{port}"))
        with pytest.raises(StoreDown):
            await stranger.apply([fresh(ProducerId())])
        await stranger.aclose()
    finally:
        server.close()
