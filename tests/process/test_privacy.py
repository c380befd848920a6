"""Secrets go through a server and are looked for in everything that comes out of its observation."""

from __future__ import annotations

import asyncio
import secrets
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field, replace

import httpx2
import pytest
from mcp.shared.exceptions import MCPError

from examples.demo.otlp_records import SpanRecord
from examples.demo.otlp_store import TelemetryStore
from tests.support.clients import LEGACY, MODERN, connect
from tests.support.documents import Documents
from tests.support.servers import Server
from tests.support.telemetry import OPERATION_DURATION, TOOLS_CALL, server_spans
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.process, pytest.mark.anyio]

LIBRARIES = {"mcp-python-sdk", "fastmcp"}
"""Scopes of the spans that the libraries themselves open."""
RESOURCE = {"mcp.resource.uri", "fastmcp.component.key", "fastmcp.component.uri"}


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
    log: str
    session_id: str


@pytest.fixture(scope="module", params=[LEGACY, MODERN])
async def leak(two_workers: Server, documents: Documents, request: pytest.FixtureRequest) -> Leak:
    """A client that sends secrets of every kind; all of it has been exported and stored."""
    planted = Planted()
    headers = {
        "authorization": f"Bearer {planted('authorization header')}",
        "cookie": f"login={planted('cookie')}",
        "x-api-key": planted("api key"),
        "mcp-param-region": planted("parameter in a header"),
        "x-whatever": planted("unknown header"),
    }
    telemetry = two_workers.telemetry
    measured = telemetry.total(OPERATION_DURATION, TOOLS_CALL)
    async with connect(two_workers.url, name="careful", mode=request.param, headers=headers) as caller:
        answered = await caller.call("echo", text=planted("argument and result"))
        assert planted("argument and result") in str(answered.content)
        refused = await caller.call("fail", text=planted("text of a tool error"))
        assert planted("text of a tool error") in str(refused.content)
        assert (await caller.call("crash", text=planted("text of an exception"))).is_error
        assert (await caller.call("add", a=planted("argument of the wrong type"), b=1)).is_error
        with suppress(MCPError):  # of FastMCP it is a result, too
            await caller.call("reject", text=planted("text of a JSON-RPC error"))
        session_id = caller.session_id
    await _strange_messages(two_workers, planted)

    def spans() -> int:
        return sum(span.attributes.get("session.id") == session_id for span in server_spans(telemetry, "tools/call"))

    assert wait_until(lambda: spans() == 5 and documents.count(session_id) == 5)
    assert wait_until(lambda: telemetry.total(OPERATION_DURATION, TOOLS_CALL) >= measured + 5)
    return Leak(planted, telemetry, documents.everything(), two_workers.log(), session_id)


async def _strange_messages(server: Server, planted: Planted) -> None:
    """What no client library sends: secrets in `_meta`, progress tokens, error data, URIs and noise."""
    meta = {"acme/token": planted("value in _meta"), "progressToken": planted("progress token")}
    messages: list[object] = [
        {"method": "tools/call", "params": {"name": "echo", "arguments": {"text": "x"}, "_meta": meta}},
        {"method": "resources/read", "params": {"uri": f"https://u:{planted('resource URI')}@host/"}},
        {"method": "completion/complete", "params": {"ref": {"type": "x"}, "argument": planted("completion argument")}},
        {"error": {"code": 1, "message": planted("error of a client"), "data": planted("error data")}},
        planted("noise"),
    ]
    headers = {"accept": "application/json, text/event-stream", "mcp-protocol-version": "2025-11-25"}
    async with httpx2.AsyncClient(headers=headers, trust_env=False) as client:
        for message in messages:
            body = {"jsonrpc": "2.0", "id": 77, **message} if isinstance(message, dict) else message
            await client.post(server.url, json=body)


async def test_processes_log_no_content(leak: Leak) -> None:
    ours = [line for line in leak.log.splitlines() if "otel_mcp" in line]
    assert leak.planted.found_in("\n".join(ours)) == []


async def test_the_command_line_shows_no_content(leak: Leak, valkey_url: str) -> None:
    shown = [
        await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", "from otel_mcp.cli import main; main()", *command, "--redis-url", valkey_url],
            capture_output=True,
            text=True,
            check=True,
        )
        for command in (["sessions"], ["show", leak.session_id])
    ]

    assert leak.session_id in shown[1].stdout
    assert leak.planted.found_in("".join(done.stdout + done.stderr for done in shown)) == []


async def test_spans_hold_no_content_but_the_librarys_own_error_texts(leak: Leak) -> None:
    spans = [_without_theirs(span) for span in leak.telemetry.spans()]

    assert leak.planted.found_in(repr(spans)) == []


def _without_theirs(span: SpanRecord) -> SpanRecord:
    """A span without what its library puts there, as SECURITY.md says: errors, and with FastMCP the resource."""
    if span.origin.scope not in LIBRARIES:
        return span
    attributes = {name: value for name, value in span.attributes.items() if name not in RESOURCE}
    name = span.name.partition(" ")[0] if attributes.get("mcp.method.name") == "resources/read" else span.name
    return replace(span, name=name, status_message="", events=(), attributes=attributes)


async def test_error_texts_are_on_no_attribute_and_no_span_of_ours(leak: Leak) -> None:
    # What the SDK and FastMCP put into status and events of their own spans is theirs; the README says so.
    spans = server_spans(leak.telemetry)
    assert spans
    rest = [_without_theirs(span) for span in spans]
    assert leak.planted.found_in(repr([(span.name, span.attributes) for span in rest])) == []
    assert leak.planted.found_in(repr([span for span in spans if span.origin.scope == "otel_mcp"])) == []


async def test_no_content_is_in_metrics_and_logs(leak: Leak) -> None:
    assert len(leak.telemetry.events("otel_mcp.tool.call")) >= 5  # Audit is on.
    assert leak.planted.found_in(repr(leak.telemetry.points())) == []
    assert leak.planted.found_in(repr(leak.telemetry.logs())) == []


async def test_no_content_is_in_redis(leak: Leak) -> None:
    assert leak.planted.found_in(leak.stored) == []
