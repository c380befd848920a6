"""What a tool logs carries its session, in the records that are exported and in lines of the app's own."""

from __future__ import annotations

from collections import Counter

import anyio
import pytest

from examples.demo.otlp_records import LogRecord
from tests.support.clients import LEGACY, MODERN, Caller, connect
from tests.support.servers import FASTMCP, PROMPT, SDK, Launch, Server
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.process, pytest.mark.anyio]

LINES = ("in the tool", "in a thread", "in a task")
LOGGING = {**PROMPT, "OTEL_PYTHON_LOGGING_AUTO_INSTRUMENTATION_ENABLED": "true"}
COMMAND = "uvicorn diary_app:app --port={port}"


def _written(server: Server) -> list[LogRecord]:
    return [record for record in server.telemetry.logs() if record.origin.scope == "diary"]


@pytest.mark.parametrize(
    "server",
    [Launch(library, "diary", COMMAND, environment=LOGGING) for library in (SDK, FASTMCP)],
    indirect=True,
    ids=str,
)
async def test_records_of_two_clients_at_once_carry_their_sessions(server: Server) -> None:
    answers = dict[str, str]()

    async def write(caller: Caller) -> None:
        answers[caller.mode] = str((await caller.call("write")).content)

    async with (
        connect(server.url, name="early", mode=LEGACY) as early,
        connect(server.url, name="late", mode=MODERN) as late,
        anyio.create_task_group() as tasks,
    ):
        await early.client.list_tools()
        await late.client.list_tools()
        tasks.start_soon(write, early)
        tasks.start_soon(write, late)
    sessions = {early.session_id: "header", late.session_id: "inferred_weak"}

    assert wait_until(lambda: len(_written(server)) == 1 + 2 * len(LINES))
    assert Counter((str(record.body), *_stamp(record)) for record in _written(server)) == {
        ("before any call", None, None, None): 1,
        **{(line, session, source, "write"): 1 for session, source in sessions.items() for line in LINES},
    }
    for session in sessions:
        assert all(f"{session} write {line}" in answers[MODERN] for line in LINES[:2])


def _stamp(record: LogRecord) -> tuple[object, ...]:
    names = ("session.id", "otel_mcp.session.source", "gen_ai.tool.name")
    return tuple(record.attributes.get(name) for name in names)
