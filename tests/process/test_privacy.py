"""Secrets go through a server and are looked for in everything that comes out of its observation."""

from __future__ import annotations

import secrets
from contextlib import suppress
from dataclasses import dataclass, field, replace

import pytest
from mcp.shared.exceptions import MCPError

from examples.demo.otlp_store import TelemetryStore
from tests.support.clients import LEGACY, MODERN, connect
from tests.support.documents import Documents
from tests.support.servers import Server
from tests.support.telemetry import OPERATION_DURATION, TOOLS_CALL, server_spans
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.process, pytest.mark.anyio]

LIBRARIES = {"mcp-python-sdk", "fastmcp"}
"""Scopes of the spans that the libraries themselves open."""


@dataclass
class Planted:
    """Texts that occur nowhere else, by where they are planted."""

    texts: dict[str, str] = field(default_factory=dict[str, str])

    def __call__(self, place: str) -> str:
        return self.texts.setdefault(place, f"secret-{secrets.token_hex(8)}")

    def found_in(self, text: str) -> list[str]:
        return sorted(place for place, planted in self.texts.items() if planted in text)


@dataclass
class Leak:
    """What was planted, and everything in which it was looked for."""

    planted: Planted
    telemetry: TelemetryStore
    stored: str


@pytest.fixture(scope="module", params=[LEGACY, MODERN])
async def leak(two_workers: Server, documents: Documents, request: pytest.FixtureRequest) -> Leak:
    """A client that sends secrets of every kind; all of it has been exported and stored."""
    planted = Planted()
    headers = {
        "authorization": f"Bearer {planted('authorization header')}",
        "cookie": f"login={planted('cookie')}",
        "x-api-key": planted("api key"),
    }
    telemetry = two_workers.telemetry
    measured = telemetry.total(OPERATION_DURATION, TOOLS_CALL)
    async with connect(two_workers.url, name="careful", mode=request.param, headers=headers) as caller:
        said = await caller.call("echo", text=planted("argument and result"))
        assert planted("argument and result") in str(said.content)
        refused = await caller.call("fail", text=planted("text of a tool error"))
        assert planted("text of a tool error") in str(refused.content)
        assert (await caller.call("crash", text=planted("text of an exception"))).is_error
        assert (await caller.call("add", a=planted("argument of the wrong type"), b=1)).is_error
        with suppress(MCPError):  # of FastMCP it is a result, too
            await caller.call("reject", text=planted("text of a JSON-RPC error"))
        session_id = caller.session_id

    def spans() -> int:
        return sum(span.attributes.get("session.id") == session_id for span in server_spans(telemetry, "tools/call"))

    assert wait_until(lambda: spans() == 5 and documents.count(session_id) == 5, deadline=10)
    assert wait_until(lambda: telemetry.total(OPERATION_DURATION, TOOLS_CALL) >= measured + 5, deadline=10)
    return Leak(planted, telemetry, documents.everything())


async def test_no_content_is_on_spans_but_what_the_library_says_of_errors(leak: Leak) -> None:
    spans = [
        replace(span, status_message="", events=()) if span.origin.scope in LIBRARIES else span
        for span in leak.telemetry.spans()
    ]

    assert leak.planted.found_in(repr(spans)) == []


async def test_no_text_of_an_error_is_among_the_attributes_of_a_message_nor_on_a_span_of_ours(leak: Leak) -> None:
    # What the SDK and FastMCP put into status and events of their own spans is theirs; the README says so.
    spans = server_spans(leak.telemetry)
    assert spans
    assert leak.planted.found_in(repr([(span.name, span.attributes) for span in spans])) == []
    assert leak.planted.found_in(repr([span for span in spans if span.origin.scope == "otel_mcp"])) == []


async def test_no_content_is_in_metrics_and_logs(leak: Leak) -> None:
    assert leak.planted.found_in(repr(leak.telemetry.points())) == []
    assert leak.planted.found_in(repr(leak.telemetry.logs())) == []


async def test_no_content_is_in_redis(leak: Leak) -> None:
    assert leak.planted.found_in(leak.stored) == []
