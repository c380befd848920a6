"""MCP behind ASGI adapters that are not the SDK's: a request stays one, whichever scopes it is made into."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio
import httpx
import httpx2
import pytest
from anyio.abc import TaskGroup
from mcp.server.mcpserver import MCPServer
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.shared.message import SessionMessage
from mcp_types import jsonrpc_message_adapter
from opentelemetry.trace import SpanKind
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from otel_mcp import MCPInstrumentor, MCPMiddleware, current
from otel_mcp.integrations.http import ObservedApp
from otel_mcp.types import ASGIApp, Message, Receive, Send
from tests.support.asgi import Reply, post, read, request, respond
from tests.support.messages import MODERN, MODERN_HEADERS, ask, call, initialize, legacy_headers, modern, notify
from tests.support.providers import Telemetry

pytestmark = pytest.mark.anyio

ENVELOPE: dict[str, Any] = {
    "io.modelcontextprotocol/protocolVersion": MODERN,
    "io.modelcontextprotocol/clientCapabilities": {},
}
"""What the SDK asks of a message of 2026-07-28."""
NO_REQUEST = ("POST", "notifications/")
DURATION = "mcp.server.operation.duration"
Handle = Callable[[Message, Receive, Send], Awaitable[None]]
Adapter = Callable[[Handle], ASGIApp]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Telemetry]:
    """Everything that an instrumented process exports, the SDK's own spans with it."""
    telemetry = Telemetry()
    monkeypatch.setattr("mcp.shared._otel._tracer", telemetry.tracer_provider.get_tracer("mcp-python-sdk"))
    MCPInstrumentor().instrument(
        tracer_provider=telemetry.tracer_provider,
        meter_provider=telemetry.meter_provider,
        service_name="adapters",
        http_span="off",
    )
    yield telemetry
    MCPInstrumentor().uninstrument()
    telemetry.shut_down()


def server(name: str = "shop") -> MCPServer:
    made = MCPServer(name, log_level="WARNING")
    met = anyio.Event()
    waiting: list[int] = []

    @made.tool()
    async def add(a: int) -> int:  # pyright: ignore[reportUnusedFunction]
        return a + 1

    @made.tool()
    async def meet(a: int) -> int:  # pyright: ignore[reportUnusedFunction]
        waiting.append(a)
        if len(waiting) == 2:
            met.set()
        await met.wait()
        return a

    return made


def manager_of(made: MCPServer, *, stateless: bool = True) -> StreamableHTTPSessionManager:
    return StreamableHTTPSessionManager(
        made._lowlevel_server,  # pyright: ignore[reportPrivateUsage]
        stateless=stateless,
        json_response=True,
    )


async def _ask(handle: Handle, scope: Message, body: bytes) -> Reply:
    """What an adapter does with a scope that it has made: hand it over with the body, and collect the answer."""
    return await request(handle, scope, [body])


def _made_scope(method: str, path: str, headers: list[tuple[bytes, bytes]]) -> Message:
    """A scope from the parts of a request that another framework has kept."""
    return {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "scheme": "http",
        "headers": headers,
        "client": ("127.0.0.1", 0),
        "server": ("127.0.0.1", 8000),
    }


async def _answer(send: Send, reply: Reply) -> None:
    headers = [(name, value) for name, value in reply.headers.items() if name not in ("content-type", "content-length")]
    await respond(send, reply.body, reply.status, headers, content_type=reply.headers.get("content-type", ""))


def whole(handle: Handle) -> ASGIApp:
    """Hands over every header."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        body = await read(receive)
        await _answer(send, await _ask(handle, _made_scope(scope["method"], scope["path"], scope["headers"]), body))

    return app


def few(handle: Handle) -> ASGIApp:
    """Hands over what MCP needs, under a path of its own, with another encoding of the same message."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        body = await read(receive) + b" "
        names = (b"content-type", b"accept", b"mcp-session-id", b"mcp-protocol-version", b"mcp-method", b"mcp-name")
        headers = [(name.title(), value) for name, value in scope["headers"] if name in names]
        headers.append((b"content-length", str(len(body)).encode()))
        lower = [(name.lower(), value) for name, value in headers]
        await _answer(send, await _ask(handle, _made_scope(scope["method"], "/", lower), body))

    return app


