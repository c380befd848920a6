"""The stream of a session is one, whatever its request carries besides."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from mcp.server.mcpserver import MCPServer
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider

from otel_mcp import MCPInstrumentor, current
from otel_mcp.model.call import SCOPE_KEY
from tests.support.asgi import JSON_HEADERS, announcing, delete, make_scope, post, request
from tests.support.messages import call, initialize, legacy_headers

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _instrumented() -> Iterator[None]:
    MCPInstrumentor().instrument(tracer_provider=TracerProvider(), meter_provider=MeterProvider())
    yield
    MCPInstrumentor().uninstrument()


async def test_a_stream_asked_for_with_a_message_opens_and_leaves_no_call() -> None:
    app: Any = MCPServer("shop", log_level="WARNING").streamable_http_app()
    left = anyio.Event()
    watched = announcing(app, left, "status")  # The client leaves as soon as the stream has begun.

    async with app.router.lifespan_context(app):
        headers = legacy_headers((await post(app, initialize())).headers["mcp-session-id"])
        scope = make_scope("GET", headers=[*JSON_HEADERS, *headers])
        reply = await request(watched, scope, [json.dumps(call()).encode()], left=left)
        await delete(app, [*JSON_HEADERS, *headers])

    assert reply.status == 200
    assert scope[SCOPE_KEY].stream == (headers[0][1], None)
    assert current.runtime is not None
    inflight = current.runtime.exchanges.inflight
    assert (inflight.census.calls, inflight.waiting) == ({}, {})
