"""Requests of a server to its client within a call: measured from its stream to the POST of the answer."""

from __future__ import annotations

import json
import os
from typing import Any

import anyio
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind

from otel_mcp import MCPMiddleware, semconv
from otel_mcp.exchange import outgoing
from otel_mcp.model.call import SCOPE_KEY, Exchange
from otel_mcp.runtime import Runtime
from otel_mcp.types import Message, Receive, Send
from tests.support.answers import Server, initialized, result
from tests.support.asgi import delete, event, get, post, read, respond, stream
from tests.support.messages import call, initialize, legacy_headers
from tests.support.providers import Telemetry

pytestmark = pytest.mark.anyio
ELICIT: Message = {"message": "secret question", "requestedSchema": {}}
DURATION = semconv.METRIC_CLIENT_DURATION


class Asking:
    """A server whose tool asks its client on the stream of the call, and waits for the answer."""

    def __init__(self, *methods: str, waits: bool = True, meta: Message | None = None) -> None:
        self.methods, self.waits, self.meta = methods, waits, meta
        self.asked, self.answered = anyio.Event(), anyio.Event()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        message = json.loads(await read(receive))
        if message.get("method") == "initialize":
            await respond(send, initialized(), headers=[("mcp-session-id", "own")])
        elif "method" not in message:
            self.answered.set()
            await respond(send, b"", 202)
        else:
            start = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
            await send(start)
            for number, method in enumerate(self.methods):
                params: Message = {**ELICIT, **({"_meta": self.meta} if self.meta is not None else {})}
                request = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
                await send({"type": "http.response.body", "body": event(request), "more_body": True})
            self.asked.set()
            if self.waits:
                await self.answered.wait()
            await send({"type": "http.response.body", "body": event(result(message["id"])), "more_body": False})


async def play(server: Asking, runtime: Runtime, *answers: Message, session_id: str = "own") -> Any:
    """Call the tool, and send these answers while it runs; returns the app."""
    app = MCPMiddleware(server, runtime)
    await post(app, initialize())
    async with anyio.create_task_group() as group:
        group.start_soon(post, app, call(), legacy_headers("own"))
        await server.asked.wait()
        for answer in answers:
            await post(app, {"jsonrpc": "2.0", **answer}, legacy_headers(session_id))
        server.answered.set()
    return app


async def ask_a_client(runtime: Runtime) -> None:
    """Ask a client that cannot answer."""
    await play(Asking("roots/list"), runtime, {"id": 0, "error": {"code": -32601, "message": "no"}})


def asked(telemetry: Telemetry) -> list[tuple[str, str | None, int]]:
    """What was measured: method, error and how often."""
    points = telemetry.points(DURATION)
    found = [(by["mcp.method.name"], by.get("error.type"), count) for by, (count, _) in points]
    return sorted(found, key=lambda each: (each[0], each[1] or ""))


async def test_a_request_lasts_from_the_stream_to_the_answer(runtime: Runtime, telemetry: Telemetry) -> None:
    await play(Asking("elicitation/create"), runtime, {"id": 0, "result": {"action": "decline"}})

    assert asked(telemetry) == [("elicitation/create", None, 1)]
    ((by, (_, seconds)),) = telemetry.points(DURATION)
    assert by["mcp.protocol.version"] == "2025-11-25"
    assert 0 < seconds < 60


async def test_an_error_of_the_client_is_the_error_of_the_request(runtime: Runtime, telemetry: Telemetry) -> None:
    methods = ("sampling/createMessage", "roots/list")
    error = {"code": -32601, "message": "secret"}
    await play(Asking(*methods), runtime, {"id": 1, "error": error}, {"id": 0, "result": {}}, {"id": 7, "result": {}})

    assert asked(telemetry) == [("roots/list", "-32601", 1), ("sampling/createMessage", None, 1)]


async def test_what_nobody_answers_ends_with_its_call(runtime: Runtime, telemetry: Telemetry) -> None:
    await play(Asking("elicitation/create", "ping", waits=False), runtime)

    assert asked(telemetry) == [("elicitation/create", outgoing.UNANSWERED, 1)]
    assert not runtime.exchanges.asked


