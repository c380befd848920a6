"""A session that goes in circles on a real server is asked about while it runs, and its document has the advice."""

from __future__ import annotations

from typing import Any

import pytest

from tests.process.conftest import Servers
from tests.support.clients import LEGACY, connect
from tests.support.completions import ADVICE, completions
from tests.support.documents import Documents
from tests.support.servers import SDK, Launch
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.process, pytest.mark.anyio]


async def test_a_loop_is_found_and_asked_about_while_the_session_runs(servers: Servers, documents: Documents) -> None:
    with completions() as endpoint:
        agent = {
            "OTEL_PYTHON_MCP_AGENT_MODEL": "small",
            "OTEL_PYTHON_MCP_AGENT_URL": endpoint.url,
            "OTEL_PYTHON_MCP_AGENT_KEY": "key-of-the-agent",
            "NO_PROXY": "127.0.0.1",
        }
        with servers.running(Launch(SDK, "agent", "uvicorn app:app --port={port}", environment=agent)) as server:
            async with connect(server.url, name="in-circles", mode=LEGACY) as caller:
                for _ in range(6):
                    await caller.call("echo", text="secret")
                session_id = caller.session_id
                assert wait_until(lambda: _advice(documents, session_id) is not None)

        (asked,) = endpoint.asked
        note, document = _advice(documents, session_id), documents.get(session_id)

    assert endpoint.facts()["problem"]["name"] == "looped"
    assert [call["arguments"] for call in endpoint.facts()["calls"]] == ["A"] * len(endpoint.facts()["calls"])
    assert "secret" not in str(asked)
    assert document is not None
    assert note is not None
    assert {name: note[name] for name in ("cause", "change", "confidence", "model")} == {
        **{name: ADVICE[name] for name in ("cause", "change", "confidence")},
        "model": "small",
    }
    assert document.fields["findings"] == ["looped"]
    assert endpoint.keys == ["Bearer key-of-the-agent"]


def _advice(documents: Documents, session_id: str) -> dict[str, Any] | None:
    document = documents.get(session_id)
    attributes = document.fields.get("attributes", {}) if document is not None else {}
    return attributes.get("otel_mcp.advice", {}).get("looped")
