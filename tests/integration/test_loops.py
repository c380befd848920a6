"""Event loops that are not those of a server of asyncio: trio's, and one for each request, as under WSGI."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, cast

import anyio
import anyio.lowlevel
import pytest
from mcp.server.mcpserver import MCPServer

from otel_mcp import MCPInstrumentor, MCPMiddleware, api, current, guard
from otel_mcp.types import ASGIApp, Message, Receive, Send
from tests.support.answers import Server
from tests.support.asgi import Reply, post
from tests.support.documents import Documents
from tests.support.messages import call, initialize, legacy_headers
from tests.support.providers import Telemetry
from tests.support.waiting import wait_until


@pytest.fixture
def seen(valkey_url: str) -> Iterator[Telemetry]:
    """What a process exports that keeps its sessions in Redis."""
    telemetry = Telemetry()
    guard.failures.clear()
    MCPInstrumentor().instrument(
        tracer_provider=telemetry.tracer_provider,
        meter_provider=telemetry.meter_provider,
        redis_url=valkey_url,
        service_name="loops",
    )
    yield telemetry
    MCPInstrumentor().uninstrument()
    telemetry.shut_down()
    assert guard.failures == {}


async def _calls(app: ASGIApp, many: int) -> list[Reply]:
    opened = await post(app, initialize())
    headers = legacy_headers(opened.headers["mcp-session-id"])
    return [opened, *[await post(app, call("add", number), headers) for number in range(1, many)]]


def sdk() -> ASGIApp:
    """A server of the SDK with a lifespan, as Starlette has it."""
    made = MCPServer("shop", log_level="WARNING")

    @made.tool()
    async def add(a: int) -> int:  # pyright: ignore[reportUnusedFunction]
        await anyio.lowlevel.checkpoint()
        return a + 1

    return made.streamable_http_app(json_response=True)


async def by_hand(scope: Message, receive: Receive, send: Send) -> None:
    """A server without an SDK, and its lifespan."""
    if scope["type"] != "lifespan":
        return await Server()(scope, receive, send)
    for _ in range(2):
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})


async def _through_a_lifespan(app: ASGIApp, work: Callable[[], Awaitable[Any]]) -> None:
    """Start the app up, work with it, and shut it down, as a server does."""
    asked, taken = anyio.create_memory_object_stream[Message](2)
    sent, heard = anyio.create_memory_object_stream[Message](2)
    async with anyio.create_task_group() as group:
        group.start_soon(
            cast("Any", app), {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, taken.receive, sent.send
        )
        for kind in ("startup", "shutdown"):
            await asked.send({"type": f"lifespan.{kind}"})
            assert (await heard.receive())["type"] == f"lifespan.{kind}.complete"
            if kind == "startup":
                await work()
    for stream in (asked, taken, sent, heard):
        stream.close()


@pytest.mark.parametrize("make", [sdk, lambda: by_hand], ids=["SDK", "by hand"])
def test_on_trio_everything_is_seen_and_stored(
    seen: Telemetry, documents: Documents, make: Callable[[], ASGIApp]
) -> None:
    app = MCPMiddleware(make())
    replies: list[Reply] = []

    async def work() -> None:
        replies.extend(await _calls(app, 3))

    anyio.run(_through_a_lifespan, app, work, backend="trio")

    assert [reply.status for reply in replies] == [200, 200, 200]
    session_id = replies[0].headers["x-session-id"]
    assert documents.count(session_id) == 2
    spans = [span for span in seen.spans() if "POST" not in span.name]
    assert [(span.attributes or {}).get("session.id") for span in spans] == [session_id] * len(spans)
    assert len(spans) == 3 or make is sdk  # The SDK's own spans go to the provider of the process.


def test_on_trio_tool_authors_can_ask_for_sessions(seen: Telemetry) -> None:
    app = MCPMiddleware(by_hand)
    found: list[object] = []

    async def work() -> None:
        await _calls(app, 2)
        made = await api.sessions().get_or_create("of-a-tool-on-trio")
        found.append((await api.sessions().load(made.session_id)) == made)
        found.append(await api.sessions().delete(made.session_id))

    anyio.run(_through_a_lifespan, app, work, backend="trio")
    assert found == [True, True]


def test_where_each_request_has_a_loop_of_its_own_all_is_stored(seen: Telemetry, documents: Documents) -> None:
    app = MCPMiddleware(Server())
    opened = asyncio.run(post(app, initialize()))
    headers = legacy_headers(opened.headers["mcp-session-id"])
    for number in range(1, 8):
        assert asyncio.run(post(app, call("add", number), headers)).status == 200

    wait_until(lambda: documents.count(opened.headers["x-session-id"]) == 7)
    assert current.runtime is not None
    assert sum(seen.counts("mcp.server.operation.duration").values()) == 8
