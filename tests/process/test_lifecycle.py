"""How sessions go on after a restart, and how they end: each reported exactly once by any worker."""

from __future__ import annotations

from collections import Counter
from functools import partial

import anyio
import pytest
from mcp_types import TextContent

from examples.demo.otlp_records import LogRecord
from examples.demo.otlp_store import TelemetryStore
from tests.support.clients import LEGACY, MODERN, Caller, connect
from tests.support.documents import Documents
from tests.support.servers import PROMPT, SDK, TWO_WORKERS, Launch, Server
from tests.support.telemetry import server_spans
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.process, pytest.mark.anyio]

LASTING = Launch(SDK, "restarted", TWO_WORKERS, stateless=True, environment=PROMPT)
SHORT = {"OTEL_PYTHON_MCP_SESSION_TTL": "3", "OTEL_PYTHON_MCP_SWEEP_INTERVAL": "0.5"}
EXPIRING = Launch(SDK, "expiring", TWO_WORKERS, stateless=True, environment={**PROMPT, **SHORT})
STARTED, RESUMED, ENDED = "otel_mcp.session.started", "otel_mcp.session.resumed", "otel_mcp.session.ended"
SWEEPS = "otel_mcp.store.operation.duration"


def _ended(telemetry: TelemetryStore, reason: str) -> float:
    return telemetry.total(ENDED, {"otel_mcp.session.end.reason": reason})


def _ends_of(telemetry: TelemetryStore, session_id: str) -> list[LogRecord]:
    return [event for event in telemetry.events("session.end") if event.attributes["session.id"] == session_id]


async def _worker(caller: Caller) -> str:
    (content,) = (await caller.call("worker")).content
    assert isinstance(content, TextContent)
    return content.text


@pytest.mark.parametrize("server", [LASTING], indirect=True, ids=str)
async def test_session_goes_on_after_a_restart_and_is_resumed_once(server: Server, documents: Documents) -> None:
    async with connect(server.url, name="survivor", mode=LEGACY) as caller:
        before = {await _worker(caller) for _ in range(3)}
        session_id = caller.session_id
        assert session_id.startswith("om1.")
        server.stop()
        assert documents.count(session_id) == 3

        server.start()
        after = {await _worker(caller) for _ in range(3)}
        async with anyio.create_task_group() as group:
            # Connections at the same time, so that each worker meets the session.
            for _ in range(20):
                group.start_soon(partial(caller.call, "add", a=1, b=1))
        # A session that began after the restart has nothing to resume.
        async with connect(server.url, name="newcomer", mode=MODERN) as other:
            await other.call("worker")
    assert not before & after
    assert caller.wire.public_ids == {session_id}
    assert wait_until(lambda: documents.count(session_id) >= 26)
    server.stop()

    telemetry = server.telemetry
    document = documents.get(session_id)
    assert document is not None
    assert Counter(document.tools) == {"worker": 6, "add": 20}
    assert "previous_id" not in document.fields
    spans = [s for s in server_spans(telemetry, "tools/call") if s.attributes["session.id"] == session_id]
    assert len(spans) == 26
    assert telemetry.total(STARTED) == 2
    assert [event.attributes["session.id"] for event in telemetry.events("session.start")].count(session_id) == 1
    assert telemetry.events("session.end") == []
    assert telemetry.total(RESUMED) == 1


@pytest.mark.parametrize("server", [EXPIRING], indirect=True, ids=str)
async def test_session_that_expires_is_ended_once_by_two_workers(server: Server, documents: Documents) -> None:
    telemetry = server.telemetry
    sessions: list[str] = []
    for number in range(3):
        async with connect(server.url, name=f"silent-{number}", mode=LEGACY) as caller:
            await caller.call("add", a=1, b=2)
            await caller.call("fail", text="x")
            sessions.append(caller.session_id)
    document = documents.get(sessions[-1])
    assert document is None or document.expires_in <= 3

    assert wait_until(lambda: _ended(telemetry, "expired") >= 3)
    _wait_for_more_sweeps(server)
    server.stop()

    assert _ended(telemetry, "expired") == 3
    assert telemetry.total(ENDED) == 3
    for session_id in sessions:
        (end,) = _ends_of(telemetry, session_id)
        assert end.attributes["otel_mcp.session.end.reason"] == "expired"
        assert end.attributes["otel_mcp.session.tool_calls"] == 2
        assert end.attributes["otel_mcp.session.errors"] == 1
    assert telemetry.total("mcp.server.session.duration") == 3
    assert telemetry.total("otel_mcp.session.tool_calls") == 3


def _wait_for_more_sweeps(server: Server) -> None:
    """Until each worker that sweeps has looked again: a second report of an end has come by then."""
    telemetry = server.telemetry

    def sweeps() -> dict[str, int]:
        points = telemetry.points(SWEEPS, {"otel_mcp.store.operation": "sweep"})
        return {point.origin.instance: point.count for point in points}

    known = sweeps()
    assert wait_until(lambda: known and all(sweeps()[worker] >= known[worker] + 2 for worker in known))


async def test_goodbye_to_any_worker_ends_the_session_once(two_workers: Server, documents: Documents) -> None:
    telemetry = two_workers.telemetry
    already = _ended(telemetry, "client_delete")
    sessions: list[str] = []
    # Each request goes to whichever worker is there first, so that some say goodbye to the other one.
    for number in range(8):
        async with connect(two_workers.url, name=f"polite-{number}", mode=LEGACY, goodbye=True) as caller:
            await caller.call("add", a=1, b=2)
            await caller.call("fail", text="x")
            sessions.append(caller.session_id)

    def ended() -> bool:
        return all(_ends_of(telemetry, session_id) for session_id in sessions)

    def stored() -> bool:
        return all(documents.count(session_id) == 2 for session_id in sessions)

    assert wait_until(ended)
    assert wait_until(lambda: _ended(telemetry, "client_delete") >= already + 8)
    assert wait_until(stored)
    await _see_another_end(two_workers)

    for session_id in sessions:
        (end,) = _ends_of(telemetry, session_id)
        assert end.attributes["otel_mcp.session.end.reason"] == "client_delete"
        document = documents.get(session_id)
        assert document is not None
        assert document.fields["ended"]["reason"] == "client_delete"
        assert 500 < document.expires_in <= 600
    counts = {_ends_of(telemetry, session_id)[0].attributes["otel_mcp.session.tool_calls"] for session_id in sessions}
    assert counts == {2}


async def _see_another_end(server: Server) -> None:
    """Let a later session end, too: a second report of an end has come by then."""
    before = len(server.telemetry.events("session.end"))
    async with connect(server.url, name="last", mode=LEGACY, goodbye=True) as caller:
        for _ in range(2):  # After one call it might go on.
            await caller.call("add", a=1, b=2)
    assert wait_until(lambda: len(server.telemetry.events("session.end")) > before)
