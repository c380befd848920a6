"""Each function that only a real SDK server or a real Redis reaches raises in turn: the answers stay the same."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from contextlib import suppress
from types import CodeType
from typing import Any

import pytest

from otel_mcp import MCPInstrumentor, current
from otel_mcp.sessions.health import StoreHealth
from otel_mcp.sessions.lookups import Lookups
from otel_mcp.sessions.service import Sessions
from tests.hostile import test_sdk as sdk
from tests.support.messages import ask, call, initialize, notify
from tests.support.providers import Telemetry
from tests.support.sides import scope_of
from tests.support.stores import Listener, settings
from tests.unit import test_fault_injection as injection

ONLY_HERE = (
    "otel_mcp.integrations.",
    "otel_mcp.exchange.dispatch.",
    "otel_mcp.store.",
    "otel_mcp.sessions.",
    "otel_mcp.current.",
    "otel_mcp.telemetry.spans.",
    "otel_mcp.telemetry.processor.",
)
SHELL = {
    # What the guards themselves stand in, or what is there before and after any request.
    "otel_mcp.current.configure",
    "otel_mcp.current.discard",
    "otel_mcp.current.look",
    "otel_mcp.current.serve",
    "otel_mcp.telemetry.processor.SessionSpanProcessor.on_start",
    "otel_mcp.exchange.dispatch.Dispatch.__init__",
    "otel_mcp.exchange.dispatch.Dispatch.run",
    "otel_mcp.integrations.mcp_v2._Dispatch.__init__",
    "otel_mcp.integrations.mcp_v2._Dispatch.observe",
}


def sent() -> list[Any]:
    """Requests of both revisions, one after the other."""
    legacy = [
        scope_of([*sdk.JSON_HEADERS, (b"mcp-protocol-version", b"2025-11-25"), (b"mcp-session-id", b"made-up")]),
        scope_of(sdk.JSON_HEADERS),
    ]
    messages = [
        ask("tools/list", 2),
        call(request_id=3),
        call("fail", 4),
        call("missing", 5),
        notify("notifications/x"),
    ]
    return [
        (legacy[1], json.dumps(initialize()).encode()),
        *((legacy[0], json.dumps(message).encode()) for message in messages),
        sdk.modern(),
        sdk.modern(name="fail"),
        sdk.modern(**{"openai/session": "chat"}),
    ]


@pytest.fixture
def telemetry() -> Any:
    made = Telemetry()
    yield made
    made.shut_down()


def served(redis_url: str, telemetry: Telemetry, broken: Any = None) -> list[Any]:
    """What the server answers under instrumentation, with `broken` called once it is in place."""
    MCPInstrumentor().instrument(
        tracer_provider=telemetry.tracer_provider,
        meter_provider=telemetry.meter_provider,
        logger_provider=telemetry.logger_provider,
        service_name="hostile",
        redis_url=redis_url,
        response_headers="none",
        audit="events",
        flush_calls=2,
        flush_interval=0.05,
        sweep_interval=0.05,
    )
    try:
        if broken is not None:
            broken()
        return asyncio.run(sdk.serve(sent(), sse=False))
    finally:
        current.discard()
        MCPInstrumentor().uninstrument()


@pytest.mark.skipif("OTEL_MCP_LONG_TESTS" not in os.environ, reason="waits for a store that fails; `make fuzz` runs it")
@pytest.mark.parametrize("error", [MemoryError, RecursionError])
def test_a_raising_seam_or_store_leaves_the_answer_as_without_us(
    error: type[Exception], valkey_url: str, telemetry: Telemetry, failures: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = asyncio.run(sdk.serve(sent(), sse=False))
    seen: set[CodeType] = set()
    sys.setprofile(lambda frame, kind, _: seen.add(frame.f_code) if kind == "call" else None)
    try:
        assert served(valkey_url, telemetry) == plain
    finally:
        sys.setprofile(None)
    assert failures == {}

    problems: list[str] = []
    functions = list(injection.functions())
    assert {target.name for target in functions} >= SHELL
    targets = [
        target
        for target in functions
        if target.code in seen and target.name.startswith(ONLY_HERE) and target.name not in SHELL
    ]
    for target in targets:
        failures.clear()
        with monkeypatch.context() as patched:
            try:
                watched = served(valkey_url, telemetry, lambda t=target: injection.break_it(t, patched, error))
            except BaseException as raised:
                problems.append(f"{target.name}: raised {raised!r}")
                continue
        if watched != plain:
            problems.append(f"{target.name}: answered otherwise")
    assert len(targets) > 100
    assert problems == [], "\n".join(problems)


async def _cancelled() -> None:
    raise asyncio.CancelledError


@pytest.mark.parametrize("question", [_cancelled])
def test_a_question_that_is_cancelled_cancels_no_request(question: Any) -> None:
    """Who ends all tasks of a loop ends ours, too; the request that waits for it is not ours to end."""

    async def ask_it() -> str:
        return await Lookups(StoreHealth(Listener())).ask("recall", "x", question, "otherwise")

    assert asyncio.run(ask_it()) == "otherwise"


def test_the_server_ends_even_when_the_store_swallows_its_cancellation() -> None:
    async def swallow() -> float:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)
        return 0.0

    async def server() -> None:
        sessions = Sessions(settings(flush_interval=0.001), Listener())
        worker = sessions.worker
        worker.turn = swallow
        worker.start(asyncio.get_running_loop())
        held.append(sessions)  # The task must not end for want of an owner.
        worker.notify(now=True)
        for _ in range(10):
            await asyncio.sleep(0)

    held: list[Sessions] = []
    ended = threading.Event()
    threading.Thread(target=lambda: (asyncio.run(server()), ended.set()), daemon=True).start()

    assert ended.wait(60)
