"""What the session managers of the SDK and of FastMCP hold is what the metric shows, however their clients leave."""

from __future__ import annotations

import gc
import json
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from fastmcp import FastMCP
from mcp.server.mcpserver import MCPServer
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

from otel_mcp import MCPInstrumentor, SessionState
from otel_mcp.types import ASGIApp
from tests.support.asgi import JSON_HEADERS, announcing, delete, get, make_scope, post, request
from tests.support.messages import MODERN, ask, call, initialize, legacy_headers
from tests.support.providers import Telemetry

pytestmark = pytest.mark.anyio
HELD = "otel_mcp.transport.sessions"
STREAMS = "otel_mcp.stream.active"
CUT, BACK = "otel_mcp.session.interrupted", "otel_mcp.session.returned"
META = {"protocolVersion": MODERN, "clientInfo": {"name": "host", "version": "2"}, "clientCapabilities": {}}


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    telemetry = Telemetry()
    MCPInstrumentor().instrument(tracer_provider=telemetry.tracer_provider, meter_provider=telemetry.meter_provider)
    yield telemetry
    if MCPInstrumentor().is_instrumented_by_opentelemetry:
        MCPInstrumentor().uninstrument()
    telemetry.shut_down()


def shop() -> MCPServer[Any]:
    server: MCPServer[Any] = MCPServer("shop", log_level="ERROR")

    @server.tool()
    def add(a: int = 1) -> int:
        return a

    return server


@asynccontextmanager
async def managed(idle: float | None = None) -> AsyncGenerator[tuple[ASGIApp, Any]]:
    """A stateful server of the SDK and its session manager, in which sessions time out after `idle` seconds."""
    manager = StreamableHTTPSessionManager(
        getattr(shop(), "_lowlevel_server"),  # noqa: B009
        json_response=True,
        session_idle_timeout=idle,
    )
    async with manager.run():
        yield manager.handle_request, manager


async def begin(app: ASGIApp) -> str:
    return (await post(app, initialize(), patience=60)).headers["mcp-session-id"]


def held(telemetry: Telemetry) -> int | None:
    points = telemetry.points(HELD)
    return points[0][1] if points else None


async def test_a_thousand_clients_that_vanish_stay_in_the_manager_and_are_counted(telemetry: Telemetry) -> None:
    async with managed() as (app, manager):
        for _ in range(1000):
            await begin(app)

        assert held(telemetry) == len(manager._server_instances) == 1000
    gc.collect()
    assert held(telemetry) in {0, None}


async def test_a_delete_and_the_idle_timeout_of_the_sdk_take_sessions_out(telemetry: Telemetry) -> None:
    async with managed() as (app, manager):
        _, leaving = [await begin(app) for _ in range(2)]
        assert held(telemetry) == 2
        await delete(app, legacy_headers(leaving))
        assert held(telemetry) == len(manager._server_instances) == 1

        manager.session_idle_timeout = 0.05  # Of those that begin from now on.
        await begin(app)
        with anyio.fail_after(60):
            while len(manager._server_instances) > 1:  # noqa: ASYNC110 (the SDK tells nobody)
                await anyio.sleep(0.02)

        assert held(telemetry) == 1


@pytest.mark.parametrize("stateless", [False, True])
async def test_fastmcp_holds_sessions_unless_it_is_stateless(telemetry: Telemetry, *, stateless: bool) -> None:
    app: Any = FastMCP("shop").http_app(stateless_http=stateless)

    async with app.router.lifespan_context(app):
        for _ in range(3):
            await post(app, initialize())

        assert held(telemetry) == (0 if stateless else 3)


async def test_several_servers_of_one_process_add_up(telemetry: Telemetry) -> None:
    async with managed() as (one, _), managed() as (other, _):
        for app in (one, other, other):
            await begin(app)

        assert held(telemetry) == 3


async def test_a_stream_of_2024_11_05_is_held_until_its_client_leaves(telemetry: Telemetry) -> None:
    opened, left = anyio.Event(), anyio.Event()
    app = announcing(shop().sse_app(), opened, "body")
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            scope = make_scope("GET", "/sse", [("accept", "text/event-stream"), ("host", "127.0.0.1:8000")])
            group.start_soon(lambda: request(app, scope, left=left))
            await opened.wait()
            streams = {attributes["otel_mcp.stream.kind"]: n for attributes, n in telemetry.points(STREAMS)}
            assert (held(telemetry), streams["sse"]) == (1, 1)
            left.set()

    assert held(telemetry) == 0
    assert [count for _, count in telemetry.points(STREAMS)] == [0] * 4


