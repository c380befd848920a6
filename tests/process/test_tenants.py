"""Sums over tenants are the totals, on two replicas and where one of them is killed."""

from __future__ import annotations

import os
import re
import signal
from collections import Counter, defaultdict
from typing import Any

import httpx2
import pytest

from examples.demo.otlp_store import TelemetryStore
from tests.process.conftest import Servers
from tests.support.documents import Documents
from tests.support.messages import CLIENT_INFO, MODERN, MODERN_HEADERS, call
from tests.support.servers import PROMPT, SDK, TWO_WORKERS, Launch
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.process, pytest.mark.anyio]

ENVIRONMENT = {**PROMPT, "OTEL_PYTHON_MCP_TENANT": "header:x-org"}
TWO = Launch(SDK, "tenants", TWO_WORKERS, stateless=True, environment=ENVIRONMENT)
TENANT, REQUESTS = "otel_mcp.tenant", "otel_mcp.client.requests"
SIZE, STARTED = "otel_mcp.tool.result.size", "otel_mcp.session.started"
META = {
    CLIENT_INFO: {"name": "agent", "version": "1"},
    "io.modelcontextprotocol/protocolVersion": MODERN,
    "io.modelcontextprotocol/clientCapabilities": {},
}
ORGS = ("acme", "umbrella", None)


def _by_tenant(telemetry: TelemetryStore, name: str) -> dict[str | None, float]:
    """What was counted, or how many values were recorded, by tenant; of every process that there was."""
    counts: defaultdict[Any, float] = defaultdict(float)
    for point in telemetry.points(name):
        counts[point.attributes.get(TENANT)] += point.count if point.kind == "histogram" else point.value
    return {tenant: count for tenant, count in counts.items() if count}


def _stored(documents: Documents, service: str) -> dict[str | None, int]:
    return {each.fields.get("tenant"): each.fields["tool_call_count"] for each in documents.of_service(service)}


async def _ask(url: str, org: str | None, tool: str, **arguments: Any) -> str:
    """Call a tool by a connection of its own, so that any worker may get it."""
    headers = {**dict(MODERN_HEADERS), "mcp-name": tool, "accept": "application/json, text/event-stream"}
    async with httpx2.AsyncClient(trust_env=False, timeout=60, verify=False) as http:  # Loads no certificates.
        message = call(tool, arguments=arguments, meta=META)
        answer = await http.post(url, json=message, headers=headers | ({"x-org": org} if org else {}))
    assert answer.status_code == 200
    return answer.text


async def test_sums_over_tenants_are_the_totals_though_a_worker_is_killed(
    servers: Servers, documents: Documents
) -> None:
    with servers.running(TWO) as server:
        ledger: Counter[str | None] = Counter()

        async def use(rounds: int) -> None:
            for number in range(rounds * 6):
                org = ORGS[number % 7 % 3]
                await _ask(server.url, org, "add", a=number, b=1)
                ledger[org] += 1

        await use(4)
        found = re.search(r'"text":\s*"(\d+)"', await _ask(server.url, "acme", "worker"))
        assert found is not None
        worker = int(found[1])
        ledger["acme"] += 1
        telemetry = server.telemetry
        assert wait_until(lambda: _by_tenant(telemetry, REQUESTS) == ledger), server.log()
        assert wait_until(lambda: _stored(documents, server.service) == ledger), server.log()
        # One client of each tenant, from one address: one session each.
        assert wait_until(lambda: _by_tenant(telemetry, STARTED) == dict.fromkeys(ORGS, 1)), server.log()
        os.kill(worker, signal.SIGKILL)
        assert wait_until(lambda: not os.path.exists(f"/proc/{worker}"))
        await use(4)

        for name in (REQUESTS, SIZE):
            assert wait_until(lambda: _by_tenant(telemetry, name) == ledger), server.log()  # noqa: B023
        server.stop()
        assert _by_tenant(telemetry, STARTED) == dict.fromkeys(ORGS, 1), server.log()
        assert _stored(documents, server.service) == ledger
