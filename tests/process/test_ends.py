"""How servers end: nothing is lost where the store is there, and what is lost where it is not is counted and exported.

Those of ``test_zero_code`` are ended there. Metrics are left at their interval of a minute, so that what arrives was
flushed by the end of the process.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from examples.demo.otlp_receiver import OtlpReceiver
from tests.process.conftest import Servers
from tests.support.clients import LEGACY, MODERN, connect
from tests.support.documents import Documents
from tests.support.servers import APPS, BIN, SDK, Launch, Server
from tests.support.stores import Server as Store
from tests.support.telemetry import OPERATION_DURATION, TOOLS_CALL, server_spans
from tests.support.waiting import wait_until

pytestmark = pytest.mark.process

HANDWRITTEN = "handwritten"
DROPPED = "otel_mcp.store.dropped"
CALLS = 12
ENVIRONMENT = {"OTEL_PYTHON_MCP_FLUSH_INTERVAL": "30", "COLUMNS": "400"}
"""So that nothing is written before the end, and what is logged stands in one line."""


def _launch(library: str, name: str, command: str) -> Launch:
    return Launch(library, name, command, stateless=True, environment=ENVIRONMENT)


UVICORN = _launch(SDK, "uvicorn", "uvicorn app:app --port={port}")
GUNICORN = _launch(SDK, "gunicorn", "gunicorn app:app -b=127.0.0.1:{port} -w 1 -k uvicorn_worker.UvicornWorker")
GUNICORN_ASGI = _launch(SDK, "gunicorn-asgi", "gunicorn app:app -b=127.0.0.1:{port} -w 1 -k asgi")
GRANIAN = _launch(SDK, "granian", "granian --interface asgi app:app --port {port}")
NO_LIFESPAN = _launch(HANDWRITTEN, "no-lifespan", "uvicorn app:app --port={port}")
LIFESPAN_OFF = _launch(HANDWRITTEN, "lifespan-off", "uvicorn app:app --port={port} --lifespan off")
TWO_LOOPS = _launch(HANDWRITTEN, "two-loops", "python threads.py")


@pytest.fixture
def store() -> Iterator[Store]:
    """A store of its own, since it is hurt."""
    store = Store()
    yield store
    store.resume()
    store.close()


async def _call(*clients: tuple[str, str]) -> None:
    """All calls, half by each of two clients: where they go, and in which revision."""
    for url, mode in clients:
        async with connect(url, name=mode, mode=mode) as caller:
            for _ in range(CALLS // 2):
                await caller.call("add", a=1, b=2)


def _ended(server: Server) -> None:
    server.terminate()
    assert wait_until(server.has_ended), server.log()

    def arrived() -> bool:
        telemetry = server.telemetry
        return (
            telemetry.total(OPERATION_DURATION, TOOLS_CALL) >= CALLS
            and len(server_spans(telemetry, "tools/call")) >= CALLS
        )

    assert wait_until(arrived), server.log()
    assert server.telemetry.total(OPERATION_DURATION, TOOLS_CALL) == CALLS


def _stored(url: str, service: str) -> int:
    documents = Documents(url)
    try:
        return sum(document.fields["tool_call_count"] for document in documents.of_service(service))
    finally:
        documents.close()


@pytest.mark.parametrize("launch", [GUNICORN_ASGI, GRANIAN, NO_LIFESPAN, LIFESPAN_OFF], ids=str)
def test_what_waits_is_written_before_the_process_ends(servers: Servers, launch: Launch) -> None:
    with servers.running(launch) as server:
        asyncio.run(_call((server.url, LEGACY), (server.url, LEGACY if launch.library == HANDWRITTEN else MODERN)))
        _ended(server)

        assert _stored(servers.redis_url, server.service) == CALLS
        assert server.telemetry.total(DROPPED) == 0
        assert "Traceback" not in server.log()


def test_two_loops_in_one_process_lose_nothing(servers: Servers) -> None:
    with servers.running(TWO_LOOPS) as server:
        port = int(server.url.split(":")[2].split("/")[0])
        asyncio.run(_call((server.url, LEGACY), (server.url.replace(str(port), str(port + 1)), LEGACY)))
        _ended(server)

        assert _stored(servers.redis_url, server.service) == CALLS
        assert server.telemetry.total(DROPPED) == 0


@pytest.mark.parametrize(("launch", "hurt"), [(UVICORN, Store.hang), (GUNICORN, Store.kill)], ids=("hang", "kill"))
def test_calls_that_cannot_be_written_are_counted_and_logged(
    servers: Servers, store: Store, launch: Launch, hurt: Callable[[Store], None]
) -> None:
    with servers.running(launch, redis_url=store.url) as server:
        asyncio.run(_call((server.url, LEGACY), (server.url, MODERN)))
        hurt(store)
        _ended(server)

        assert wait_until(lambda: server.telemetry.total(DROPPED) == CALLS)
        assert server.telemetry.total(DROPPED, {"otel_mcp.reason": "shutdown"}) == CALLS
        assert server.log().count(f"{CALLS} tool calls cannot be stored") == 1
        assert "Traceback" not in server.log()


def test_a_program_whose_loop_has_ended_loses_nothing(valkey_url: str) -> None:
    service = f"once-{secrets.token_hex(3)}"
    with OtlpReceiver() as receiver:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("OTEL_")},
            **ENVIRONMENT,
            "OTEL_SERVICE_NAME": service,
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_PYTHON_MCP_REDIS_URL": valkey_url,
        }
        command = [str(BIN / "opentelemetry-instrument"), sys.executable, "once.py", str(CALLS)]
        done = subprocess.run(
            command, cwd=APPS / HANDWRITTEN, env=environment, capture_output=True, text=True, timeout=60, check=False
        )

    assert (done.returncode, done.stderr) == (0, "")
    assert _stored(valkey_url, service) == CALLS
    assert receiver.telemetry.total(OPERATION_DURATION, TOOLS_CALL) == CALLS
