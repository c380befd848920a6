"""docs/reference.md says what is emitted: all of it, and nothing else."""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, get_args

import anyio
import anyio.to_thread
import httpx2
import pytest
from mcp.server.mcpserver import Context, MCPServer

import otel_mcp
from docs import conventions, generate, signals, source
from grafana.boards import contract
from otel_mcp import MCPInstrumentor, current, guard, semconv
from otel_mcp.model.delta import SessionDelta, SessionFacts
from otel_mcp.model.session import CAUSES, WITHIN, Refusal
from otel_mcp.model.state import EndReason
from otel_mcp.runtime import Runtime
from otel_mcp.settings import PREFIX, Settings
from otel_mcp.telemetry import http_span
from otel_mcp.types import Message
from otel_mcp.wire.jsonrpc import Failure
from otel_mcp.wire.tasks import STATUSES
from tests.support import registry
from tests.support.asgi import JSON_HEADERS, announcing, delete, get, post, respond
from tests.support.messages import CLIENT_INFO, MODERN, ask, call, initialize, legacy_headers
from tests.support.providers import Telemetry
from tests.support.registry import Emitted
from tests.support.rounds import Person
from tests.support.rounds import ask as ask_for_input
from tests.support.sdk_tasks import TasksExtension
from tests.support.tasks import TaskServer
from tests.support.waiting import wait_until
from tests.unit.exchange.test_outgoing import ask_a_client

pytestmark = pytest.mark.anyio

