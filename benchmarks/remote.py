"""The client of a real server, in a process of its own: ``python -m benchmarks.remote PORT SCENARIO``.

Reads ``N`` lines as `variant` does, and sends N calls over one connection. With
``python -m benchmarks.remote sink`` it is what receives OTLP instead, and answers 200.
"""

from __future__ import annotations

import asyncio
import json
import sys
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import perf_counter
from typing import Any

from benchmarks import requests
from benchmarks.drive import WARM, Message, serve


class Remote:
    """A server behind a socket, as an ASGI app: what drives apps in a process drives it, too."""

    def __init__(self, port: int) -> None:
        self._connection = HTTPConnection("127.0.0.1", port, timeout=60)

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        body = (await receive())["body"]
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self._connection.request(scope["method"], scope["path"], body, headers)
        response = self._connection.getresponse()
        given = [(name.lower().encode(), value.encode()) for name, value in response.getheaders()]
        start: Message = {"type": "http.response.start", "status": response.status, "headers": given}
        await send(start)
        await send({"type": "http.response.body", "body": response.read(), "more_body": False})


async def _send_calls(port: int, scenario: str) -> None:
    app = Remote(port)
    request = await requests.of_scenario(app, scenario)
    await serve(app, request, WARM)
    print("ready", flush=True)
    for line in sys.stdin:
        started = perf_counter()
        await serve(app, request, int(line))
        print(json.dumps({"wall": perf_counter() - started}), flush=True)


class _Sink(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Write nothing."""


def _sink() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Sink)
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    if sys.argv[1] == "sink":
        _sink()
    else:
        asyncio.run(_send_calls(int(sys.argv[1]), sys.argv[2]))
