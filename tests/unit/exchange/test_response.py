"""Answers that begin before the SDK knows them, as its streams do."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from otel_mcp import MCPMiddleware, current
from otel_mcp.integrations import http, tools
from otel_mcp.integrations import mcp_v2 as mcp2
from otel_mcp.integrations.patching import Patches
from otel_mcp.model.call import SCOPE_KEY
from otel_mcp.runtime import Runtime
from otel_mcp.types import Message, Receive, Send
from tests.support.answers import FAILED, OK
from tests.support.asgi import JSON_HEADERS, event, post, read, respond, stream
from tests.support.messages import call, initialize, legacy_headers
from tests.support.providers import Telemetry, described, id_of
from tests.support.sdk2 import make_runner

pytestmark = pytest.mark.anyio

STREAM = ("content-type", "text/event-stream")
OWN = ("mcp-session-id", "own")
SIZE = "otel_mcp.tool.result.size"
DURATION = "mcp.server.operation.duration"


def written(request_id: object, result: Message) -> bytes:
    """An event as the SDK writes it."""
    reply = {"jsonrpc": "2.0", "id": request_id, "result": result}
    return b"event: message\r\ndata: " + json.dumps(reply, separators=(",", ":")).encode() + b"\r\n\r\n"


class Streaming:
    """The SDK's ASGI class: it opens the stream, then runs the handler, then says what came of it."""

    def __init__(self, runner: ModuleType) -> None:
        self.session_manager = SimpleNamespace(stateless=False)
        self.middleware: list[Any] = []
        self.status = 200
        self.headers: list[tuple[str, str]] = [STREAM, OWN]
        self.result: Message = OK
        self.before: list[bytes] = []
        """Events ahead of the answer."""
        self.breaks_off = False
        """The stream ends before anything is on it; the answer will come on another one."""
        self._runner = runner.ServerRunner(self)
        self.handle: Callable[[Any], Awaitable[Message]] = self.answer

    async def answer(self, _: Any) -> Message:
        return self.result

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        message = json.loads(await read(receive))
        headers = [(name.encode(), value.encode()) for name, value in self.headers]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        if self.breaks_off:
            return await send({"type": "http.response.body", "body": b"", "more_body": False})
        ctx = SimpleNamespace(
            request=SimpleNamespace(scope=scope),
            request_id=message["id"],
            method=message["method"],
            params=message.get("params"),
            protocol_version="2025-11-25",
            session=SimpleNamespace(_connection=SimpleNamespace(session_id="own")),
        )

        result = await self._runner._compose_server_middleware(self.handle)(ctx)
        for chunk in (*self.before, written(message["id"], result)):
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