async def test_an_answer_in_another_session_is_none(runtime: Runtime, telemetry: Telemetry) -> None:
    await play(Asking("elicitation/create"), runtime, {"id": 0, "result": {}}, session_id="other")

    assert asked(telemetry) == [("elicitation/create", outgoing.UNANSWERED, 1)]


async def test_an_error_without_id_answers_nothing(runtime: Runtime, telemetry: Telemetry) -> None:
    unread = {"id": None, "error": {"code": -32700, "message": "secret"}}
    await play(Asking("elicitation/create"), runtime, unread, {"id": 0, "result": {}})

    assert asked(telemetry) == [("elicitation/create", None, 1)]


class Streaming:
    """A server that asks on the stream of the session, and repeats what it has asked on each one that is opened."""

    def __init__(self) -> None:
        self.opened, self.ends = anyio.Event(), anyio.Event()
        self.late: list[Any] = []
        """Ids of calls that it leaves open, and answers at the end of the stream."""

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        message = json.loads(await read(receive) or b"{}")
        question = event({"jsonrpc": "2.0", "id": 0, "method": "elicitation/create", "params": ELICIT})
        start = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
        if scope["method"] == "GET":
            await send(start)
            await send({"type": "http.response.body", "body": question, "more_body": True})
            self.opened.set()
            await self.ends.wait()
            late = b"".join(event(result(request_id)) for request_id in self.late)
            await send({"type": "http.response.body", "body": late, "more_body": False})
        elif message.get("method") == "initialize":
            await respond(send, initialized(), headers=[("mcp-session-id", "own")])
        elif message.get("method") == "tools/call" and not self.late:
            self.late.append(message["id"])
            await stream(send, [question])
        else:
            await respond(send, result(message["id"]) if "method" in message else b"", 200)


