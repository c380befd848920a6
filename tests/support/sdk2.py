"""A stand-in for the SDK 2.x: classes with the names that are patched, and a tracer with the SDK's scope."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextvars import Context
from types import ModuleType, SimpleNamespace
from typing import Any

from opentelemetry.trace import SpanKind, Tracer

from otel_mcp.types import Message, Receive, Send
from tests.support.asgi import read, respond
from tests.support.providers import Telemetry

Handler = Callable[[Any], Awaitable[Any]]


class OpenTelemetryMiddleware:
    """The span middleware of the SDK 2.x: one server span for a message, ended before the answer is sent.

    FastMCP's says less.
    """

    def __init__(self, telemetry: Telemetry, scope: str = "mcp-python-sdk") -> None:
        self.tracer = telemetry.tracer_provider.get_tracer(scope)
        self.says_all = scope == "mcp-python-sdk"

    async def __call__(self, ctx: Any, call_next: Handler) -> Any:
        target = (ctx.params or {}).get("name")
        name = f"{ctx.method} {target}" if target else ctx.method
        with otel.otel_span(self.tracer, name, self.attributes(ctx, target)):
            return await call_next(ctx)

    def attributes(self, ctx: Any, target: str | None) -> dict[str, str]:
        said = {"mcp.method.name": ctx.method}
        if self.says_all:
            said["mcp.protocol.version"] = ctx.protocol_version
            if ctx.request_id is not None:
                said["jsonrpc.request.id"] = str(ctx.request_id)
            if ctx.method == "tools/call":
                said["gen_ai.operation.name"] = "execute_tool"
        if target:
            said["gen_ai.tool.name"] = target
        return said


def otel_span(tracer: Tracer, name: str, attributes: dict[str, str]) -> Any:
    return tracer.start_as_current_span(name, kind=SpanKind.SERVER, attributes=attributes)


otel: Any = ModuleType("fake_otel")
"""A module like ``mcp.server._otel``."""
otel.OpenTelemetryMiddleware, otel.otel_span = OpenTelemetryMiddleware, otel_span


def make_runner() -> ModuleType:
    """A module like ``mcp.server.runner``."""

    class ServerRunner:
        def __init__(self, server: Any) -> None:
            self.server = server

        def _compose_server_middleware(self, inner: Handler) -> Handler:
            chain = inner
            for entry in reversed(self.server.middleware):

                async def link(ctx: Any, entry: Any = entry, chain: Handler = chain) -> Any:
                    return await entry(ctx, chain)

                chain = link
            return chain

    module = ModuleType("fake_runner")
    module.__dict__["ServerRunner"] = ServerRunner
    return module


class Sdk2:
    """An ASGI app on the stand-in of the SDK 2.x.

    Args:
        runner: the module with its runner.
        middleware: what lies around the handlers.
        handler: serves every message.
        session_id: the session that its connection has.
    """

    def __init__(
        self, runner: ModuleType, middleware: list[Any], handler: Handler, session_id: str | None = None
    ) -> None:
        self.middleware = middleware
        self.runner = runner.ServerRunner(self)
        self.handler = handler
        self.session_id = session_id
        self.headers: list[tuple[str, str]] = []
        """Further headers of its answers."""
        self.context: Context | None = None
        """Where its handlers run, if not in the task of the request."""

    def get_tool_input_schema(self, name: str) -> object:
        return {} if name == "add" else None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        message = json.loads(await read(receive))
        connection = SimpleNamespace(session_id=self.session_id)
        ctx = SimpleNamespace(
            request=SimpleNamespace(scope=scope),
            request_id=message.get("id"),
            method=message["method"],
            params=message.get("params"),
            protocol_version=dict(scope["headers"]).get(b"mcp-protocol-version", b"2026-07-28").decode(),
            session=SimpleNamespace(_connection=connection),
        )
        serving = self.runner._compose_server_middleware(self.handler)(ctx)
        if self.context is not None:
            serving = self.context.run(asyncio.ensure_future, serving)
        value = await serving
        headers = [*self.headers, *([("mcp-session-id", self.session_id)] if self.session_id else [])]
        if "id" in message:
            await respond(send, {"jsonrpc": "2.0", "id": message["id"], "result": value}, 200, headers)
        else:
            await respond(send, b"", 202, headers)
