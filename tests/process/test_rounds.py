"""Rounds of one logical call at two replicas: what is reported equals what their clients did."""

from __future__ import annotations

import secrets
from collections import Counter
from typing import Any

import httpx2
import pytest
from mcp.client import Client
from mcp.shared.exceptions import MCPError
from mcp_types import ElicitResult, ErrorData

from examples.demo.otlp_records import SpanRecord
from tests.process.conftest import Servers
from tests.support.documents import Documents
from tests.support.rounds import ANSWER, Person
from tests.support.servers import PROMPT, SDK, Launch, Server
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.process, pytest.mark.anyio]

CALLS = 4
ASKING = Launch(SDK, "asking", "uvicorn rounds_app:app --port={port}", environment=PROMPT)


def approvals(*replicas: Server) -> list[SpanRecord]:
    spans = [span for replica in replicas for span in replica.telemetry.spans()]
    return [span for span in spans if span.attributes.get("gen_ai.tool.name") == "approve"]


async def test_rounds_at_two_replicas_are_one_logical_call(servers: Servers, documents: Documents) -> None:
    service = f"rounds-{secrets.token_hex(3)}"
    made = [Server(ASKING, service=service, redis_url=servers.redis_url, folder=servers.folder) for _ in range(2)]
    with made[0] as one, made[1] as other:
        bases = [server.url.removesuffix("/mcp") for server in (one, other)]
        async with httpx2.AsyncClient(base_url=bases[0]) as first, httpx2.AsyncClient(base_url=bases[1]) as second:
            person = Person(first, second)
            for _ in range(CALLS):
                results = await person.approve()
                assert [result["resultType"] for result in results] == ["input_required", "input_required", "complete"]
            await person.call(a=7)  # Nobody answers.
            assert "code" in await person.call("forged", ANSWER)
            await person.call(answers={}, a=8)  # As if it went on with something.
            # A round ends once it is known what it goes on with, for which a server that stops does not wait.
            assert wait_until(lambda: len(approvals(one, other)) == person.sent)
        for server in (one, other):
            server.stop()
        brought = [server.telemetry.histogram("otel_mcp.call.input.wait").count for server in (one, other)]
        counted = sum(server.telemetry.total("otel_mcp.tool.calls") for server in (one, other))

    document = documents.get(person.session_id)
    assert document is not None
    entries = Counter(
        (call.get("rounds", 1), "waiting" in call, "answers" in call) for call in document.fields["tool_calls"]
    )
    assert entries == {(3, False, False): CALLS, (1, True, False): 1, (1, True, True): 1, (1, False, True): 1}
    assert (document.fields["tool_call_count"], document.fields["request_count"]) == (CALLS + 3, person.sent)
    assert (sum(brought), counted) == (2 * CALLS, CALLS + 3)
    calls = approvals(one, other)
    by_round = {
        number: [each for each in calls if each.attributes.get("otel_mcp.call.round") == number]
        for number in (1, 2, 3, None)
    }
    assert [len(found) for found in by_round.values()] == [CALLS + 1, CALLS, CALLS, 2]
    unanswered = max(by_round[1], key=lambda span: span.start_ns)
    firsts = {span.span_id for span in by_round[1] if span is not unanswered}
    for number in (2, 3):
        assert {link.span_id for span in by_round[number] for link in span.links} == firsts


async def accept(context: Any, params: Any) -> ElicitResult:
    return ElicitResult(action="accept", content={"ok": True})


async def refuse(context: Any, params: Any) -> ErrorData:
    return ErrorData(code=-1, message="The person said no")


async def test_what_a_tool_asks_its_client_is_timed_beneath_it(servers: Servers) -> None:
    with servers.running(ASKING) as server:
        asking = Client(server.url, mode="legacy", elicitation_callback=accept, sampling_callback=refuse)
        async with asking as client:
            with pytest.raises(MCPError, match="said no"):
                await client.call_tool("consult", {})
        server.stop()
        spans = server.telemetry.spans()
        points = server.telemetry.points("mcp.client.operation.duration")

    found = {(each.attributes["mcp.method.name"], each.attributes.get("error.type")): each.count for each in points}
    assert found == {("elicitation/create", None): 1, ("sampling/createMessage", "-1"): 1}
    (call,) = (span for span in spans if span.attributes.get("gen_ai.tool.name") == "consult")
    beneath = sorted(str(span.attributes["mcp.method.name"]) for span in spans if span.parent_id == call.span_id)
    assert beneath == ["elicitation/create", "sampling/createMessage"]