@pytest.mark.parametrize("end", ["stream", "session", "time", "exit"])
async def test_what_nobody_answers_on_a_stream_is_given_up(
    runtime: Runtime, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    server = Streaming()
    server.late.append(9)
    app = MCPMiddleware(server, runtime)
    await post(app, initialize())
    async with anyio.create_task_group() as group:
        group.start_soon(get, app, legacy_headers("own"))
        await server.opened.wait()
        assert asked(telemetry) == []
        assert set(runtime.exchanges.asked) == {"own"}
        if end == "session":
            await delete(app, legacy_headers("own"))
        elif end == "time":
            monkeypatch.setattr(outgoing, "PATIENCE", 0.0)
        elif end == "exit":
            runtime.exchanges.close()
        if end != "stream":
            assert asked(telemetry) == [("elicitation/create", outgoing.UNANSWERED, 1)]
            await post(app, {"jsonrpc": "2.0", "id": 0, "result": {}}, legacy_headers("own"))
            assert not runtime.exchanges.asked
        server.ends.set()

    assert asked(telemetry) == [("elicitation/create", outgoing.UNANSWERED, 1)]
    assert not runtime.exchanges.asked


async def test_other_sessions_are_read_as_if_nobody_was_asked(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_of, given_up, fed = list[str | None](), list[object](), list[str | None]()
    exchanges, of, feed = runtime.exchanges, runtime.exchanges.inflight.outgoing, runtime.exchanges.requests.feed

    def feeding(exchange: Exchange, *piece: Any, more: bool) -> Any:
        fed.append(exchange.transport_id)
        return feed(exchange, *piece, more=more)

    async def at_sdk(scope: Message, receive: Receive, send: Send) -> None:
        scope[SCOPE_KEY].at_sdk = scope[SCOPE_KEY].confirmed = True
        await Server()(scope, receive, send)

    monkeypatch.setattr(of, "read", lambda exchange, body: read_of.append(exchange.transport_id))
    monkeypatch.setattr(of, "ended", lambda session, call: given_up.append(session))
    monkeypatch.setattr(exchanges.requests, "feed", feeding)
    of.waiting["asked"] = {}

    for session in ("other", "asked"):
        await post(MCPMiddleware(at_sdk, runtime), call(), legacy_headers(session))

    assert read_of == given_up == fed == ["asked"]


async def test_a_question_repeated_on_a_stream_stays_that_of_its_call(runtime: Runtime, telemetry: Telemetry) -> None:
    server = Streaming()
    app = MCPMiddleware(server, runtime)
    await post(app, initialize())
    await post(app, call(), legacy_headers("own"))
    first = list(runtime.exchanges.asked["own"].values())
    async with anyio.create_task_group() as group:
        group.start_soon(get, app, [*legacy_headers("own"), ("last-event-id", "1")])
        await server.opened.wait()
        assert list(runtime.exchanges.asked["own"].values()) == first
        await post(app, {"jsonrpc": "2.0", "id": 0, "result": {}}, legacy_headers("own"))
        server.ends.set()

    assert asked(telemetry) == [("elicitation/create", None, 1)]
    spans = telemetry.span_exporter.get_finished_spans()
    (span,) = (span for span in spans if span.kind is SpanKind.CLIENT)
    assert span.parent is not None
    assert not runtime.exchanges.asked


async def test_a_question_on_a_stream_belongs_to_the_only_waiting_call(runtime: Runtime, telemetry: Telemetry) -> None:
    server = Streaming()
    app = MCPMiddleware(server, runtime)
    await post(app, initialize())
    await post(app, call(), legacy_headers("own"))
    await post(app, {"jsonrpc": "2.0", "id": 0, "result": {}}, legacy_headers("own"))
    async with anyio.create_task_group() as group:
        group.start_soon(get, app, legacy_headers("own"))
        await server.opened.wait()
        (request,) = runtime.exchanges.asked["own"].values()
        assert request.call is next(iter(runtime.exchanges.inflight.waiting))
        server.ends.set()

    assert not runtime.exchanges.asked


async def test_very_many_questions_stay_few_here(
    runtime: Runtime, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outgoing, "_MOST_OF_ONE", 3)
    await play(Asking(*["roots/list"] * 10), runtime, {"id": 9, "result": {}})

    assert asked(telemetry) == [("roots/list", None, 1), ("roots/list", outgoing.UNANSWERED, 9)]


@pytest.mark.parametrize("meta", [None, {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}])
async def test_a_request_is_a_span_beneath_its_call_once(
    runtime: Runtime, telemetry: Telemetry, meta: Message | None
) -> None:
    await play(Asking("elicitation/create", meta=meta), runtime, {"id": 0, "error": {"code": -1, "message": "secret"}})
    telemetry.metrics()

    spans = telemetry.span_exporter.get_finished_spans()
    (whole,) = (span for span in spans if (span.attributes or {}).get("mcp.method.name") == "tools/call")
    made = [span for span in spans if span.kind is SpanKind.CLIENT]
    if meta is not None:
        assert made == []  # A library has opened one, whose context the request carries.
        return
    (span,) = made
    assert span.parent is not None
    assert (span.name, span.parent.span_id) == ("elicitation/create", id_number(whole))
    assert not span.status.is_ok
    attributes = dict(span.attributes or {})
    assert (attributes["error.type"], attributes["session.id"]) == ("-1", "own")
    assert attributes["rpc.response.status_code"] == "-1"
    assert "secret" not in str(attributes)
    assert (whole.start_time or 0) <= (span.start_time or 0) <= (span.end_time or 0) <= (whole.end_time or 0)


def id_number(span: ReadableSpan) -> int:
    context = span.get_span_context()
    assert context is not None
    return context.span_id


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_has_asked_nobody(runtime: Runtime) -> None:
    inflight = runtime.exchanges.inflight
    rounds: Any = inflight.rounds
    tables: Any = (inflight.outgoing.waiting, rounds._asked, rounds._looks, rounds._notes, rounds._noted)
    for table in tables:
        table["own"] = {}

    if not (child := os.fork()):
        os._exit(sum(map(len, tables)))

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert [len(table) for table in tables] == [1] * 5
    for table in tables:
        table.clear()