PACKAGE: Final = Path(otel_mcp.__file__).parent
SOURCES: Final = "\n".join(path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py")))
MINE: Final = semconv.SCOPE


def test_the_reference_page_is_up_to_date() -> None:
    assert generate.reference() == generate.PAGE.read_text(encoding="utf-8"), "run: python -m docs.generate"


def test_the_registry_is_up_to_date() -> None:
    written = {path: path.read_text(encoding="utf-8") for path in conventions.FOLDER.iterdir()}
    assert conventions.registry() == written, "run: python -m docs.generate"


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_modules_that_a_page_names_exist(page: str) -> None:
    folders = "|".join(path.name for path in PACKAGE.iterdir() if path.is_dir())
    named = re.findall(rf"(?<![\w/])(?:{folders})/\w+(?:/\w+)?", (PACKAGE.parent / page).read_text(encoding="utf-8"))
    assert named
    assert [name for name in named if not any(PACKAGE.glob(f"{name}*"))] == []


def test_values_in_the_registry_are_those_of_the_code() -> None:
    described = {getattr(semconv, constant): text for constant, text in source.texts(semconv).items()}
    assert set(conventions.MEMBERS[semconv.SESSION_END_REASON]) == set(get_args(EndReason))
    assert set(conventions.MEMBERS[semconv.SESSION_INTERRUPTED_CAUSE]) == set(CAUSES)
    assert set(conventions.MEMBERS[semconv.SESSION_RETURNED_WITHIN]) == {name for name, _ in WITHIN}
    assert set(conventions.MEMBERS[semconv.FAILURE]) == set(get_args(Failure))
    assert set(conventions.MEMBERS[semconv.TASK_STATUS]) == STATUSES | {semconv.OTHER}
    for name, members in conventions.MEMBERS.items():
        assert [value for value in members if f'"{value}"' not in SOURCES or f"`{value}`" not in described[name]] == []


def test_instruments_are_those_that_dashboards_count_on() -> None:
    kinds = {"observable_counter": "counter", "observable_gauge": "gauge", "observable_up_down_counter": "gauge"}
    made = {(each.name, each.unit, kinds.get(each.kind, each.kind)) for each in source.instruments()}
    assert made == {(metric.name, metric.unit, metric.kind) for metric in contract.METRICS}


def test_every_name_of_the_package_is_used() -> None:
    """A constant for what nobody emits would be a promise."""
    unused = [name for name in vars(semconv) if name.isupper() and f"semconv.{name}" not in SOURCES]
    assert [name for name in unused if name not in {"OTHER", "TOOL_ERROR"}] == []


def test_every_variable_that_is_read_is_listed() -> None:
    # The doctor speaks of variables that others read.
    doctor = PACKAGE / "cli" / "doctor"
    texts = [path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py") if doctor not in path.parents]
    named = {name for text in texts for name in re.findall(r'"(OTEL_[A-Z_]+)"', text)} - {PREFIX}
    assert named == set(signals.STANDARD_VARIABLES)
    assert set(source.texts(Settings)) == set(Settings.model_fields)


def test_every_header_that_is_read_is_listed() -> None:
    """Header names are lower-case bytes in the sources; a few other words are bytes as well."""
    words = {"bearer", "c", "data", "e", "endpoint", "event", "identity", "l", "message", "r", "session"}
    words |= {"claimed", "foreign", "later", "nothing"}  # Answers of our scripts in Redis.
    named = set(re.findall(r'\bb"([a-z][a-z-]*)"', SOURCES)) - words
    listed = set(signals.REQUEST_HEADERS) | set(signals.RESPONSE_HEADERS)
    assert named - signals.PLUMBING == listed
    assert named >= signals.PLUMBING


async def test_a_server_emits_exactly_what_reference_and_registry_list(valkey_url: str) -> None:
    emitted = await _use_everything(valkey_url)

    on_metrics = {name: _names(map(dict, metric.points)) for name, metric in emitted.metrics.items()}
    assert on_metrics == {metric.name: set(metric.attributes) for metric in contract.METRICS}
    assert _names(emitted.messages) == set(signals.MESSAGE.attributes)
    assert _names(emitted.sessions) == set(signals.SESSION.attributes)
    assert _names(emitted.beneath) == set(signals.BENEATH.attributes)
    assert _names(emitted.records) == set(signals.RECORD.attributes)
    # Of HTTP, nothing fails here.
    assert _names(emitted.http) == set(signals.HTTP.attributes) - {semconv.ERROR_TYPE}
    for event in signals.EVENTS:
        found = (attributes for name, attributes in emitted.events if f"`{name}`" == event.name)
        assert _names(found) == set(event.attributes)
    assert registry.problems(registry.load(), emitted) == set()


async def broken(*_: object) -> None:
    """An observer that fails, to be counted."""
    raise ValueError


async def _use_everything(redis_url: str) -> Emitted:
    """Have a real server do all that makes something to be emitted."""
    telemetry, tasks = Telemetry(), TaskServer()
    async with _server(telemetry, redis_url, tasks) as client:
        session_id = (await _post(client, initialize(name="unit-probe"))).headers["mcp-session-id"]
        legacy = legacy_headers(session_id)
        await _post(client, call("add", 1, arguments={"a": 1, "b": 2}), legacy)
        await _post(client, call("crash", 2, arguments={}), legacy)
        await _post(client, call("missing", 3, arguments={}), legacy)
        await _post(client, call("add", 8, arguments={"a": "one"}), legacy)
        await _post(client, call("add", 9, arguments={"a": 1, "b": 2}), legacy)
        await _post(client, ask("prompts/get", 4, name="greet"), legacy)
        await _post(client, ask("tools/list", 11), legacy)
        await _post(client, ask("resources/read", 5, uri="memo://none"), legacy)
        await _struggle(client, legacy)
        successor = await _successor(client)
        await _struggle(client, legacy_headers(successor))
        assert await anyio.to_thread.run_sync(
            lambda: wait_until(lambda: [event["name"] for event in telemetry.events()].count("session.finding") == 2)
        )
        for ended in (session_id, successor):
            await client.delete("/mcp", headers=dict(legacy_headers(ended)))
        # A host's conversation wins over everything.
        meta = {CLIENT_INFO: {"name": "claude-code", "version": "2"}, "openai/session": "v1/abc"}
        modern = [("mcp-protocol-version", MODERN), ("mcp-method", "tools/call"), ("mcp-name", "add")]
        meta |= {"io.modelcontextprotocol/protocolVersion": MODERN, "io.modelcontextprotocol/clientCapabilities": {}}
        await _post(client, call("add", 7, arguments={"a": 1, "b": 2}, meta=meta), modern)
        await _post(client, call("deploy", 12, arguments={}, meta=meta), [*modern[:2], ("mcp-name", "deploy")])
        await _post(client, ask("tools/list", 13, _meta=meta), [modern[0], ("mcp-method", "tools/list")])
        await _post(client, ask("tools/list", 10, _meta=meta), modern)  # Not what its header says.
        for credential in ("verified", "any"):
            alone = {CLIENT_INFO: {"name": "desk", "version": "2"}, **{name: meta[name] for name in list(meta)[2:]}}
            headers = [*modern, ("authorization", f"Bearer {credential}")]
            await _post(client, call("add", 14, arguments={"a": 1, "b": 2}, meta=alone), headers)
        await _post(client, ask("tools/call", 15), legacy)  # Of no tool.
        for headers, credential in ((legacy, "barred"), (modern, "barred-too")):
            await _post(client, call("add", 16), [*headers, ("authorization", f"Bearer {credential}")])
        for number, status in ((14, "working"), (15, "completed")):
            await _post(client, call("build", number, arguments={}, meta=meta), [*modern[:2], ("mcp-name", "build")])
            tasks.put("task-1", status)
            about = ask("tasks/get", number + 10, taskId="task-1", _meta=meta)
            await _post(client, about, [modern[0], ("mcp-method", "tasks/get"), ("mcp-name", "task-1")])
        holder = await _hold_a_stream()
        runtime = current.runtime
        assert runtime is not None
        asked = Person(client)
        await asked.approve()
        await asked.call(a=2)
        runtime.recorder.drain()
        for ended in (successor, asked.session_id):
            await runtime.sessions.delete(ended)
        await _cut(runtime)
        followed = getattr(runtime.sessions, "_flusher").tasks  # noqa: B009
        await followed.follow()
        await followed.count()
        await ask_a_client(runtime)
        # The shared number is not shown before it is known.
        assert await anyio.to_thread.run_sync(lambda: wait_until(lambda: runtime.sessions.active is not None))
        # Nor is it shown while the store is slow, as it may be on a busy machine at the very end.
        before = _read(telemetry)
        await runtime.shut_down()
        emitted = _read(telemetry)
        emitted.metrics = {**before.metrics, **emitted.metrics}
        del holder
    telemetry.shut_down()
    return emitted


async def _hold_a_stream() -> object:
    """Open a stream of a server that keeps sessions, and end both; returns that server."""
    app: Any = MCPServer("held", log_level="ERROR").streamable_http_app()
    async with app.router.lifespan_context(app), anyio.create_task_group() as group:
        headers = legacy_headers((await post(app, initialize())).headers["mcp-session-id"])
        opened = anyio.Event()
        group.start_soon(get, announcing(app, opened, "status"), [("host", "127.0.0.1:8000"), *headers])
        await opened.wait()
        await delete(app, [*JSON_HEADERS, *headers])
    return app


async def _cut(runtime: Runtime) -> None:
    """Have a server refuse the session of another process, which then goes on: this one gives out no ids of its own."""
    facts = SessionFacts("elsewhere", time.time() - 60, 3600, "agent", "host", "2", MODERN, "header", previous_id="old")
    facts.synthetic_type, facts.tenant = "test", "acme"

    async def serve() -> None:
        runtime.sessions.submit(SessionDelta(facts, time.time(), requests=1))
        await runtime.sessions.flush()

    await serve()
    runtime.sessions.refused(Refusal(facts.session_id, time.time(), None, served=False))
    await getattr(runtime.sessions, "_flusher").interruptions.ask(everything=True)  # noqa: B009
    await serve()


@asynccontextmanager
async def _server(telemetry: Telemetry, redis_url: str, tasks: TaskServer) -> AsyncGenerator[httpx2.AsyncClient]:
    """A server of the SDK that gives out no session ids, instrumented as by `opentelemetry-instrument`."""
    server = MCPServer("shop", log_level="ERROR", extensions=[TasksExtension(tasks)])
    tracer = telemetry.tracer_provider.get_tracer("shop")
    logger = telemetry.logger_provider.get_logger("shop")

    @server.tool()
    async def add(a: int, b: int) -> int:
        with tracer.start_as_current_span("adding"):
            logger.emit(body="adding")
            return a + b

    @server.tool()
    async def crash() -> int:
        raise KeyError("secret")

    @server.tool()
    async def deploy() -> str:
        for former in (add, crash):
            server.remove_tool(former.__name__)
        server.add_tool(add, description="Adds two numbers.")
        server.add_tool(greet)
        return "x" * 60_000

    @server.tool()
    async def approve(ctx: Context[Any], a: int) -> Any:
        return ask_for_input(ctx.request_state, answered=bool(ctx.input_responses))

    @server.tool()
    async def build() -> str:
        raise AssertionError  # It begins a task.

    @server.prompt()
    async def greet() -> str:
        return "hello"

    MCPInstrumentor().instrument(
        tracer_provider=telemetry.tracer_provider,
        meter_provider=telemetry.meter_provider,
        logger_provider=telemetry.logger_provider,
        redis_url=redis_url,
        redis_prefix="reference:",
        session_span=True,
        capture_content=True,
        http_span="on",
        observers=(f"{__name__}:broken",),
        tenant="path:1",
        audit="events",
        audit_caller="claim:email",
    )
    try:
        app = server.streamable_http_app(stateless_http=True, json_response=True)
        app.add_middleware(_Barring)

        async def authenticating(scope: Any, receive: Any, send: Any) -> None:
            if _credential(scope) in (b"Bearer verified", b"Bearer barred"):
                token = SimpleNamespace(client_id="desk", claims={"email": "ann@example.com"})
                scope["user"] = SimpleNamespace(is_authenticated=True, access_token=token)
            await app(scope, receive, send)

        transport = httpx2.ASGITransport(app=authenticating)
        client = httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000")
        async with server.session_manager.run(), client:
            yield client
    finally:
        MCPInstrumentor().uninstrument()
        guard.failures.clear()


def _credential(scope: Any) -> bytes:
    return dict(scope["headers"]).get(b"authorization", b"")


class _Barring:
    """Refuses some callers, as an app does that reads its scopes, before anybody reads the request."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        is_barred = scope["type"] == "http" and _credential(scope).startswith(b"Bearer barred")
        await (respond(send, b"", 403) if is_barred else self._app(scope, receive, send))


async def _successor(client: httpx2.AsyncClient) -> str:
    """An id that nobody gave out gets a successor, unless the store is late in saying that it does not know it."""
    for number in range(50):
        strange = f"nobodys-{number}"
        answer = await _post(client, call("add", 6, arguments={"a": 1, "b": 2}), legacy_headers(strange))
        if answer.headers["x-session-id"] != strange:
            return answer.headers["x-session-id"]
    raise AssertionError("no unknown id got a successor")


async def _struggle(client: httpx2.AsyncClient, headers: Any) -> None:
    """Ask for the same impossible thing again and again."""
    for number in range(4):
        await _post(client, call("add", 20 + number, arguments={"a": "one"}), headers)


async def _post(client: httpx2.AsyncClient, message: Message, headers: Any = ()) -> httpx2.Response:
    own = {"content-type": "application/json", "accept": "application/json, text/event-stream", **dict(headers)}
    return await client.post("/mcp", content=json.dumps(message), headers=own)


def _names(carried: Iterable[registry.Attributes]) -> set[str]:
    return {name for attributes in carried for name in attributes}


def _read(telemetry: Telemetry) -> Emitted:
    emitted = Emitted(telemetry.metrics())
    for span in telemetry.spans():
        assert span.instrumentation_scope is not None
        if span.instrumentation_scope.name == http_span.SCOPE:
            into = emitted.http
        elif span.instrumentation_scope.name != MINE:
            into = emitted.beneath
        else:
            into = emitted.sessions if span.name == semconv.SPAN_SESSION else emitted.messages
        into.append(dict(span.attributes or {}))
    for event in telemetry.events():
        if event["name"]:
            emitted.events.append((event["name"], event["attributes"]))
        else:
            emitted.records.append(event["attributes"])
    return emitted
