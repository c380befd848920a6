"""Audit records are as many as calls, or the missing ones are counted; nothing in them says who somebody is."""

from __future__ import annotations

import base64
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import count, islice
from typing import Final

import anyio
import httpx2
import pytest

from examples.demo.otlp_receiver import OtlpReceiver
from examples.demo.otlp_store import TelemetryStore
from tests.process.conftest import Servers
from tests.support import stores
from tests.support.asgi import JSON_HEADERS
from tests.support.documents import Documents
from tests.support.messages import MODERN_HEADERS, modern
from tests.support.servers import PROMPT, TWO_WORKERS, Launch
from tests.support.telemetry import OPERATION_DURATION, TOOLS_CALL
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.process, pytest.mark.anyio]

LONG: Final = "OTEL_MCP_LONG_TESTS" in os.environ
CALLS: Final = 10_000 if LONG else 400
CALLERS: Final = 20
SIDE_BY_SIDE: Final = 8
QUEUE: Final = 2048 if LONG else 16
DROPPED: Final = "otel_mcp.audit.dropped"
EMAILS: Final = [f"caller-{number}@planted.example" for number in range(CALLERS)]


def credentials(email: str) -> str:
    """A bearer token in which the e-mail stands in clear: as it is, or as the subject of a JWT."""
    if EMAILS.index(email) % 2:
        return f"Bearer {email}"
    parts = ({"alg": "none"}, {"iss": "https://planted.example", "sub": email})
    return "Bearer " + ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode() for part in (*parts, {}))


class Crowd:
    """Clients that call one after the other, each call by the next caller, on a connection of its own."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._turns = count()
        self.made = 0

    async def call(self, times: int) -> None:
        turns = islice(self._turns, times)
        async with httpx2.AsyncClient(trust_env=False, timeout=60) as client, anyio.create_task_group() as tasks:
            for _ in range(SIDE_BY_SIDE):
                tasks.start_soon(self._call, client, turns)

    async def _call(self, client: httpx2.AsyncClient, turns: Iterator[int]) -> None:
        for turn in turns:
            email = EMAILS[turn % CALLERS]
            message = modern(request_id=turn)
            message["params"]["arguments"] = {"to": email, "turn": turn}
            own = {"authorization": credentials(email), "from": email, "connection": "close"}
            headers = {**dict(JSON_HEADERS), **dict(MODERN_HEADERS), **own}
            answer = await client.post(self._url, content=json.dumps(message), headers=headers)
            assert answer.status_code == 200
            self.made += 1


class Records:
    """What has arrived: of each process the numbers, with how often each."""

    def __init__(self, telemetry: TelemetryStore) -> None:
        self.numbers: dict[str, Counter[int]] = defaultdict(Counter)
        self.callers: Counter[object] = Counter()
        for record in telemetry.events("otel_mcp.tool.call"):
            number = record.attributes["otel_mcp.audit.number"]
            assert isinstance(number, int)
            self.numbers[record.origin.instance][number] += 1
            self.callers[record.attributes.get("enduser.pseudo.id")] += 1

    @property
    def arrived(self) -> int:
        return sum(map(len, self.numbers.values()))


async def test_each_call_is_on_record_or_counted_through_two_outages(servers: Servers) -> None:
    store, sink = stores.Server(), OtlpReceiver(capacity=20 * CALLS)
    sink.start()
    environment = {
        **PROMPT,
        "OTEL_PYTHON_MCP_AUDIT": "events",
        # Else a process that is first asked while Redis is away names callers with a key of its own.
        "OTEL_PYTHON_MCP_HASH_KEY": "shared",
        "OTEL_PYTHON_MCP_SWEEP_INTERVAL": "1",
        "OTEL_EXPORTER_OTLP_ENDPOINT": sink.endpoint,
        "OTEL_EXPORTER_OTLP_LOGS_TIMEOUT": "4",
        "OTEL_BLRP_MAX_QUEUE_SIZE": str(QUEUE),
        "OTEL_BLRP_MAX_EXPORT_BATCH_SIZE": str(QUEUE // 4),
    }
    launch = Launch("handwritten", "audited", TWO_WORKERS.replace("2", "4", 1), environment=environment)
    with servers.running(launch, redis_url=store.url) as server:
        try:
            crowd = Crowd(server.url)
            await crowd.call(CALLS // 4)
            store.kill()
            await crowd.call(CALLS // 4)
            sink.stop()
            await crowd.call(CALLS // 4)
            assert await anyio.to_thread.run_sync(
                lambda: wait_until(lambda: "Failed to export logs batch" in server.log())
            ), server.log()
            sink = OtlpReceiver(port=sink.port, telemetry=sink.telemetry)
            sink.start()
            store.start()
            await crowd.call(CALLS // 4)
            telemetry = sink.telemetry

            def accounted() -> bool:
                return Records(telemetry).arrived + telemetry.total(DROPPED) >= CALLS == called()

            def called() -> float:
                return telemetry.total(OPERATION_DURATION, TOOLS_CALL)

            assert await anyio.to_thread.run_sync(lambda: wait_until(accounted)), server.log()
            assert await anyio.to_thread.run_sync(
                lambda: wait_until(lambda: telemetry.latest("otel_mcp.callers.active") == CALLERS)
            ), telemetry.latest("otel_mcp.callers.active")
            stored = Documents(store.url).everything()
        finally:
            server.stop()
            sink.stop()
            store.close()

    records = Records(telemetry)
    assert crowd.made == called() == CALLS
    assert len(records.numbers) == 4
    assert records.arrived + telemetry.total(DROPPED) == CALLS
    assert telemetry.total(DROPPED) == sum(
        telemetry.total(DROPPED, {"otel_mcp.reason": reason}) for reason in ("export", "full")
    )
    assert telemetry.total(DROPPED) > 0
    assert records.arrived >= CALLS // 4
    assert len(records.callers) == CALLERS
    assert None not in records.callers
    everything = repr((telemetry.spans(), telemetry.logs(), telemetry.points())) + stored + server.log()
    assert "planted.example" not in everything
