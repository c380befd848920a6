"""What unit tests share: providers in memory, a runtime on them, and an ASGI server made of lists.

The server side of ASGI is played by `request`, which hands an app its messages
and keeps what the app sends. Nothing here looks into the package: it is driven
as any server would drive it, and seen as any back end would see it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import anyio
import pytest
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs import export as log_export
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Sampler

from otel_mcp.types import ASGIApp as App
from otel_mcp.types import Message, Receive, Send

Headers = Iterable[tuple[str, str]]

IN_MEMORY_LOGS: Final[Any] = getattr(
    log_export, "InMemoryLogRecordExporter", getattr(log_export, "InMemoryLogExporter", None)
)
"""Before OpenTelemetry 1.39 it had another name."""
PATIENCE: Final = 5
"""Seconds after which a test that hangs fails."""
CLIENT_INFO: Final = "io.modelcontextprotocol/clientInfo"
MODERN: Final = "2026-07-28"


@dataclass
class Metric:
    """One metric as a reader sees it."""

    unit: str
    kind: str
    points: dict[frozenset[tuple[str, Any]], Any]
    """By attributes: the value, or for a histogram (count, sum)."""
    bounds: tuple[float, ...] = ()


class Telemetry:
    """Everything that one runtime exports."""

    def __init__(self, sampler: Sampler | None = None) -> None:
        self.span_exporter = InMemorySpanExporter()
        self.tracer_provider = TracerProvider(sampler=sampler) if sampler is not None else TracerProvider()
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self.span_exporter))
        self.reader = InMemoryMetricReader()
        self.meter_provider = MeterProvider([self.reader])
        self.log_exporter = IN_MEMORY_LOGS()
        self.logger_provider = LoggerProvider()
        self.logger_provider.add_log_record_processor(log_export.SimpleLogRecordProcessor(self.log_exporter))

    def metrics(self) -> dict[str, Metric]:
        """All metrics by name. Collecting them also records whatever has finished."""
        data = self.reader.get_metrics_data()
        found: dict[str, Metric] = {}
        for resource in data.resource_metrics if data is not None else ():
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    points: dict[frozenset[tuple[str, Any]], Any] = {}
                    bounds: tuple[float, ...] = ()
                    for point in metric.data.data_points:
                        value: Any
                        if isinstance(point, HistogramDataPoint):
                            value, bounds = (point.count, point.sum), tuple(point.explicit_bounds)
                        else:
                            value = getattr(point, "value", None)
                        points[frozenset((point.attributes or {}).items())] = value
                    kind = type(metric.data).__name__
                    if kind == "Sum":
                        kind = "Counter" if getattr(metric.data, "is_monotonic", False) else "UpDownCounter"
                    found[metric.name] = Metric(metric.unit or "", kind, points, bounds)
        return found

    def points(self, name: str) -> list[tuple[dict[str, Any], Any]]:
        """The points of one metric as (attributes, value)."""
        metric = self.metrics().get(name)
        return [(dict(attributes), value) for attributes, value in metric.points.items()] if metric else []

    def counts(self, name: str) -> dict[frozenset[tuple[str, Any]], int]:
        """The counts of one histogram by attributes."""
        return {frozenset(attributes.items()): value[0] for attributes, value in self.points(name)}

    def spans(self) -> list[ReadableSpan]:
        """Every span that has ended, in the order in which they began."""
        self.metrics()
        return sorted(self.span_exporter.get_finished_spans(), key=lambda span: span.start_time or 0)

    def span(self) -> ReadableSpan:
        """The one span that has ended."""
        (span,) = self.spans()
        return span

    def events(self) -> list[Message]:
        """Every log record as name and attributes."""
        records = [data.log_record for data in self.log_exporter.get_finished_logs()]
        return [{"name": record.event_name, "attributes": dict(record.attributes or {})} for record in records]

    def shut_down(self) -> None:
        self.tracer_provider.shutdown()
        self.meter_provider.shutdown()
        self.logger_provider.shutdown()

    def everything(self) -> str:
        """All that has been exported, as one text to look for secrets in."""
        spans = [span.to_json() for span in self.spans()]
        data = self.reader.get_metrics_data()
        logs = [str(vars(data.log_record)) for data in self.log_exporter.get_finished_logs()]
        return "\n".join([*spans, data.to_json() if data is not None else "", *logs])


def described(span: ReadableSpan) -> Message:
    """A span as a dictionary to compare, without its own ids and times."""
    scope = span.instrumentation_scope
    return {
        "name": span.name,
        "kind": span.kind.name,
        "scope": scope.name if scope is not None else None,
        "parent": f"{span.parent.span_id:016x}" if span.parent is not None else None,
        "attributes": dict(span.attributes or {}),
        "status": (span.status.status_code.name, span.status.description),
        "events": [event.name for event in span.events],
        "links": [f"{link.context.span_id:016x}" for link in span.links],
    }


def trace_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.trace_id:032x}"


def id_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.span_id:016x}"


@dataclass
class Reply:
    """What the server got from the app for one request."""

    messages: list[Message] = field(default_factory=list[Message])
    error: BaseException | None = None
    """What the app raised."""

    @property
    def status(self) -> int:
        return next(message["status"] for message in self.messages if message["type"] == "http.response.start")

    @property
    def headers(self) -> dict[str, str]:
        start = next(message for message in self.messages if message["type"] == "http.response.start")
        return {name.decode(): value.decode() for name, value in start["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(
            message.get("body", b"") for message in self.messages if message["type"] == "http.response.body"
        )

    @property
    def session_id(self) -> str | None:
        """The session, as we tell it to proxies and people."""
        return self.headers.get("x-session-id")


def make_scope(
    method: str = "POST",
    path: str = "/mcp",
    headers: Headers = (),
    *,
    query: str = "",
    client: tuple[str, int] | None = ("127.0.0.1", 50_000),
) -> Message:
    """The scope of an HTTP request, as uvicorn makes it."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers],
        "client": client,
        "server": ("127.0.0.1", 8000),
    }


