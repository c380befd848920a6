"""Every example server, started as its README says, answers and is observed; `.ci/run` asks for it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

import examples
from tests.process.conftest import Servers
from tests.support.clients import LEGACY, connect
from tests.support.servers import PROMPT, Launch
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.process,
    pytest.mark.anyio,
    pytest.mark.skipif(not os.environ.get("OTEL_MCP_LONG_TESTS"), reason="OTEL_MCP_LONG_TESTS is not set"),
]

FOLDER = Path(examples.__file__).parent
ROWS = re.findall(r"`opentelemetry-instrument (uvicorn|fastmcp run) ([^`]+)`", (FOLDER / "README.md").read_text())
ARGUMENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "sdk_server": ("time_in", {"zone": "Europe/Berlin"}),
    "fastmcp_server": ("count_words", {"texts": ["to be or not to be"]}),
    "fastapi_mount": ("price_of", {"article": "desk"}),
    "handwritten_asgi": ("reverse", {"text": "stressed"}),
    "logging_server": ("order", {"item": "lamp"}),
}
"""What is called of each."""
ELSEWHERE = {"__init__", "traffic"}
"""What is no server: run by the lane in `tests/stack`."""


class Example(Launch):
    """Started in the top folder, as the page says."""

    def __str__(self) -> str:
        return self.name


LAUNCHES = {
    f"{program.split()[0]} {name}": Example(
        str(FOLDER.parent),
        f"{program.split()[0]}-{name}",
        f"{program} {rest} --port={{port}}",
        environment=PROMPT,
    )
    for program, rest in ROWS
    if (name := next((name for name in ARGUMENTS if name in rest), ""))
}


def test_every_file_is_run_somewhere() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == ARGUMENTS.keys() | ELSEWHERE
    assert {launch.split()[1] for launch in LAUNCHES} == ARGUMENTS.keys()


@pytest.mark.parametrize("row", LAUNCHES)
async def test_an_example_answers_and_is_observed(row: str, servers: Servers) -> None:
    tool, arguments = ARGUMENTS[row.split()[1]]

    with servers.running(LAUNCHES[row]) as server:
        async with connect(server.url, name="reader", mode=LEGACY) as caller:
            result = await caller.call(tool, **arguments)
        assert wait_until(lambda: any(span.name == f"tools/call {tool}" for span in server.telemetry.spans()))

    assert not result.is_error
    (span,) = [span for span in server.telemetry.spans() if span.name == f"tools/call {tool}"]
    assert span.attributes["session.id"] == caller.session_id
