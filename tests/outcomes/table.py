"""Every server, every way to fail: what the span, the metrics and the document say is what the client got."""

from __future__ import annotations

import gc
import gzip
import json
import sys
from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Any, Final
from unittest import mock

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Sampler

from otel_mcp import MCPInstrumentor, current, guard
from tests.outcomes.servers import CODE, major, servers

LEGACY, MODERN = "2025-11-25", "2026-07-28"
CALLERS_FAULT: Final = {-32700, -32600, -32601, -32602, -32002}
NOTHING: Final[Mapping[str, Any]] = {}


@dataclass(frozen=True)
class Case:
    """One request, and how it fails where nothing else is given."""

    name: str
    method: str
    params: Mapping[str, Any] = field(default_factory=dict[str, Any])
    failure: str | None = None
    elsewhere: Mapping[str, str | None] = field(default_factory=dict[str, str | None])
    """By the beginning of the server's name, the longest that fits: how it fails there."""

    def expected(self, server: str) -> str | None:
        fitting = [beginning for beginning in self.elsewhere if server.startswith(beginning)]
        return self.elsewhere[max(fitting, key=len)] if fitting else self.failure


def _call(name: str, tool: str, failure: str | None, arguments: Any = NOTHING, **elsewhere: str | None) -> Case:
    where = {each.replace("_", "-"): kind for each, kind in elsewhere.items()}
    return Case(name, "tools/call", {"name": tool, "arguments": dict(arguments)}, failure, where)


_LIMITED: Final = {"fastmcp3_limiting": "refused", "fastmcp4_limiting": "refused"}
"""After the handshake everything is refused."""
_NOT_ANSWERED: Final = dict.fromkeys(
    ("fastmcp3_answering", "fastmcp4_answering", "fastmcp4_messages", "sdk2_low_within", "sdk2_low_outside")
)
_REFUSED: Final = {
    "fastmcp3_answering": "refused",
    "fastmcp4_answering": "refused",
    "fastmcp4_messages": "refused",
}
_MADE: Final = {"handwritten": "tool", "bare": "tool", "sdk1_low": "tool", "sdk2_low": "tool"}
"""Tools that low-level servers answer for with an error."""
_PROXY: Final = {"fastmcp3_proxy": "tool", "fastmcp4_proxy": "tool"}
"""What the tool behind it does, it passes on."""

CASES: Final = (
    _call("works", "add", None, {"a": 1, "b": 2}, **_LIMITED),
    _call("a made-up name", "made_up", "unknown_tool", **_LIMITED),
    _call("a wrong type", "add", "invalid_arguments", {"a": "x", "b": 2}, **_LIMITED, **_PROXY),
    _call("a missing argument", "add", "invalid_arguments", {"a": 1}, **_LIMITED, **_PROXY),
    _call("a crash", "crash", "exception", **_LIMITED, **_PROXY),
    _call("a validation of the tool's own", "validate", "exception", **_LIMITED, **_PROXY),
    _call("a tool that refuses", "refuse", "tool", **_LIMITED),
    _call("an error of the protocol", "protest", "tool", **_LIMITED, **_PROXY),
    _call("a tool that might be cached", "cached", None, **_LIMITED, **_NOT_ANSWERED, **_MADE),
    _call("a tool that may be denied", "denied", None, **_LIMITED, **_MADE, **_REFUSED),
    _call("a tool that may be limited", "limited", None, **_LIMITED, **_MADE, **_REFUSED),
    _call("a crash that may be mended", "mended", None, **_LIMITED, **_NOT_ANSWERED, **_MADE),
    Case("no name", "tools/call", {"arguments": {}}, "refused"),
    _call("works again", "add", None, {"a": 1, "b": 2}, **_LIMITED),
    Case("a made-up prompt", "prompts/get", {"name": "made_up"}),
    Case("a made-up resource", "resources/read", {"uri": "nope://user:secret@x/y?z=secret"}),
    Case("a listing", "tools/list"),
    Case("a made-up method", "no/such"),
)


OUTSIDE: Final = ("sdk2-low-outside", "a crash that may be mended")
"""The SDK's span has ended when a middleware around it mends what failed: no longer can it be completed."""
UNREAD: Final = {("sdk1-high-gzip", "no name"), ("sdk1-high-gzip", "a made-up method")}
"""What the SDK 1.x refuses before any handler, and a middleware around it compresses: nobody can say how it ended."""


@dataclass
class Seen:
    """One request, with all that came of it."""

    case: Case
    version: str
    """That the two sides agreed on: old servers do not know the newest."""
    status: int
    answer: Mapping[str, Any]
    spans: list[ReadableSpan]
    points: list[dict[str, Any]]
    document: dict[str, Any] | None

    @property
    def code(self) -> int | None:
        return self.answer.get("error", NOTHING).get("code")

    @property
    def is_error(self) -> bool:
        return self.answer.get("result", NOTHING).get("isError", False)


