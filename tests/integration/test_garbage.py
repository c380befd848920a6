"""A finished call is in no cycle: it goes, with what it holds, without the garbage collector."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
from mcp.server.mcpserver import MCPServer

from otel_mcp import MCPInstrumentor, current
from otel_mcp.integrations.http import ObservedApp
from otel_mcp.model.call import Call
from otel_mcp.types import ASGIApp, Message
from tests.support.answers import FAILED, Server, error
from tests.support.asgi import post
from tests.support.messages import MODERN, MODERN_HEADERS, call, initialize, legacy_headers, modern, notify
from tests.support.providers import Telemetry

pytestmark = pytest.mark.anyio

ENVELOPE: dict[str, Any] = {
    "io.modelcontextprotocol/protocolVersion": MODERN,
    "io.modelcontextprotocol/clientCapabilities": {},
}


@pytest.fixture(autouse=True)
def instrumented(monkeypatch: pytest.MonkeyPatch) -> Iterator[Telemetry]:
    telemetry = Telemetry()
    logging.disable()  # A record of a log keeps the frames of its exception.
    monkeypatch.setattr("mcp.shared._otel._tracer", telemetry.tracer_provider.get_tracer("mcp-python-sdk"))
    MCPInstrumentor().instrument(
        tracer_provider=telemetry.tracer_provider,
        meter_provider=telemetry.meter_provider,
        service_name="garbage",
        http_span="off",
    )
    yield telemetry
    MCPInstrumentor().uninstrument()
    telemetry.shut_down()
    logging.disable(logging.NOTSET)


def known_calls() -> list[Call]:
    return [each for each in gc.get_objects() if type(each) is Call]


@contextmanager
def no_collector() -> Generator[Callable[[], list[str]]]:
    """Stop the collector; the value drains, and names the calls that are still there, but for those of other tests."""
    gc.collect()
    others = known_calls()
    gc.disable()

    def left_over() -> list[str]:
        assert current.runtime is not None
        current.runtime.recorder.drain()
        return [each.method for each in known_calls() if all(each is not other for other in others)]

    try:
        yield left_over
    finally:
        gc.enable()


@asynccontextmanager
async def sdk_server() -> AsyncGenerator[ASGIApp]:
    server = MCPServer("shop", log_level="CRITICAL")

    @server.tool()
    async def add(a: int) -> int:  # pyright: ignore[reportUnusedFunction]
        if a < 0:
            raise ValueError("negative")
        return a + 1

    app = server.streamable_http_app()
    async with server.session_manager.run():
        yield ObservedApp(app)


@pytest.mark.parametrize("tool", ["add", "unknown"])
@pytest.mark.parametrize("number", [1, -1, "x"])
@pytest.mark.parametrize("revision", ["2025-11-25", MODERN])
async def test_a_call_of_the_sdk_leaves_nothing(revision: str, number: object, tool: str) -> None:
    async with sdk_server() as app:
        headers = [*MODERN_HEADERS[:2], ("mcp-name", tool)]
        if revision != MODERN:
            headers = legacy_headers((await post(app, initialize())).headers["mcp-session-id"])
            await post(app, notify("notifications/initialized"), headers)

        async def ask_for(times: int) -> None:
            for request_id in range(times):
                message = modern(tool, request_id, **ENVELOPE) if revision == MODERN else call(tool, request_id)
                message["params"]["arguments"] = {"a": number}
                assert (await post(app, message, headers)).status in (200, 400)
            for _ in range(20):  # What a request has started comes to its end.
                await asyncio.sleep(0)

        with no_collector() as left_over:
            await ask_for(3)
            assert left_over() == []


@pytest.mark.parametrize("sse", [False, True])
@pytest.mark.parametrize("answer", [{}, {"result": FAILED}, {"error": error(-32602)["error"]}])
async def test_a_call_of_a_server_without_an_sdk_leaves_nothing(answer: Message, sse: bool) -> None:
    app = ObservedApp(Server({"tools/call": answer} if answer else {}, session_id="own", sse=sse))
    await post(app, initialize())
    with no_collector() as left_over:
        for number in range(3):
            assert (await post(app, call(request_id=number), legacy_headers("own"))).status == 200
        assert left_over() == []


async def test_a_call_whose_app_raises_leaves_nothing() -> None:
    async def app(*_: object) -> None:
        raise RuntimeError("broken")

    with no_collector() as left_over:
        for number in range(3):
            assert (await post(ObservedApp(app), call(request_id=number), MODERN_HEADERS)).error is not None
        assert left_over() == []


async def test_a_notification_that_is_taken_up_after_its_answer_is_counted_once(instrumented: Telemetry) -> None:
    async with sdk_server() as app:
        headers = legacy_headers((await post(app, initialize())).headers["mcp-session-id"])
        for _ in range(3):
            await post(app, notify("notifications/initialized"), headers)
        for _ in range(50):
            await asyncio.sleep(0)

        counts = instrumented.counts("mcp.server.operation.duration")
        assert {dict(of)["mcp.method.name"]: count for of, count in counts.items()} == {
            "initialize": 1,
            "notifications/initialized": 3,
        }