JSON_HEADERS: Final = (
    ("host", "127.0.0.1:8000"),
    ("user-agent", "unit/1"),
    ("accept", "application/json, text/event-stream"),
    ("content-type", "application/json"),
)


async def request(
    app: App,
    scope: Message,
    chunks: Sequence[bytes] = (b"",),
    *,
    left: anyio.Event | None = None,
    patience: float = PATIENCE,
) -> Reply:
    """Serve one request: hand the app its messages, and keep what it sends and raises.

    Args:
        app: the app.
        scope: the request.
        chunks: its body, in pieces.
        left: set when the client leaves; without it the disconnect comes after the last byte, as uvicorn has it.
        patience: seconds after which the test fails.
    """
    reply = Reply()
    waiting = [
        {"type": "http.request", "body": chunk, "more_body": number < len(chunks)}
        for number, chunk in enumerate(chunks, 1)
    ]
    over = left or anyio.Event()

    async def receive() -> Message:
        if waiting:
            return waiting.pop(0)
        await over.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        reply.messages.append(dict(message))
        if left is None and message["type"] == "http.response.body" and not message.get("more_body", False):
            over.set()

    with anyio.fail_after(patience):
        try:
            await app(scope, receive, send)
        except Exception as error:
            reply.error = error
    return reply


async def post(
    app: App,
    message: Any,
    headers: Headers = (),
    *,
    chunks: Sequence[bytes] | None = None,
    path: str = "/mcp",
    query: str = "",
    client: tuple[str, int] | None = ("127.0.0.1", 50_000),
    left: anyio.Event | None = None,
    patience: float = PATIENCE,
) -> Reply:
    """Post a JSON-RPC message."""
    body = message if isinstance(message, bytes) else json.dumps(message).encode()
    scope = make_scope("POST", path, [*JSON_HEADERS, *headers], query=query, client=client)
    return await request(app, scope, [body] if chunks is None else chunks, left=left, patience=patience)


async def get(app: App, headers: Headers = (), path: str = "/mcp") -> Reply:
    """Open the stream of a session, and take what comes until the app ends it."""
    return await request(app, make_scope("GET", path, [("accept", "text/event-stream"), *headers]))


async def delete(app: App, headers: Headers = (), path: str = "/mcp") -> Reply:
    """End a session, as a client does."""
    return await request(app, make_scope("DELETE", path, headers))


async def read(receive: Receive) -> bytes:
    """What an app does to get its request body."""
    body = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return body
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return body


async def respond(
    send: Send,
    payload: object = b"",
    status: int = 200,
    headers: Headers = (),
    *,
    content_type: str = "application/json",
) -> None:
    """What an app does to answer at once."""
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    start = [("content-type", content_type), ("content-length", str(len(body))), *headers]
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [(name.encode(), value.encode()) for name, value in start],
        }
    )
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def stream(send: Send, chunks: Iterable[bytes], headers: Headers = (), status: int = 200) -> None:
    """What an app does to answer with an event stream, each chunk a message of its own."""
    start = [("content-type", "text/event-stream"), *headers]
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [(name.encode(), value.encode()) for name, value in start],
        }
    )
    for chunk in chunks:
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def event(payload: object) -> bytes:
    """One event of a stream."""
    return b"event: message\r\ndata: " + json.dumps(payload, ensure_ascii=False).encode() + b"\r\n\r\n"


def call(tool: str = "add", request_id: object = 1, *, meta: Mapping[str, Any] | None = None, **params: Any) -> Message:
    """A ``tools/call`` request."""
    full: Message = {"name": tool, "arguments": {"a": 1}, **params}
    if meta is not None:
        full["_meta"] = dict(meta)
    return {"jsonrpc": "2.0", "id": request_id, "method": "tools/call", "params": full}


def ask(method: str, request_id: object = 1, **params: Any) -> Message:
    """A request of any method."""
    return {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}


def notify(method: str, **params: Any) -> Message:
    """A notification."""
    return {"jsonrpc": "2.0", "method": method, "params": params}


