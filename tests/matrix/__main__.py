"""Run every cell: zero code, real client, and what was exported held against what was called."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mcp.client import Client
from mcp.client.sse import sse_client

from examples.demo.otlp_receiver import OtlpReceiver
from tests.matrix.cells import CELLS, Cell
from tests.matrix.environments import python_of

APPS = Path(__file__).parent / "apps"


def main() -> int:
    """Returns the number of cells that are wrong."""
    wrong = 0
    for cell in CELLS:
        started = time.monotonic()
        problems = run(cell)
        print(f"{'ok  ' if not problems else 'FAIL'} {cell} ({time.monotonic() - started:.1f} s)", flush=True)
        for problem in problems:
            print(f"     {problem}", flush=True)
        wrong += bool(problems)
    print(f"{len(CELLS) - wrong} passed, {wrong} failed")
    return wrong


def run(cell: Cell) -> list[str]:
    """What is wrong with one cell."""
    python = python_of(cell.library)
    with OtlpReceiver() as receiver, tempfile.TemporaryFile() as log:
        port = _free_port()
        environment = {
            **os.environ,
            "MODE": cell.mode,
            "OTEL_SERVICE_NAME": "matrix",
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_LOGS_EXPORTER": "none",
        }
        instrument = python.parent / "opentelemetry-instrument"
        command = [instrument, python.parent / "uvicorn", f"{cell.app}:app", f"--port={port}", "--log-level=warning"]
        server = subprocess.Popen(command, cwd=APPS, env=environment, stdout=log, stderr=log)
        try:
            _wait_for(port, server)
            calls = asyncio.run(asyncio.wait_for(_drive(f"http://127.0.0.1:{port}", cell.mode), 60))
        except Exception as error:
            log.seek(0)
            return [f"{type(error).__name__}: {error}", *log.read().decode(errors="replace").splitlines()[-15:]]
        finally:
            server.terminate()
            try:
                server.wait(15)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
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
    served = [span for span in spans.values() if span.kind == "SERVER" and "mcp.method.name" in span.attributes]
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
    above = {spans[span.parent_id].name for span in queries if span.parent_id in spans}
    if cell.nested:
        expect("above queries", all(name.startswith("tools/call") for name in above) and bool(queries), True)
        # The first request of a bare app only shows that nobody else opens a span; here that is `initialize`.
        expect("sessions of queries", {span.attributes.get("session.id") for span in queries} <= {
            span.attributes.get("session.id") for span in tools
        }, True)  # fmt: skip
    expect("counted", telemetry.histogram("mcp.server.operation.duration", {"mcp.method.name": "tools/call"}).count, 4)
    return problems


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RuntimeError("the server has ended")
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise TimeoutError("the server does not listen")


if __name__ == "__main__":
    sys.exit(bool(main()))
