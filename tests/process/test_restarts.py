"""What a restart does to sessions that a server keeps: as many are cut, and are back, as their clients have seen."""

from __future__ import annotations

from collections import Counter
from typing import Any

import httpx2
import pytest

from examples.demo.otlp_store import TelemetryStore
from tests.process.conftest import Servers
from tests.support.documents import Documents
from tests.support.servers import PROMPT, SDK, Launch
from tests.support.visitors import Visitor
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.process, pytest.mark.anyio]

KEEPING = Launch(SDK, "keeping", "uvicorn app:app --port={port}", environment=PROMPT)
INTERRUPTED, RETURNED = "otel_mcp.session.interrupted", "otel_mcp.session.returned"


def _events(telemetry: TelemetryStore, name: str) -> Counter[tuple[Any, Any]]:
    about = "otel_mcp.session.interrupted.cause" if name == "session.interrupted" else "session.previous_id"
    return Counter((each.attributes["session.id"], each.attributes.get(about)) for each in telemetry.events(name))


async def test_who_is_cut_and_who_is_back_is_what_clients_saw(servers: Servers, documents: Documents) -> None:
    with servers.running(KEEPING) as server:
        async with httpx2.AsyncClient(base_url=server.url.removesuffix("/mcp"), trust_env=False) as http:
            back, lost, deaf, gone, quiet = visitors = [
                Visitor(http, name) for name in ("back", "lost", "deaf", "gone", "quiet")
            ]
            for visitor in visitors:
                await visitor.open()
                assert await visitor.call() == 200
            before = {visitor: visitor.session_id for visitor in visitors}
            server.stop()
            server.start()

            assert await back.call() == 404
            await back.open()
            assert await back.call() == 200
            for _ in range(4):
                assert await lost.call() == 404  # As most clients do.
            assert await deaf.listen() == 404
            assert await gone.leave() == 404
            await quiet.open()  # Has not learned that its session is gone.
            assert await quiet.call() == 200
            cut = {(before[visitor], "restart") for visitor in (back, lost, deaf)}
            telemetry = server.telemetry
            assert wait_until(lambda: len(_events(telemetry, "session.returned")) >= 1), server.log()
        server.stop()

        assert _events(telemetry, "session.interrupted") == Counter(cut)
        assert _events(telemetry, "session.returned") == Counter([(back.session_id, before[back])])
        assert telemetry.total(INTERRUPTED) == telemetry.total(INTERRUPTED, {f"{INTERRUPTED}.cause": "restart"}) == 3
        assert telemetry.total(RETURNED) == telemetry.total(RETURNED, {f"{RETURNED}.within": "1m"}) == 1
        old, new = documents.get(before[back]), documents.get(back.session_id)
        assert old is not None
        assert new is not None
        assert (old.fields["ended"]["reason"], old.fields["interrupted"]["cause"]) == ("replaced", "restart")
        assert new.fields["previous_id"] == before[back]
        assert {call["service_instance_id"] for call in new.fields["tool_calls"]}.isdisjoint(
            {call["service_instance_id"] for call in old.fields["tool_calls"]}
        )