@pytest.fixture
def streaming(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> Iterator[Streaming]:
    """That class, patched at both seams."""
    monkeypatch.setattr(current, "runtime", runtime)
    runner, module, patches = make_runner(), ModuleType("fake_manager"), Patches()
    made = type("StreamableHTTPASGIApp", (Streaming,), dict(Streaming.__dict__))
    module.__dict__["StreamableHTTPASGIApp"] = made
    module.__dict__["StreamableHTTPSessionManager"] = type("Manager", (), {})
    mcp2.runner(runner, patches)
    http.session_manager(module, patches)
    yield made(runner)
    patches.restore()


def measured(telemetry: Telemetry, name: str) -> list[tuple[str | None, Any]]:
    """Error types and values of tool calls, of one histogram."""
    return [
        (attributes.get("error.type"), value)
        for attributes, value in telemetry.points(name)
        if attributes.get("mcp.method.name", "tools/call") == "tools/call"
    ]


async def test_a_stream_names_its_known_session_and_its_call_is_measured(
    streaming: Streaming, telemetry: Telemetry
) -> None:
    await post(streaming, initialize())
    replies = [await post(streaming, call(request_id=number), legacy_headers("own")) for number in (1, 2)]

    assert [reply.session_id for reply in replies] == ["own", "own"]
    data = [reply.body.split(b"data: ")[1].strip() for reply in replies]
    assert measured(telemetry, SIZE) == [(None, (2, sum(map(len, data))))]


async def test_another_clients_answer_on_the_stream_does_not_end_the_call(
    streaming: Streaming, telemetry: Telemetry
) -> None:
    await post(streaming, initialize())
    streaming.before = [written(999, {"content": ["x" * 5000]})]
    reply = await post(streaming, call(request_id=1), legacy_headers("own"))

    data = reply.body.split(b"data: ")[2].strip()
    assert measured(telemetry, SIZE) == [(None, (1, len(data)))]


async def test_a_stream_names_the_conversation_of_its_call(streaming: Streaming, telemetry: Telemetry) -> None:
    await post(streaming, initialize())
    chats = ("a", "b", "a", None)
    metas = [{"openai/session": chat} if chat else {"progressToken": 1} for chat in chats]
    replies = [await post(streaming, call(meta=meta), legacy_headers("own")) for meta in metas]

    spans = [span for span in telemetry.spans() if span.name.startswith("tools/call")]
    assert [reply.session_id for reply in replies] == [(span.attributes or {})["session.id"] for span in spans]
    assert len({reply.session_id for reply in replies[:2]} - {"own"}) == 2
    assert replies[2].session_id == replies[0].session_id


async def test_a_stream_that_answers_initialize_begins_the_session_it_names(
    streaming: Streaming, runtime: Runtime
) -> None:
    first = await post(streaming, initialize(), JSON_HEADERS)
    again = await post(streaming, initialize(), legacy_headers("own"))

    assert (first.session_id, again.session_id) == ("own", "own")
    assert runtime.resolver.registry.get("own") is not None


@pytest.mark.parametrize(
    ("status", "headers", "told", "sized"),
    [
        (200, [STREAM, OWN], "own", True),
        (200, [STREAM], "own", True),
        (200, [STREAM, ("mcp-session-id", "another")], "own", True),
        (200, [("Content-Type", "text/event-stream")], "own", True),
        (200, [STREAM, ("content-encoding", "gzip")], "own", False),
        (400, [STREAM, OWN], None, True),
    ],
    ids=["own id", "no id", "another id", "mixed case", "encoded", "an error"],
)
async def test_a_stream_names_its_session_with_success_alone(
    streaming: Streaming,
    telemetry: Telemetry,
    status: int,
    headers: list[tuple[str, str]],
    told: str | None,
    sized: bool,
) -> None:
    await post(streaming, initialize())
    streaming.status, streaming.headers = status, headers
    reply = await post(streaming, call(), legacy_headers("own"))

    assert reply.session_id == told
    assert [value[0] for _, value in measured(telemetry, DURATION)] == [1]
    assert [value[0] for _, value in measured(telemetry, SIZE)] == ([1] if sized else [])


async def test_a_tool_that_fails_on_a_stream_has_failed(streaming: Streaming, telemetry: Telemetry) -> None:
    await post(streaming, initialize())
    streaming.result = FAILED
    await post(streaming, call(), legacy_headers("own"))

    assert [(error, value[0]) for error, value in measured(telemetry, DURATION)] == [("tool_error", 1)]


async def test_the_exception_class_of_a_tool_is_an_attribute_of_its_call(
    streaming: Streaming, telemetry: Telemetry
) -> None:
    class Tool:
        async def run(self) -> None:
            raise KeyError("secret")

    async def handle(_: Any) -> Message:
        try:
            await Tool().run()
        except KeyError:
            return FAILED
        return OK

    patches, module = Patches(), ModuleType("fake_tools")
    module.__dict__["Tool"] = Tool
    tools.tool_base(module, patches)
    await post(streaming, initialize())
    streaming.handle = handle
    await post(streaming, call(), legacy_headers("own"))
    patches.restore()

    (span,) = [span for span in telemetry.spans() if span.name == "tools/call add"]
    attributes = dict(span.attributes or {})
    assert (attributes["error.type"], attributes["otel_mcp.tool.exception.type"]) == ("tool_error", "KeyError")
    assert "secret" not in telemetry.everything()


async def test_a_stream_that_ends_without_the_answer_leaves_its_call_open(
    streaming: Streaming, runtime: Runtime, telemetry: Telemetry
) -> None:
    await post(streaming, initialize())
    streaming.breaks_off = True
    await post(streaming, call(request_id=7), legacy_headers("own"))

    (found,) = runtime.exchanges.inflight.waiting
    assert (found.id, found.finished) == (7, False)
    assert measured(telemetry, DURATION) == []


async def test_a_late_record_still_lies_beneath_its_requests_span(streaming: Streaming, telemetry: Telemetry) -> None:
    async def answers(_: Any, __: Any) -> Message:
        return OK

    streaming.middleware = [answers]
    tracer = telemetry.tracer_provider.get_tracer("http instrumentation")
    with tracer.start_as_current_span("POST"):
        await post(streaming, call(), legacy_headers("own"))

    by_name = {span.name: span for span in telemetry.spans()}
    assert described(by_name["tools/call add"])["parent"] == id_of(by_name["POST"])


async def test_a_refusal_in_front_of_the_sdk_ends_its_session(
    streaming: Streaming, runtime: Runtime, telemetry: Telemetry
) -> None:
    async def behind(scope: Message, receive: Receive, send: Send) -> None:
        if scope["method"] == "POST" and dict(scope["headers"]).get(b"x-gone"):
            await read(receive)
            await respond(send, b"gone", 404, content_type="text/plain")
        else:
            await streaming(scope, receive, send)

    app = http.ObservedApp(behind)
    await post(app, call(), legacy_headers("own"))  # Its `initialize` was met by another replica.
    await post(app, call(), [*legacy_headers("own"), ("x-gone", "1")])
    await runtime.shut_down()

    ended = [record for record in telemetry.events() if record["name"] == "session.end"]
    assert [record["attributes"]["otel_mcp.session.end.reason"] for record in ended] == ["server_closed"]


async def test_response_headers_of_other_apps_are_not_read(runtime: Runtime) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await read(receive)
        await send({"type": "http.response.start", "status": 200, "headers": [("content-type", "text/plain")]})
        await send({"type": "http.response.body", "body": b"ok", "more_body": False})

    reply = await post(http.ObservedApp(app), {"no": "rpc"}, JSON_HEADERS)

    assert reply.messages[0]["headers"] == [("content-type", "text/plain")]


async def test_what_an_sdk_answers_before_its_handler_belongs_to_the_session(
    runtime: Runtime, telemetry: Telemetry
) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        scope[SCOPE_KEY].at_sdk = True
        message = json.loads(await read(receive))
        if message["method"] == "initialize":
            result = {"protocolVersion": "2025-11-25", "capabilities": {}}
            answer = {"jsonrpc": "2.0", "id": message["id"], "result": result}
            return await respond(send, answer, headers=[("mcp-session-id", "own")])
        refusal = {"jsonrpc": "2.0", "id": message["id"], "error": {"code": -32602, "message": "Invalid parameters"}}
        await stream(send, [event(refusal)])

    watched = MCPMiddleware(app, runtime)
    await post(watched, initialize())
    reply = await post(watched, call(), legacy_headers("own"))

    assert [(span.attributes or {}).get("session.id") for span in telemetry.spans()] == ["own", "own"]
    assert reply.session_id == "own"
