"""Made-up names cannot fill the log, nor write into it: every line of ours is limited and free of content."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from otel_mcp import MCPMiddleware, guard, observers
from otel_mcp.guard import guarded
from otel_mcp.model.state import SessionState, ToolCall
from tests.support.answers import FAILED, Server
from tests.support.asgi import post
from tests.support.messages import MODERN_HEADERS, call, initialize, legacy_headers, modern
from tests.unit.conftest import MakeRuntime

pytestmark = pytest.mark.anyio

FLOOD = 300
Lines = Callable[[], list[logging.LogRecord]]


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Lines:
    """Everything that is logged by anybody, debugging included."""
    caplog.set_level(logging.DEBUG)
    return lambda: caplog.records


def of_ours(lines: Lines) -> list[str]:
    return [record.getMessage() for record in lines() if record.name.startswith("otel_mcp")]


async def test_failing_calls_write_at_most_60_lines_a_minute_and_a_total(
    lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(observers.time, "monotonic", lambda: now)
    observe, session = observers.SlowAndFailing(5.0), SessionState(session_id="s")
    moment = datetime.now(UTC)
    for number in range(FLOOD):
        failed = ToolCall(tool_name=f"t{number}", started_at=moment, duration=9.0, error_type="tool_error")
        await observe(failed if number % 2 else failed.model_copy(update={"error_type": None}), session)

    assert len(of_ours(lines)) == observers.MAX_LINES
    now += 60
    await observe(ToolCall(tool_name="x", started_at=moment, duration=9.0), session)
    assert [line[:40] for line in of_ours(lines)[observers.MAX_LINES :]] == [
        f"{FLOOD - observers.MAX_LINES} more calls failed or took long in the min"[:40],
        "tool 'x' took 9.000 s (session s, trace None)"[:40],
    ]


async def test_a_flood_of_hostile_requests_leaves_a_bounded_and_harmless_log(
    make_runtime: MakeRuntime, lines: Lines
) -> None:
    runtime = make_runtime(log_calls=True, max_new_sessions=5, session_sources="cookie,conversation,header,inferred")
    app = MCPMiddleware(Server({"tools/call": {"result": FAILED}}), runtime)
    for number in range(FLOOD):
        secret = f"s3cret-{number}\r\nERROR forged"
        headers = [
            ("authorization", f"Bearer {secret}"),
            ("cookie", f"mcp_session={secret}; {secret}"),
            ("baggage", f"{secret},session.id={secret}=,=;;"),
            ("x-forwarded-for", secret),
            ("forwarded", f"for={secret}"),
            ("x-session-id", secret),
        ]
        message = modern("add", secret, secret, baggage=secret, tracestate="x" * 600)
        message["params"]["arguments"] = {"text": secret}
        await post(app, message, [*MODERN_HEADERS, *headers])
        await post(app, call("add", secret), legacy_headers(secret))
        await post(app, initialize(name=secret), headers)
        await post(app, f"{{{secret}".encode(), headers)
    await runtime.shut_down()
    await asyncio.sleep(0)

    assert 1 < len(of_ours(lines)) <= observers.MAX_LINES + 5
    assert [line for line in of_ours(lines) if "s3cret" in line or "\n" in line or "\r" in line] == []
    others = [record.getMessage() for record in lines() if not record.name.startswith(("otel_mcp", "asyncio"))]
    assert [line for line in others if "s3cret" in line] == []


async def test_our_own_failures_write_a_line_a_minute_without_their_text(lines: Lines, failures: object) -> None:
    for number in range(FLOOD):
        with guarded("part"):
            raise ValueError(f"s3cret-{number}\nforged")

    (line,) = of_ours(lines)
    assert re.fullmatch(
        r"otel_mcp: part failed with ValueError at \S+:\d+; the request is not affected \(1 so far\)", line
    )
    assert guard.failures["part"] == FLOOD
