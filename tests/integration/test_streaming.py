"""A stream is not held back: what the app sends now arrives now.

The one test here that looks at the clock; the median of the gaps stands a moment's delay.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from http.client import HTTPConnection
from statistics import median
from typing import Any

import uvicorn

from otel_mcp.middleware import MCPMiddleware
from otel_mcp.runtime import Runtime
from otel_mcp.settings import load
from otel_mcp.types import ASGIApp, Receive, Scope, Send
from tests.support.waiting import wait_until

EVENTS = 5
GAP = 0.1
CALL = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "tools/call",
    "params": {"name": "slow", "arguments": {}, "_meta": {"progressToken": 1}},
}
HEADERS = {
    "content-type": "application/json",
    "accept": "application/json, text/event-stream",
    "mcp-protocol-version": "2025-11-25",
    "mcp-session-id": "abc-123",
}


async def progress(scope: Scope, receive: Receive, send: Send) -> None:
    """Send progress on the beat of a clock, then the result."""
    await receive()
    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    began = time.monotonic()
    for number in range(1, EVENTS + 1):
        await asyncio.sleep(max(0.0, began + number * GAP - time.monotonic()))
        report = {"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progress": number}}
        await send({"type": "http.response.body", "body": _event(report), "more_body": True})
    answer = {"jsonrpc": "2.0", "id": 1, "result": {"content": []}}
    await send({"type": "http.response.body", "body": _event(answer), "more_body": False})


def _event(message: dict[str, Any]) -> bytes:
    return b"event: message\ndata: " + json.dumps(message).encode() + b"\n\n"


@contextmanager
def _serving(app: ASGIApp) -> Generator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_level="warning"))  # type: ignore[arg-type]
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            assert wait_until(lambda: server.started, interval=0.01)
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


def _arrivals(port: int) -> list[float]:
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("POST", "/mcp", json.dumps(CALL), HEADERS)
    response = connection.getresponse()
    arrivals: list[float] = []
    while line := response.readline():
        if b"notifications/progress" in line:
            arrivals.append(time.monotonic())
    connection.close()
    return arrivals


def test_progress_arrives_on_the_beat_on_which_it_is_sent() -> None:
    runtime = Runtime(load())
    try:
        with _serving(MCPMiddleware(progress, runtime)) as port:
            arrivals = _arrivals(port)
    finally:
        runtime.disable()

    assert len(arrivals) == EVENTS
    gaps = [later - earlier for earlier, later in itertools.pairwise(arrivals)]
    assert abs(median(gaps) - GAP) < 0.03