class Telemetry:
    """Providers that keep everything, in the places where the libraries look."""

    def __init__(self, sampler: Sampler | None = None) -> None:
        self.exporter, self.reader = InMemorySpanExporter(), InMemoryMetricReader()
        self.tracers = TracerProvider(sampler=sampler)
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.meters = MeterProvider([self.reader])

    def spans(self) -> list[ReadableSpan]:
        """What has ended since it was asked last."""
        found = list(self.exporter.get_finished_spans())
        self.exporter.clear()
        return found

    def points(self, name: str) -> dict[frozenset[tuple[str, Any]], int]:
        """The counts of a metric, by attributes."""
        data = self.reader.get_metrics_data()
        return {
            frozenset((point.attributes or {}).items()): getattr(point, "count", None) or getattr(point, "value", 0)
            for resource in (data.resource_metrics if data is not None else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        }


@contextmanager
def instrumented(telemetry: Telemetry) -> Generator[None]:
    """This process as under `opentelemetry-instrument`; the libraries' own tracers are those of the telemetry."""
    with ExitStack() as stack:
        if major("mcp") >= 2:
            tracer = telemetry.tracers.get_tracer("mcp-python-sdk")
            stack.enter_context(mock.patch.object(import_module("mcp.shared._otel"), "_tracer", tracer))
        if major("fastmcp") >= 3:
            module = import_module("fastmcp.telemetry")
            get = partial(telemetry.tracers.get_tracer)
            stack.enter_context(mock.patch.object(module, "otel_get_tracer", get))
        guard.failures.clear()
        MCPInstrumentor().instrument(
            tracer_provider=telemetry.tracers, meter_provider=telemetry.meters, http_span="off"
        )
        try:
            yield
        finally:
            MCPInstrumentor().uninstrument()


@asynccontextmanager
async def served(name: str, telemetry: Telemetry) -> AsyncGenerator[Any]:
    with instrumented(telemetry):
        async with servers()[name]() as app:
            yield app


async def post(
    app: Any, message: Mapping[str, Any], headers: Mapping[str, str], path: str = "/mcp"
) -> tuple[int, dict[str, str], Any]:
    """Status, headers and JSON-RPC answer of one request."""
    body = json.dumps(message).encode()
    given = {
        "host": "127.0.0.1:8000",
        "content-length": str(len(body)),
        "content-type": "application/json",
        "accept": "application/json, text/event-stream",
        "accept-encoding": "gzip",
        **headers,
    }
    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.4"}, "http_version": "1.1", "method": "POST",
        "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "",
        "headers": [(key.encode(), value.encode()) for key, value in given.items()],
        "client": ("127.0.0.1", 50_000), "server": ("127.0.0.1", 8000),
    }  # fmt: skip
    waiting = [{"type": "http.request", "body": body, "more_body": False}]
    sent: list[Any] = []

    async def receive() -> Any:
        if waiting:
            return waiting.pop()
        import anyio

        await anyio.sleep_forever()

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    answered = {key.decode(): value.decode() for key, value in sent[0]["headers"]}
    if sent[0]["status"] == 307:  # Before 1.10 the SDK serves /mcp/.
        return await post(app, message, headers, "/mcp/")
    data = b"".join(each.get("body", b"") for each in sent[1:])
    if answered.get("content-encoding") == "gzip":
        data = gzip.decompress(data)
    return int(sent[0]["status"]), answered, _answer_in(data)


def _answer_in(data: bytes) -> Any:
    if data[:1] == b"{":
        return json.loads(data)
    lines = [line[6:] for line in data.splitlines() if line.startswith(b"data: {")]
    return next((found for found in map(json.loads, lines) if "method" not in found), {})


async def run(name: str, era: str, sampler: Sampler | None = None) -> list[Seen]:
    """Every case at one server, in one session."""
    telemetry = Telemetry(sampler)
    seen: list[Seen] = []
    async with served(name, telemetry) as app:
        headers = await _shake_hands(app, era)
        runtime = current.runtime
        assert runtime is not None
        runtime.recorder.drain()
        telemetry.spans()
        counted = telemetry.points("mcp.server.operation.duration")
        documented = 0
        for number, case in enumerate(CASES, 1):
            params = dict(case.params)
            extra: dict[str, str] = dict(headers)
            if era == MODERN:
                params["_meta"] = META
                extra["mcp-method"] = case.method
                if isinstance(target := params.get("name", params.get("uri")), str):
                    extra["mcp-name"] = target
            message = {"jsonrpc": "2.0", "id": number, "method": case.method, "params": params}
            status, answer_headers, answer = await post(app, message, extra)
            now = telemetry.points("mcp.server.operation.duration")
            points = [dict(key) for key, count in now.items() if count != counted.get(key, 0)]
            counted = now
            document = None
            if (session := answer_headers.get("x-session-id")) is not None:
                state = await runtime.sessions.load(session)
                calls = state.tool_calls if state is not None else []
                document = calls[-1].model_dump() if len(calls) > documented else None
                documented = len(calls)
            version = headers["mcp-protocol-version"]
            seen.append(Seen(case, version, status, answer, telemetry.spans(), points, document))
        held = telemetry.points("otel_mcp.transport.sessions")
        assert sum(held.values()) == _sessions_of_managers(), held
        failures = dict(guard.failures)
    assert failures == {}, failures
    return seen


