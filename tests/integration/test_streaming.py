"""A stream is not held back: what the app sends now arrives now, before it sends anything else."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.client import HTTPConnection
from typing import Any

import uvicorn

from otel_mcp.api import MCPMiddleware
from otel_mcp.runtime import Runtime
from otel_mcp.settings import load
from otel_mcp.types import ASGIApp, Receive, Scope, Send
from tests.support.waiting import WITHIN, wait_until

EVENTS = 5
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


class Progress:
    """An app that reports progress, and goes on only once the client has what it sent; then it sends the result."""

    def __init__(self) -> None:
        self.arrived = threading.Semaphore(0)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for number in range(1, EVENTS + 1):
            report = {"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progress": number}}
            await send({"type": "http.response.body", "body": _event(report), "more_body": True})
            assert await asyncio.to_thread(self.arrived.acquire, timeout=WITHIN), f"{number} is held back"
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


def test_progress_arrives_before_anything_else_is_sent() -> None:
    runtime, app = Runtime(load()), Progress()
    try:
        with _serving(MCPMiddleware(app, runtime)) as port:
            connection = HTTPConnection("127.0.0.1", port, timeout=2 * WITHIN)
            connection.request("POST", "/mcp", json.dumps(CALL), HEADERS)
            response = connection.getresponse()
            messages: list[Any] = []
            while line := response.readline():
                if line.startswith(b"data: "):
                    messages.append(json.loads(line.removeprefix(b"data: ")))
                    app.arrived.release()
            connection.close()
    finally:
        runtime.disable()

    assert [message["params"]["progress"] for message in messages[:-1]] == list(range(1, EVENTS + 1))
    assert messages[-1]["result"] == {"content": []}
