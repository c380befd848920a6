"""A real server of the SDK answers whatever it is sent as it would without us."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mcp.server.mcpserver import MCPServer
from opentelemetry import propagate
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from otel_mcp import MCPInstrumentor, current, guard
from tests.hostile import strategies as made
from tests.support.asgi import request
from tests.support.providers import Telemetry
from tests.support.sides import assert_sendable, log_lines, scope_of

few = settings(max_examples=50, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))  # pyright: ignore[reportArgumentType]
JSON_HEADERS = [
    (b"host", b"127.0.0.1:8000"),
    (b"content-type", b"application/json"),
    (b"accept", b"application/json, text/event-stream"),
]


def server(*, sse: bool) -> Any:
    """A stateless app whose tools take anything and give it back."""
    mcp = MCPServer("hostile", log_level="CRITICAL")

    @mcp.tool()
    def add(text: Any = None) -> Any:
        return {"text": text}

    @mcp.tool()
    def fail(text: Any = None) -> Any:
        raise ValueError(text)

    return mcp.streamable_http_app(stateless_http=True, json_response=not sse)


@st.composite
def posts(draw: st.DrawFn) -> tuple[Any, bytes]:
    """A request that an SDK server looks into, most of them right but for one thing."""
    headers = list(JSON_HEADERS)
    modern = draw(st.booleans())
    message: Any = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "add", "arguments": {}}}
    params = message["params"]
    wrong = draw(st.sampled_from(["id", "name", "text", "method", "info", "meta", "header", "all"]))
    if wrong == "all":
        message = draw(made.messages())
        params = message.get("params")
    elif wrong == "id":
        message["id"] = draw(made.ids)
    elif wrong == "name":
        params["name"] = draw(st.one_of(st.just("fail"), made.scalars))
    elif wrong == "text":
        params["arguments"] = {"text": draw(made.values)}
    elif wrong == "method":
        message["method"] = draw(st.one_of(st.sampled_from(made.KNOWN_METHODS), made.scalars))
    elif wrong == "header":
        headers.append((draw(st.sampled_from(made.HEADERS)), draw(made.header_values)))
    if isinstance(params, dict) and modern:
        info = draw(made.client_infos) if wrong == "info" else {"name": "unit", "version": "1"}
        params["_meta"] = {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientInfo": info,
            "io.modelcontextprotocol/clientCapabilities": {},
        }
    if wrong == "meta" and isinstance(params, dict):
        key = draw(st.sampled_from(made.META_KEYS))
        params["_meta"] = {**params.get("_meta", {}), key: draw(st.one_of(made.texts, made.values))}
    if modern:
        headers += [(b"mcp-protocol-version", b"2026-07-28"), (b"mcp-method", _header(message.get("method")))]
        if isinstance(params, dict):
            headers.append((b"mcp-name", _header(params.get("name"))))
    elif draw(st.booleans()):
        headers.append((b"mcp-protocol-version", b"2025-11-25"))
    return scope_of(headers), made.encoded(message)


def _header(value: object) -> bytes:
    return str(value).encode("utf-8", "replace")


@few
@given(st.lists(posts(), min_size=1, max_size=5), st.booleans())
def test_a_server_of_the_sdk_answers_as_without_us(sent: Sequence[tuple[Any, bytes]], sse: bool) -> None:
    _compare(sent, sse=sse)


def _compare(sent: Sequence[tuple[Any, bytes]], *, sse: bool) -> None:
    with log_lines("opentelemetry") as theirs:
        plain = asyncio.run(serve(sent, sse=sse))
    before, telemetry = dict(guard.failures), Telemetry()
    MCPInstrumentor().instrument(
        tracer_provider=telemetry.tracer_provider,
        meter_provider=telemetry.meter_provider,
        logger_provider=telemetry.logger_provider,
        service_name="hostile",
        response_headers="none",
        store_content=True,
    )
    try:
        with log_lines("otel_mcp", "opentelemetry") as lines:
            watched = asyncio.run(serve(sent, sse=sse))
            current.discard()
            assert_sendable(telemetry)
    finally:
        MCPInstrumentor().uninstrument()
        telemetry.shut_down()
    assert watched == plain
    assert dict(guard.failures) == before, lines
    assert [line for line in lines if "memory of this process only" not in line and line not in theirs] == []


HALF = "\ud800"
META = "io.modelcontextprotocol/"


def modern(name: str = "add", request_id: object = 1, text: object = 1, client: str = "unit", **meta: object) -> Any:
    headers = [*JSON_HEADERS, (b"mcp-protocol-version", b"2026-07-28"), (b"mcp-method", b"tools/call")]
    params = {
        "name": name,
        "arguments": {"text": text},
        "_meta": {
            f"{META}protocolVersion": "2026-07-28",
            f"{META}clientInfo": {"name": client, "version": client},
            f"{META}clientCapabilities": {},
            **meta,
        },
    }
    message = {"jsonrpc": "2.0", "id": request_id, "method": "tools/call", "params": params}
    return scope_of([*headers, (b"mcp-name", _header(name))]), made.encoded(message)


def test_lone_surrogates_keep_nothing_from_being_exported() -> None:
    """The SDK reads messages of 2026-07-28 with `json`, which takes what other parsers refuse."""
    _compare(
        [
            modern(),
            modern(name=HALF),
            modern(request_id=HALF),
            modern(request_id=10**30),
            modern(client=HALF),
            modern(text=HALF),
            modern(text=made.nested(500)),
            modern(text=made.Raw("digits", "9" * 4200)),
            modern(**{"openai/session": HALF}),
            modern(baggage=f"session.id={HALF}"),
            modern(baggage="x" * 10_000),
            modern(traceparent=HALF, tracestate=HALF),
            modern(),
        ],
        sse=False,
    )


async def serve(sent: Sequence[tuple[Any, bytes]], *, sse: bool) -> list[Any]:
    app = server(sse=sse)
    got: list[Any] = []
    async with app.router.lifespan_context(app):
        for scope, body in sent:
            reply = await request(app, dict(scope), [body], patience=30)
            got.append((repr(reply.error), reply.messages))
    return got


@pytest.mark.parametrize("line", [("x-forwarded-proto", b"https"), ("x-team", "blue"), [b"X-Mixed", b"1"]])
def test_a_scope_with_an_odd_header_is_answered_as_without_us(line: Any) -> None:
    scope, body = modern()
    _compare([({**scope, "headers": [line, *scope["headers"]]}, body)], sse=False)


@pytest.mark.parametrize("propagators", ["none", "logfire's"])
def test_propagators_of_any_kind_leave_the_answers_alone(propagators: str) -> None:
    class Unhashable(TraceContextTextMapPropagator):
        __hash__ = None  # type: ignore[assignment]

    chosen = CompositePropagator([]) if propagators == "none" else Unhashable()
    before = propagate.get_global_textmap()
    propagate.set_global_textmap(chosen)
    try:
        _compare([modern(), modern(baggage="a=b;c", tracestate="=;")], sse=False)
    finally:
        propagate.set_global_textmap(before)