def threaded(handle: Handle) -> ASGIApp:
    """A synchronous view in a thread, which waits for the handler on the server's own loop."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        body = await read(receive)
        made = _made_scope(scope["method"], scope["path"], scope["headers"])
        loop = asyncio.get_running_loop()

        def view() -> Reply:
            # As asgiref does, which carries the context over by itself.
            from contextvars import copy_context

            context = copy_context()

            async def start() -> Reply:
                return await context.run(asyncio.ensure_future, _ask(handle, made, body))

            return asyncio.run_coroutine_threadsafe(start(), loop).result(5)

        await _answer(send, await asyncio.to_thread(view))

    return app


def routed(handle: Handle) -> ASGIApp:
    """A function behind a route of Starlette."""

    async def endpoint(asked: Request) -> Response:
        body = await asked.body()
        made = _made_scope(asked.method, asked.url.path, [(k, v) for k, v in asked.headers.raw])
        reply = await _ask(handle, made, body)
        return Response(reply.body, reply.status, {k: v for k, v in reply.headers.items() if k != "content-length"})

    return Starlette(routes=[Route("/mcp", endpoint, methods=["GET", "POST", "DELETE"])])


ADAPTERS: list[Adapter] = [whole, few, threaded, routed]


@dataclass
class Wire:
    """What went over the wire, to compare with what was exported."""

    replies: list[Reply]

    def sessions(self) -> set[str | None]:
        return {reply.session_id for reply in self.replies}


async def _post(app: ASGIApp, message: Message, headers: Sequence[tuple[str, str]] = ()) -> Reply:
    """As clients do, with the length of the body."""
    return await post(app, message, [("content-length", str(len(json.dumps(message)))), *headers])


async def _legacy(app: ASGIApp) -> Wire:
    opened = await _post(app, initialize())
    headers = legacy_headers(opened.headers["mcp-session-id"])
    assert (await _post(app, notify("notifications/initialized"), headers)).status == 202
    return Wire([opened, *[await _post(app, call("add", number), headers) for number in (1, 2)]])


async def _modern(app: ASGIApp) -> Wire:
    return Wire([await _post(app, modern("add", number, **ENVELOPE), MODERN_HEADERS) for number in (1, 2, 3)])


def check(seen: Telemetry, wire: Wire) -> None:
    """One server span and one count for each message, all in the one session of the client."""
    assert [reply.status for reply in wire.replies] == [200] * len(wire.replies)
    spans = [span for span in seen.spans() if span.kind is SpanKind.SERVER and not span.name.startswith(NO_REQUEST)]
    assert len(spans) == len(wire.replies), [span.name for span in spans]
    assert {(span.attributes or {}).get("session.id") for span in spans} == wire.sessions()
    assert len(wire.sessions()) == 1
    counts = {dict(names)["mcp.method.name"]: count for names, count in seen.counts(DURATION).items()}
    assert sum(counts.values()) - counts.get("notifications/initialized", 0) == len(wire.replies)
    runtime = current.runtime
    assert runtime is not None
    assert runtime.sessions.local == 1


@asynccontextmanager
async def running(manager: StreamableHTTPSessionManager) -> AsyncGenerator[Handle]:
    async with manager.run():
        yield manager.handle_request


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: adapter.__name__)
@pytest.mark.parametrize("stateless", [True, False], ids=["stateless", "stateful"])
@pytest.mark.parametrize("client", [_legacy, _modern], ids=["legacy", "modern"])
async def test_a_request_in_a_scope_of_an_adapters_own_stays_one_request(
    seen: Telemetry, adapter: Adapter, stateless: bool, client: Callable[[ASGIApp], Awaitable[Wire]]
) -> None:
    async with running(manager_of(server(), stateless=stateless)) as handle:
        wire = await client(MCPMiddleware(adapter(handle)))

    check(seen, wire)


# A request of one's own within another one.


async def _forward(
    client: httpx.AsyncClient | httpx2.AsyncClient, scope: Message, receive: Receive, send: Send
) -> None:
    """Ask another server the very same, with every header."""
    headers = [(name.decode(), value.decode()) for name, value in scope["headers"]]
    answer = await client.post("/mcp", content=await read(receive), headers=headers)
    await respond(send, answer.content, answer.status_code)


@pytest.mark.parametrize("library", [httpx, httpx2], ids=["httpx", "httpx2"])
async def test_a_request_within_the_same_process_is_one_of_its_own(seen: Telemetry, library: Any) -> None:
    async with running(manager_of(server())) as handle:
        client = library.AsyncClient(transport=library.ASGITransport(MCPMiddleware(handle)), base_url="http://host")

        async def gateway(scope: Message, receive: Receive, send: Send) -> None:
            await _forward(client, scope, receive, send)

        reply = await _post(MCPMiddleware(gateway), modern("add", **ENVELOPE), MODERN_HEADERS)

    assert reply.status == 200
    assert sum(seen.counts(DURATION).values()) == 2
    assert len([span for span in seen.spans() if span.name == "tools/call add"]) == 2


@pytest.mark.parametrize("changed", [("user-agent", "gateway/1"), ("host", "inner:1"), ("authorization", "Bearer x")])
async def test_a_scope_with_another_request_is_a_separate_request(seen: Telemetry, changed: tuple[str, str]) -> None:
    name, value = (part.encode() for part in changed)

    async with running(manager_of(server())) as handle:

        async def gateway(scope: Message, receive: Receive, send: Send) -> None:
            headers = [*((k, v) for k, v in scope["headers"] if k != name), (name, value)]
            await _answer(send, await _ask(handle, _made_scope("POST", "/mcp", headers), await read(receive)))

        await _post(MCPMiddleware(gateway), modern("add", **ENVELOPE), MODERN_HEADERS)

    assert sum(seen.counts(DURATION).values()) == 2


async def test_what_comes_from_the_server_is_a_request_of_its_own(seen: Telemetry) -> None:
    """A connection may carry the context of an earlier request, which is still open."""
    async with running(manager_of(server())) as handle:

        async def leaking(scope: Message, receive: Receive, send: Send) -> None:
            reply = await _ask(ObservedApp(handle), _made_scope("POST", "/mcp", scope["headers"]), await read(receive))
            await _answer(send, reply)

        await _post(MCPMiddleware(leaking), modern("add", **ENVELOPE), MODERN_HEADERS)

    assert sum(seen.counts(DURATION).values()) == 2


async def test_a_tool_calling_another_server_makes_a_separate_request(seen: Telemetry) -> None:
    async with running(manager_of(server("inner"))) as inner:
        outer = server("outer")

        @outer.tool()
        async def relay() -> int:  # pyright: ignore[reportUnusedFunction]
            headers = [("content-length", "0"), *MODERN_HEADERS]
            reply = await post(MCPMiddleware(inner), modern("add", 2, **ENVELOPE), headers)
            return reply.status

        async with running(manager_of(outer)) as handle:
            headers = [("mcp-protocol-version", MODERN), ("mcp-method", "tools/call"), ("mcp-name", "relay")]
            await _post(MCPMiddleware(handle), modern("relay", arguments={}, **ENVELOPE), headers)

    spans = {span.name: span for span in seen.spans() if span.kind is SpanKind.SERVER and "POST" not in span.name}
    assert set(spans) == {"tools/call relay", "tools/call add"}
    assert sum(seen.counts(DURATION).values()) == 2


# Transports that are not the SDK's.


class Connection:
    """Memory streams into `Server.run`, which knows nothing of the requests."""

    def __init__(self, made: MCPServer, group: TaskGroup) -> None:
        self._waiting: dict[Any, anyio.Event] = {}
        self._answers: dict[Any, Message] = {}
        self._incoming, taken = anyio.create_memory_object_stream[Any](10)
        answered, self._outgoing = anyio.create_memory_object_stream[Any](10)
        lowlevel = made._lowlevel_server  # pyright: ignore[reportPrivateUsage]
        group.start_soon(lowlevel.run, taken, answered, lowlevel.create_initialization_options())
        group.start_soon(self._deliver)

    async def _deliver(self) -> None:
        async for sent in self._outgoing:
            message = sent.message.model_dump(by_alias=True, exclude_none=True, mode="json")
            if (key := message.get("id")) in self._waiting:
                self._answers[key] = message
                self._waiting[key].set()

    async def ask(self, body: bytes) -> Message | None:
        """Send one message into the streams, and wait for its answer."""
        message = jsonrpc_message_adapter.validate_json(body)
        key = getattr(message, "id", None)
        if key is not None:
            self._waiting[key] = anyio.Event()
        await self._incoming.send(SessionMessage(message))
        if key is None:
            return None
        await self._waiting[key].wait()
        del self._waiting[key]
        return self._answers.pop(key)


Open = Callable[[], Connection]


async def _reply(send: Send, answer: Message | None, headers: Sequence[tuple[str, str]] = ()) -> None:
    await (respond(send, b"", 202) if answer is None else respond(send, answer, 200, headers))


def older(connect: Open) -> ASGIApp:
    """One server for all, started before the first request."""
    connection = connect()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await _reply(send, await connection.ask(await read(receive)))

    return app


def of_each_session(connect: Open) -> ASGIApp:
    """A server for each session, started by its first request."""
    sessions: dict[str, Connection] = {}

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        body = await read(receive)
        claimed = dict(scope["headers"]).get(b"mcp-session-id", b"").decode() or f"session-{len(sessions)}"
        if claimed not in sessions:
            sessions[claimed] = connect()
        await _reply(send, await sessions[claimed].ask(body), [("mcp-session-id", claimed)])

    return app


def behind_a_route(connect: Open) -> ASGIApp:
    """A function behind a route."""
    inner = older(connect)

    async def endpoint(asked: Request) -> Response:
        reply = await _ask(inner, asked.scope, await asked.body())
        return Response(reply.body, reply.status, {k: v for k, v in reply.headers.items() if k != "content-length"})

    return Starlette(routes=[Route("/mcp", endpoint, methods=["POST"])])


def half_by_hand(connect: Open) -> ASGIApp:
    """Answers `ping` itself, so that its path seems to be that of a server without an SDK."""
    inner = older(connect)

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        body = await read(receive)
        asked = json.loads(body)
        if asked["method"] == "ping":
            await respond(send, {"jsonrpc": "2.0", "id": asked["id"], "result": {}})
        else:
            await _answer(send, await _ask(inner, scope, body))

    return app


TRANSPORTS = [older, of_each_session, behind_a_route, half_by_hand]


@asynccontextmanager
async def transported(make: Callable[[Open], ASGIApp]) -> AsyncGenerator[ASGIApp]:
    async with anyio.create_task_group() as group:
        yield MCPMiddleware(make(partial(Connection, server(), group)))
        group.cancel_scope.cancel()


async def _pinged(app: ASGIApp) -> Wire:
    wire = await _legacy(app)
    headers = legacy_headers(wire.replies[0].headers["mcp-session-id"])
    for number in (11, 12):
        wire.replies.append(await _post(app, ask("ping", number), headers))
        wire.replies.append(await _post(app, call("add", number + 10), headers))
    return wire


@pytest.mark.parametrize("make", TRANSPORTS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("client", [_legacy, _pinged, _modern], ids=["legacy", "pinged", "modern"])
async def test_a_message_over_another_transport_has_its_one_span(
    seen: Telemetry, make: Callable[[Open], ASGIApp], client: Callable[[ASGIApp], Awaitable[Wire]]
) -> None:
    async with transported(make) as app:
        wire = await client(app)

    check(seen, wire)
    tools = [span for span in seen.spans() if span.name == "tools/call add"]
    assert {span.instrumentation_scope.name for span in tools if span.instrumentation_scope} == {"mcp-python-sdk"}


async def test_calls_of_two_sessions_with_one_id_each_have_their_own_session(seen: Telemetry) -> None:
    async with transported(of_each_session) as app:
        opened = [await _post(app, initialize()) for _ in range(2)]
        headers = [legacy_headers(reply.headers["mcp-session-id"]) for reply in opened]
        replies = await asyncio.gather(*(_post(app, call("meet", 1), each) for each in headers))

    spans = [span for span in seen.spans() if span.name == "tools/call meet"]
    found = [(span.attributes or {}).get("session.id") for span in spans]
    assert sorted(map(str, found)) == sorted(str(reply.session_id) for reply in replies) == ["session-0", "session-1"]


async def test_an_uncertain_call_keeps_only_its_native_span(seen: Telemetry) -> None:
    made = server()
    async with anyio.create_task_group() as group:
        apps = [MCPMiddleware(older(partial(Connection, made, group))) for _ in range(2)]
        message = modern("meet", 1, **ENVELOPE)
        headers = [("mcp-protocol-version", MODERN), ("mcp-method", "tools/call"), ("mcp-name", "meet")]
        replies = await asyncio.gather(
            *(_post(app, message, [*headers, ("authorization", f"Bearer {app}")]) for app in apps)
        )
        group.cancel_scope.cancel()

    assert [reply.status for reply in replies] == [200, 200]
    spans = [span for span in seen.spans() if span.kind is SpanKind.SERVER]
    assert [span.instrumentation_scope and span.instrumentation_scope.name for span in spans] == ["mcp-python-sdk"] * 2
    assert [(span.attributes or {}).get("session.id") for span in spans] == [None, None]
    assert sum(seen.counts(DURATION).values()) == 2