def initialize(request_id: object = 0, version: str = "2025-11-25", name: str = "unit-client") -> Message:
    """The first message of a legacy client."""
    return ask(
        "initialize",
        request_id,
        protocolVersion=version,
        capabilities={},
        clientInfo={"name": name, "version": "9"},
    )


def modern(tool: str = "add", request_id: object = 1, client: str = "unit-client", **meta: Any) -> Message:
    """A tool call of the revision of 2026-07-28."""
    return call(tool, request_id, meta={CLIENT_INFO: {"name": client, "version": "9"}, **meta})


MODERN_HEADERS: Final = (("mcp-protocol-version", MODERN), ("mcp-method", "tools/call"), ("mcp-name", "add"))


def legacy_headers(session_id: str, version: str = "2025-11-25") -> list[tuple[str, str]]:
    """What a legacy client sends after ``initialize``."""
    return [("mcp-session-id", session_id), ("mcp-protocol-version", version)]


OK: Final[Message] = {"content": [{"type": "text", "text": "3"}], "isError": False}
FAILED: Final[Message] = {"content": [{"type": "text", "text": "secret reason"}], "isError": True}


def result(request_id: object = 1, value: object = None) -> Message:
    """A JSON-RPC result."""
    return {"jsonrpc": "2.0", "id": request_id, "result": OK if value is None else value}


def error(code: int, request_id: object = 1, message: str = "secret reason") -> Message:
    """A JSON-RPC error."""
    return {"jsonrpc": "2.0", "id": request_id, "error": {"code": code, "message": message}}


def initialized(request_id: object = 0, version: str = "2025-11-25") -> Message:
    """The answer to ``initialize``."""
    return result(
        request_id, {"protocolVersion": version, "capabilities": {}, "serverInfo": {"name": "s", "version": "1"}}
    )


class Server:
    """A scripted MCP server: answers each method with what it was given, in the way of its mode.

    Stateful servers give out a session id at ``initialize`` and refuse every other id.
    """

    def __init__(
        self, results: Mapping[str, Message] | None = None, *, session_id: str | None = None, sse: bool = False
    ) -> None:
        self.results = dict(results or {})
        self.session_id = session_id
        self.sse = sse
        self.scopes: list[Message] = []

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        said = dict(scope["headers"]).get(b"mcp-session-id", b"").decode("latin-1")
        body = await read(receive)
        message = json.loads(body) if body else {}
        own = [("mcp-session-id", self.session_id)] if self.session_id is not None else []
        method = message.get("method")
        if self.session_id is not None and method != "initialize" and said != self.session_id:
            await respond(send, error(-32600, None), 404)
        elif scope["method"] != "POST":
            await respond(send, b"", 200 if own else 405, own)
        elif "id" not in message:
            await respond(send, b"", 202, own)
        else:
            answer = {"jsonrpc": "2.0", "id": message["id"], **self._answer(method)}
            await (stream(send, [event(answer)], own) if self.sse else respond(send, answer, 200, own))

    def _answer(self, method: str | None) -> Message:
        if method in self.results:
            return self.results[method]
        if method == "initialize":
            return {"result": {"protocolVersion": "2025-11-25", "capabilities": {}}}
        return {"result": {"tools": [{"name": "add"}]} if method == "tools/list" else OK}


async def bare(app: App, scope: Message, chunks: Sequence[bytes] = (b"",)) -> Reply:
    """What a server gets from the app without us."""
    return await request(app, dict(scope), chunks)


class Clock:
    """The time that requests are measured by: Unix time and the process's own counter, stopped."""

    def __init__(self, now: float = 1_750_000_000.0) -> None:
        self.now = now
        """Unix seconds."""

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Have every module that has been loaded measure by this clock."""
        from otel_mcp.model.call import Exchange

        for name, module in list(sys.modules.items()):
            if name.startswith("otel_mcp") and hasattr(module, "perf_counter"):
                monkeypatch.setattr(module, "perf_counter", lambda: self.now - 1_000_000.0)
        made = Exchange.__init__

        def init(exchange: Exchange, *args: Any, **kwargs: Any) -> None:
            made(exchange, *args, **kwargs)
            exchange.started, exchange.started_ns = self.now - 1_000_000.0, self.now_ns

        monkeypatch.setattr(Exchange, "__init__", init)

    @property
    def now_ns(self) -> int:
        return round(self.now * 1e6) * 1000


ADDED: Final = frozenset({b"mcp-session-id", b"x-session-id"})


def without_added_headers(messages: list[Message], reference: list[Message]) -> list[Message]:
    """The messages, less the headers that we may append; everything else must be as in `reference`."""
    cleaned: list[Message] = []
    for number, message in enumerate(messages):
        if message["type"] == "http.response.start" and number < len(reference) and "headers" in message:
            given = list(reference[number].get("headers", ()))
            headers = list(message["headers"])
            extra = headers[len(given) :]
            if headers[: len(given)] == given and all(name in ADDED for name, _ in extra):
                message = {**message, "headers": given}
                if "headers" not in reference[number]:
                    del message["headers"]
        cleaned.append(message)
    return cleaned
