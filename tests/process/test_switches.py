"""What users switch off stays off, and the server serves as it would without us."""

from __future__ import annotations

import pytest

from tests.process.conftest import Servers
from tests.support.clients import LEGACY, MODERN, connect
from tests.support.documents import Documents
from tests.support.servers import FASTMCP, PROMPT, SDK, Launch
from tests.support.telemetry import server_spans
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.process, pytest.mark.anyio]


@pytest.mark.parametrize(
    ("library", "switch"),
    [
        (FASTMCP, {"OTEL_SDK_DISABLED": "true"}),
        (SDK, {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "some_other, otel_mcp"}),
    ],
    ids=["opentelemetry-disabled", "instrumentation-disabled"],
)
async def test_server_that_is_not_observed_works_and_nothing_is_written(
    servers: Servers, valkey_url: str, library: str, switch: dict[str, str]
) -> None:
    database = f"{valkey_url}/7"
    environment = {**PROMPT, **switch}
    launch = Launch(library, "off", "uvicorn app:app --port={port}", stateless=True, environment=environment)
    with servers.running(launch, redis_url=database) as server:
        for mode in (LEGACY, MODERN):
            async with connect(server.url, name="anyone", mode=mode, goodbye=True) as caller:
                assert "3" in str((await caller.call("add", a=1, b=2)).content)
                assert (await caller.call("fail", text="x")).is_error
            assert caller.wire.transport_ids == set()
            assert caller.wire.public_ids == set()
        if "OTEL_SDK_DISABLED" not in switch:
            # The SDK's own spans are still there, as they would be without us.
            assert wait_until(lambda: len(server_spans(server.telemetry, "tools/call")) == 4)
        server.stop()

        assert not [span for span in server.telemetry.spans() if "session.id" in span.attributes]
        assert not [point for point in server.telemetry.points() if point.origin.scope == "otel_mcp"]
        if "OTEL_SDK_DISABLED" in switch:
            assert server.telemetry.spans() == []
        reader = Documents(database)
        try:
            assert reader.keys() == []
        finally:
            reader.close()