META: Final = {
    "io.modelcontextprotocol/protocolVersion": MODERN,
    "io.modelcontextprotocol/clientInfo": {"name": "table", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}


def _sessions_of_managers() -> int:
    """What the SDK holds in this process, which may serve without it."""
    kind = getattr(sys.modules.get("mcp.server.streamable_http_manager"), "StreamableHTTPSessionManager", ())
    managers: list[Any] = [each for each in gc.get_objects() if issubclass(type(each), kind)]
    return sum(len(manager._server_instances) for manager in managers)


async def _shake_hands(app: Any, era: str) -> dict[str, str]:
    if era == MODERN:
        headers = {"mcp-protocol-version": MODERN}
        listing = {"jsonrpc": "2.0", "id": 0, "method": "tools/list", "params": {"_meta": META}}
        await post(app, listing, {**headers, "mcp-method": "tools/list"})
        return headers
    params = {"protocolVersion": LEGACY, "capabilities": {}, "clientInfo": {"name": "table", "version": "1"}}
    _, answer_headers, answer = await post(
        app, {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}, {}
    )
    headers = {"mcp-protocol-version": answer["result"].get("protocolVersion", LEGACY)}
    if "mcp-session-id" in answer_headers:
        headers["mcp-session-id"] = answer_headers["mcp-session-id"]
    await post(app, {"jsonrpc": "2.0", "method": "notifications/initialized"}, headers)
    await post(app, {"jsonrpc": "2.0", "id": "list", "method": "tools/list"}, headers)
    return headers


def problems(name: str, era: str, seen: Seen) -> list[str]:
    """What does not agree for one request."""
    # A back end in this process serves messages of its own.
    ids = {span.context.span_id for span in seen.spans if span.context is not None}
    ours = [s for s in seen.spans if s.kind.name == "SERVER" and (s.parent is None or s.parent.span_id not in ids)]
    rows: list[Row] = [("the number of server spans", len(ours), 1)]
    if len(ours) == 1 and (name, seen.case.name) != OUTSIDE:
        rows += _identity(seen.version, seen.case, ours[0])
        if (name, seen.case.name) not in UNREAD:
            rows += _outcome(name, seen, ours[0])
    return [
        f"{name} {era}, {seen.case.name}: {row[0]} is {row[1]!r}, not {row[2]!r}" for row in rows if row[1] != row[2]
    ]


Row = tuple[str, object, object]
"""What is compared, what it is, and what it should be."""


def _identity(version: str, case: Case, span: ReadableSpan) -> list[Row]:
    attributes = dict(span.attributes or {})
    target = case.params.get("name")
    rows: list[Row] = [
        ("the name", span.name, f"{case.method} {target}" if target else case.method),
        ("the method", attributes.get("mcp.method.name"), case.method),
        ("the version", attributes.get("mcp.protocol.version"), version),
        ("the presence of an id", "jsonrpc.request.id" in attributes, True),
    ]
    if case.method == "tools/call":
        rows.append(("the tool", attributes.get("gen_ai.tool.name"), target))
        rows.append(("the operation", attributes.get("gen_ai.operation.name"), "execute_tool"))
    if case.method == "prompts/get":
        rows.append(("the prompt", attributes.get("gen_ai.prompt.name"), target))
    if case.method == "resources/read":
        rows.append(("the presence of a resource", "mcp.resource.uri" in attributes, True))
    return rows


def _outcome(name: str, seen: Seen, span: ReadableSpan) -> list[Row]:
    attributes = dict(span.attributes or {})
    error_type, code = _expected_error(seen), None if seen.code is None else str(seen.code)
    rows: list[Row] = [
        ("the type of error", attributes.get("error.type"), error_type),
        ("the status", span.status.status_code.name, "UNSET" if error_type is None else "ERROR"),
        ("the code", attributes.get("rpc.response.status_code"), code),
        ("how it failed", attributes.get("otel_mcp.failure"), seen.case.expected(name)),
        ("the number of points", len(seen.points), 1),
    ]
    for point in seen.points:
        rows.append(("the type of error that is measured", point.get("error.type"), error_type))
        rows.append(("the code that is measured", point.get("rpc.response.status_code"), code))
    if seen.document is not None:
        rows.append(("the failure in the document", seen.document.get("failure"), attributes.get("otel_mcp.failure")))
        rows.append(("the type of error in the document", seen.document.get("error_type"), error_type))
    return rows


def _expected_error(seen: Seen) -> str | None:
    """What the conventions make of the answer."""
    if seen.code is not None:
        return None if seen.code in CALLERS_FAULT else str(seen.code)
    if seen.status >= 400:
        return str(seen.status)
    return "tool_error" if seen.is_error else None


def eras(name: str) -> tuple[str, ...]:
    """The revisions that a server speaks."""
    if name.startswith("sdk2-high-sse"):
        return (LEGACY,)
    return (LEGACY, MODERN) if name.startswith(("sdk2", "fastmcp4", "handwritten", "bare")) else (LEGACY,)


assert CODE not in CALLERS_FAULT