async def test_a_get_stream_is_open_until_its_session_is_deleted(telemetry: Telemetry) -> None:
    async with managed() as (app, _):
        headers = legacy_headers(await begin(app))
        with anyio.fail_after(60):
            async with anyio.create_task_group() as group:
                opened = anyio.Event()
                group.start_soon(get, announcing(app, opened, "status"), [("host", "127.0.0.1:8000"), *headers])
                await opened.wait()
                during = [kind for kind, count in telemetry.points(STREAMS) if count]
                await delete(app, headers)

    assert during == [{"otel_mcp.stream.kind": "get"}]
    assert [count for _, count in telemetry.points(STREAMS)] == [0] * 4
    ((attributes, (count, _)),) = telemetry.points("otel_mcp.stream.duration")
    assert (attributes["otel_mcp.stream.kind"], count) == ("get", 1)


async def test_a_subscription_is_a_stream_without_a_session_until_its_client_leaves(telemetry: Telemetry) -> None:
    opened, left, method = anyio.Event(), anyio.Event(), "subscriptions/listen"
    headers = [*JSON_HEADERS, ("mcp-protocol-version", MODERN), ("mcp-method", method)]
    meta = {f"io.modelcontextprotocol/{name}": value for name, value in META.items()}
    body = json.dumps(ask(method, 1, notifications={"toolsListChanged": True}, _meta=meta)).encode()

    async with managed() as (app, _):
        with anyio.fail_after(60):
            async with anyio.create_task_group() as group:
                listening = announcing(app, opened, "status")
                group.start_soon(lambda: request(listening, make_scope(headers=headers), [body], left=left))
                await opened.wait()
                during = [kind for kind, count in telemetry.points(STREAMS) if count]
                left.set()

    assert (during, held(telemetry)) == ([{"otel_mcp.stream.kind": "listen"}], None)
    assert [count for _, count in telemetry.points(STREAMS)] == [0] * 4
    assert sum(telemetry.counts("otel_mcp.stream.duration").values()) == 1


async def test_a_tool_that_has_never_answered_is_named_while_it_hangs(telemetry: Telemetry) -> None:
    server, entered, over = shop(), anyio.Event(), anyio.Event()

    @server.tool()
    async def hang() -> None:
        entered.set()
        await over.wait()

    def oldest() -> set[str]:
        return {attributes["gen_ai.tool.name"] for attributes, age in telemetry.points("otel_mcp.call.oldest") if age}

    app: Any = server.streamable_http_app()
    async with app.router.lifespan_context(app):
        headers = legacy_headers(await begin(app))
        with anyio.fail_after(60):
            async with anyio.create_task_group() as group:
                group.start_soon(post, app, call("hang"), headers)
                await entered.wait()
                assert oldest() == {"hang"}
                over.set()

    assert oldest() == set()


async def test_after_uninstrument_nothing_is_shown(telemetry: Telemetry) -> None:
    async with managed() as (app, _):
        await begin(app)
        assert held(telemetry) == 1

        MCPInstrumentor().uninstrument()
        await begin(app)

        assert (held(telemetry), telemetry.points(STREAMS)) == (None, [])


def counts(telemetry: Telemetry, name: str) -> dict[str, int]:
    """What a counter of sessions has counted, by its own attribute."""
    own = f"{name}.{'cause' if name == CUT else 'within'}"
    return {attributes[own]: count for attributes, count in telemetry.points(name) if count}


async def test_a_client_cut_by_the_idle_timeout_is_back_with_another_session(telemetry: Telemetry) -> None:
    async with managed(idle=0.5) as (app, manager):
        old = await begin(app)
        await post(app, call(), legacy_headers(old))
        with anyio.fail_after(60):
            while manager._server_instances:  # noqa: ASYNC110 (the SDK tells nobody)
                await anyio.sleep(0.02)
        manager.session_idle_timeout = None  # Of those that begin from now on.
        refused = await post(app, call(), legacy_headers(old))
        new = await begin(app)
        served = await post(app, call(), legacy_headers(new))
        with anyio.fail_after(60):
            while not counts(telemetry, BACK):  # noqa: ASYNC110 (it is counted in the background)
                await anyio.sleep(0.02)
        before, after = await SessionState.load(old), await SessionState.load(new)

    assert (refused.status, served.status) == (404, 200)
    assert (counts(telemetry, CUT), counts(telemetry, BACK)) == ({"idle_reaper": 1}, {"1m": 1})
    assert before is not None
    assert before.ended is not None
    assert before.interrupted is not None
    assert (before.ended.reason, before.interrupted.cause) == ("server_closed", "idle_reaper")
    assert after is not None
    assert after.previous_id == old
