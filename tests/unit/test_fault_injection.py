"""Telemetry may fail, requests may not: each function of ours raises in turn, and the server notices nothing."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import anyio
import pytest

import otel_mcp
import otel_mcp.integrations.patching  # pyright: ignore[reportUnusedImport]  # Runs some functions of ours only once.
from otel_mcp import MCPMiddleware, current
from otel_mcp.runtime import Runtime
from otel_mcp.telemetry import propagation
from otel_mcp.types import ASGIApp, Message, Receive, Send
from tests.support.answers import FAILED, error, initialized, result
from tests.support.asgi import (
    JSON_HEADERS,
    Reply,
    event,
    make_scope,
    read,
    request,
    respond,
    stream,
    without_added_headers,
)
from tests.support.messages import MODERN_HEADERS, ask, call, initialize, legacy_headers, modern, notify
from tests.support.providers import Telemetry

pytestmark = pytest.mark.anyio

SHELL = {
    "otel_mcp.current.look",
    "otel_mcp.current.serve",
    "otel_mcp.api.MCPMiddleware.__init__",
    "otel_mcp.api.MCPMiddleware.__call__",
    "otel_mcp.exchange.handler.ExchangeHandler.run",
    "otel_mcp.exchange.handler.ExchangeHandler.receive",
    "otel_mcp.exchange.handler.ExchangeHandler.send",
    "otel_mcp.exchange.handler.ExchangeHandler._forward",
    "otel_mcp.exchange.handler.ExchangeHandler._slow_resume",
    "otel_mcp.exchange.handler.ExchangeHandler._as_outside",
    "otel_mcp.telemetry.exporters.Watch.__call__",
}
"""What the guards themselves stand in: these only put guarded parts together."""


CODEX = ("user-agent", "codex")
PARENT = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"
OURS = str(Path(otel_mcp.__file__).parent)
KEPT_ELSEWHERE = ("otel_mcp.settings.Settings._", "otel_mcp.settings._split")
"""Validators: pydantic has taken them up, so they cannot be replaced."""


class Injected(Exception):
    """What every function of ours raises, one after the other."""


@dataclass(frozen=True)
class Target:
    """A function, where it is kept, and as what."""

    name: str
    owner: Any
    attribute: str
    held: Any
    code: CodeType


def functions() -> Iterator[Target]:
    """Every function and method of the package that can be replaced."""
    for module_name, module in sorted(sys.modules.items()):
        if not module_name.startswith("otel_mcp") or module_name == "otel_mcp.guard":
            continue
        for name, value in sorted(vars(module).items()):
            if getattr(value, "__module__", None) != module_name:
                continue
            if isinstance(value, FunctionType) and value.__code__.co_filename.startswith((OURS, "<string>")):
                # Not what a decorator of `contextlib` made: its code is that of every other one.
                yield Target(f"{module_name}.{name}", module, name, value, value.__code__)
            elif inspect.isclass(value) and not getattr(value, "_is_protocol", False):
                yield from methods(f"{module_name}.{name}", value)


def methods(name: str, owner: type) -> Iterator[Target]:
    for attribute, held in sorted(vars(owner).items()):
        function = held.fget if isinstance(held, property) else getattr(held, "__func__", held)
        if isinstance(function, FunctionType) and function.__code__.co_filename.startswith((OURS, "<string>")):
            yield Target(f"{name}.{attribute}", owner, attribute, held, function.__code__)


def break_it(target: Target, monkeypatch: pytest.MonkeyPatch, error: type[Exception] | None = None) -> None:
    """Have a function raise wherever it is known."""

    def broken(*_: object, **__: object) -> Any:
        raise (error or Injected)(target.name)

    replacement: Any = property(broken) if isinstance(target.held, property) else broken
    monkeypatch.setattr(target.owner, target.attribute, replacement)
    if isinstance(target.held, FunctionType):
        for module_name, module in list(sys.modules.items()):
            if module_name.startswith("otel_mcp"):
                for name, value in list(vars(module).items()):
                    if value is target.held:
                        monkeypatch.setattr(module, name, replacement)


async def server(scope: Message, receive: Receive, send: Send) -> None:
    """Answers in as many ways as there are."""
    if scope["type"] == "lifespan":
        for _ in range(2):
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
        return
    body = await read(receive)
    own = [("mcp-session-id", "own")] if scope["path"] == "/stateful" else []
    if scope["method"] == "GET" and scope["path"] == "/sse":
        await stream(send, [b"event: endpoint\r\ndata: /messages?session_id=q\r\n\r\n", event(result(5))])
        return
    if scope["method"] != "POST":
        await (stream(send, [b": ping\n\n"], own) if scope["method"] == "GET" else respond(send, b"", 200, own))
        return
    message = json.loads(body)
    single = message if isinstance(message, dict) else message[0]
    method, name = single.get("method"), single.get("params", {}).get("name")
    if "id" not in single or scope["path"] == "/messages":
        await respond(send, b"", 202, own)
    elif method == "initialize":
        await respond(send, initialized(single["id"]), 200, own)
    elif name == "refused":
        await respond(send, error(-32600, None), 404)
    elif name == "huge":
        await respond(send, result(single["id"], {"text": "x" * 300_000}))
    elif isinstance(message, list):
        await respond(send, [result(entry["id"]) for entry in message])
    elif name == "fail":
        await stream(send, [event(notify("notifications/progress")), event(result(single["id"], FAILED))], own)
    elif method == "tools/list":
        await respond(send, result(single["id"], {"tools": [{"name": "add"}]}), 200, own)
    else:
        await respond(send, result(single["id"]), 200, own)


def exchanges() -> list[tuple[Message, bytes]]:
    """Requests of every kind, each as scope and body."""
    legacy = legacy_headers("own")
    posts: list[tuple[str, Any, Any]] = [
        ("/stateful", initialize(), ()),
        ("/stateful", notify("notifications/initialized"), legacy),
        ("/stateful", ask("tools/list", 1), legacy),
        ("/stateful", call(request_id=2), legacy),
        ("/stateful", call("fail", request_id=3), [*legacy, ("traceparent", PARENT)]),
        ("/stateful", [call(request_id=4), call(request_id=5)], legacy),
        ("/stateful", notify("notifications/cancelled", requestId=2), legacy),
        ("/stateful", {"jsonrpc": "2.0", "id": 1, "result": {}}, legacy),
        ("/stateful", call("refused"), legacy_headers("a{b}")),
        ("/mcp", initialize(), ()),
        ("/mcp", call(), legacy_headers("unknown")),
        ("/mcp", call(), legacy_headers("om1.forged.forged")),
        ("/mcp", ask("prompts/get", name="greet"), [("mcp-protocol-version", "2025-11-25"), ("x-session-id", "x")]),
        ("/mcp", modern(), [*MODERN_HEADERS, ("authorization", "Bearer e30.eyJzdWIiOiJhIn0.c2ln")]),
        ("/mcp", modern("huge"), [*MODERN_HEADERS, ("x-forwarded-for", "203.0.113.9"), ("cookie", "mcp_session=c")]),
        ("/mcp", modern(baggage="session.id=s", traceparent=PARENT), MODERN_HEADERS),
        ("/mcp", call(meta={"threadId": "t", "x-codex-turn-metadata": '{"session_id":"s"}'}), [CODEX]),
        ("/messages", call(request_id=5), ()),
    ]
    made = [
        (
            make_scope("POST", path, [*JSON_HEADERS, *headers], query="session_id=q" if path == "/messages" else ""),
            json.dumps(message).encode(),
        )
        for path, message, headers in posts
    ]
    accept = ("accept", "text/event-stream")
    made.insert(-1, (make_scope("GET", "/sse", [accept]), b""))
    made += [
        (make_scope("GET", "/stateful", [accept, *legacy]), b""),
        (make_scope("DELETE", "/stateful", legacy), b""),
        (make_scope("POST", "/other", [("content-type", "application/json")]), b'{"id": 7}'),
    ]
    return made


async def serve(app: ASGIApp) -> list[Reply]:
    """All requests, some of them again, then the end of the server."""
    replies: list[Reply] = []
    again = [3, 4, 13]  # Calls of an app that is known by now to have no seams: their spans begin earlier.
    for scope, body in [*exchanges(), *(exchanges()[number] for number in again)]:
        half = len(body) // 2
        replies.append(await request(app, scope, [body[:half], body[half:]]))
    incoming = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    sent: list[Message] = []

    async def receive() -> Message:
        return incoming.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    with anyio.fail_after(60):
        await app({"type": "lifespan", "asgi": {"version": "3.0"}}, receive, send)
    replies.append(Reply(sent))
    return replies


def configure(telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the next request make a runtime of its own."""
    monkeypatch.setattr(current, "runtime", None)
    vars(telemetry.log_exporter).pop("export", None)  # It may be watched since the last time.
    monkeypatch.setattr(propagation, "_known", propagation._Fields(None, {}, frozenset()))  # pyright: ignore[reportPrivateUsage]
    current.configure(
        tracer_provider=telemetry.tracer_provider,
        meter_provider=telemetry.meter_provider,
        logger_provider=telemetry.logger_provider,
        service_name="unit",
        session_sources="conversation,header,cookie,inferred",
        trusted_proxies="127.0.0.0/8",
        store_content=True,
        capture_content=True,
        tenant="header:user-agent",
        session_span=True,
        audit="events",
        audit_caller="claim:sub",
        flush_calls=4,
        flush_interval=60,  # What a timer does depends on how long the machine takes.
    )


