"""One session, two worker processes, many calls at once: nothing is lost and nothing is counted twice."""

from __future__ import annotations

from collections import Counter

import anyio
import pytest
from mcp_types import TextContent

from tests.support.clients import LEGACY, MODERN, Caller, connect
from tests.support.documents import Documents
from tests.support.servers import Server
from tests.support.telemetry import server_spans
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.process, pytest.mark.anyio]

CALLS = 200


async def _call_at_once(caller: Caller) -> Counter[str]:
    """Call `CALLS` times at once; return how many calls each process served."""
    served: Counter[str] = Counter()

    async def call() -> None:
        (content,) = (await caller.call("worker")).content
        assert isinstance(content, TextContent)
        served[content.text] += 1

    async with anyio.create_task_group() as group:
        for _ in range(CALLS):
            group.start_soon(call)
    return served


@pytest.mark.parametrize("mode", [LEGACY, MODERN])
async def test_calls_of_one_session_in_two_processes_are_all_counted_once(
    two_workers: Server, documents: Documents, mode: str
) -> None:
    async with connect(two_workers.url, name=f"crowd-{mode}", mode=mode) as caller:
        await caller.client.list_tools()  # else the client would list them with each of the calls
        served = await _call_at_once(caller)
        assert len(served) == 2, "one process served every call, so this proves nothing"
        requests = sum(caller.wire.requests.values())

    session_id = caller.session_id
    telemetry = two_workers.telemetry
    wait_until(lambda: documents.field(session_id, "request_count") >= requests)
    document = documents.get(session_id)
    assert document is not None
    assert document.fields["tool_call_count"] == CALLS
    assert document.fields["request_count"] == requests
    assert caller.wire.public_ids == {session_id}
    assert set(document.tools) == {"worker"}
    assert 25 <= len(document.tools) <= 50
    assert 3500 < document.expires_in <= 3600

    def of_session() -> int:
        return sum(span.attributes.get("session.id") == session_id for span in server_spans(telemetry, "tools/call"))

    assert wait_until(lambda: of_session() >= CALLS)
    assert of_session() == CALLS