async def dismantle(runtime: Runtime | None) -> None:
    """End what `configure` began; it may still hold what was broken."""
    if runtime is not None:
        with suppress(Injected):
            await runtime.shut_down()
        with suppress(Injected):
            runtime.disable()


async def test_a_raising_function_of_ours_is_counted_and_changes_no_message(
    telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch, failures: Any
) -> None:
    reference = [reply.messages for reply in await serve(server)]
    seen: set[CodeType] = set()
    configure(telemetry, monkeypatch)
    sys.setprofile(lambda frame, kind, _: seen.add(frame.f_code) if kind == "call" else None)
    try:
        replies = await serve(MCPMiddleware(server))
    finally:
        sys.setprofile(None)
    await dismantle(current.runtime)
    assert differences(replies, reference) == []
    assert failures == {}

    targets = [
        target
        for target in functions()
        if target.code in seen and target.name not in SHELL and not target.name.startswith(KEPT_ELSEWHERE)
    ]
    problems: list[str] = []
    for target in targets:
        failures.clear()
        with monkeypatch.context() as broken:
            configure(telemetry, broken)
            break_it(target, broken)
            replies = await serve(MCPMiddleware(server))
            counted, made = sum(failures.values()), vars(current)["runtime"]
        await dismantle(made)
        problems += [f"{target.name}: {problem}" for problem in differences(replies, reference)]
        if not counted:
            problems.append(f"{target.name}: not counted")
    assert len(targets) > 150
    assert problems == [], "\n".join(problems)


def differences(replies: list[Reply], reference: list[list[Message]]) -> list[str]:
    """What a server got that it would not have got without us."""
    found: list[str] = []
    for number, (reply, messages) in enumerate(zip(replies, reference, strict=True)):
        if reply.error is not None:
            found.append(f"request {number} raised {reply.error!r}")
        elif without_added_headers(reply.messages, messages) != messages:
            found.append(f"request {number} was answered otherwise")
    return found
