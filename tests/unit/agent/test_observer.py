"""A session that struggles is asked about once, within a budget that replicas share; its document has the advice."""

from __future__ import annotations

import json
import logging
import secrets
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from otel_mcp import MCPMiddleware
from otel_mcp.agent import observer as observer_module
from otel_mcp.agent.observer import Agent
from otel_mcp.model.delta import CallRecord
from otel_mcp.model.state import ADVICE
from otel_mcp.runtime import Runtime
from otel_mcp.settings import load
from tests.support import completions as support
from tests.support.answers import FAILED, Server
from tests.support.asgi import post
from tests.support.completions import Completions, completion, completions
from tests.support.messages import call, initialize, legacy_headers
from tests.support.providers import Telemetry
from tests.unit.conftest import MakeRuntime

pytestmark = pytest.mark.anyio


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Completions]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with completions() as made:
        yield made


MakeReplica = Callable[..., Runtime]


@pytest.fixture
def make_replica(make_runtime: MakeRuntime, server: Completions, valkey_url: str) -> MakeReplica:
    """Make replicas of one service, which share a store and ask the same endpoint."""
    prefix = f"agent-{secrets.token_hex(4)}:"

    def make(**options: Any) -> Runtime:
        common = {"agent_model": "small", "agent_url": server.url, "flush_interval": 0.02, "redis_prefix": prefix}
        return make_runtime(redis_url=valkey_url, **{**common, **options})

    return make


async def fail(runtime: Runtime, session_id: str, times: int = 3, tool: str = "find_orders") -> None:
    """Have calls of a session fail, by a server that gives out that session's id."""
    app = MCPMiddleware(Server({"tools/call": {"result": FAILED}}, session_id=session_id), runtime)
    await post(app, initialize())
    for number in range(times):
        arguments = {"order_id": f"secret-{number}"}
        await post(app, call(tool, number + 1, arguments=arguments), legacy_headers(session_id))


async def until(holds: Callable[[], bool | Awaitable[Any]]) -> None:
    with anyio.fail_after(60):
        while not (found if isinstance(found := holds(), bool) else await found):  # noqa: ASYNC110
            await anyio.sleep(0.01)


async def advice(runtime: Runtime, session_id: str) -> Any:
    state = await runtime.sessions.load(session_id)
    return state.attributes.get(ADVICE) if state is not None else None


async def advice_left(runtime: Runtime, session_id: str) -> Any:
    """The same, once the runtime has been shut down; that closes what it has opened again to look."""
    found = await advice(runtime, session_id)
    await runtime.shut_down()
    return found


async def test_a_session_with_failed_calls_is_asked_about_once_and_advised(
    make_replica: MakeReplica, server: Completions
) -> None:
    runtime = make_replica()
    await fail(runtime, "s1")
    await until(lambda: advice(runtime, "s1"))
    await fail(runtime, "s1", 5)
    await fail(runtime, "s2", 2)
    await runtime.shut_down()

    assert len(server.asked) == 1
    assert server.facts()["problem"]["name"] == "failures"
    assert [call["ended"] for call in server.facts()["calls"]] == ["tool"] * 3
    assert "secret" not in json.dumps(server.asked)
    noted = await advice_left(runtime, "s1")
    assert noted["failures"].pop("at")
    assert noted == {"failures": {**support.ADVICE, "model": "small"}}


async def test_replicas_that_see_the_same_session_fail_ask_one_question(
    make_replica: MakeReplica, server: Completions
) -> None:
    replicas = [make_replica() for _ in range(3)]
    for runtime in replicas:
        await fail(runtime, "shared")
    await until(lambda: advice(replicas[0], "shared"))
    for runtime in replicas:
        await runtime.shut_down()

    # With more calls it may become a retry storm, which is another question.
    problems = [server.facts(number)["problem"]["name"] for number in range(len(server.asked))]
    assert len(problems) == len(set(problems))


async def test_sessions_that_fail_alike_have_one_answer_for_an_hour(
    make_replica: MakeReplica, server: Completions, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = make_replica()
    for name, tool in (("s1", "find_orders"), ("s2", "find_orders"), ("s3", "refund")):
        await fail(runtime, name, tool=tool)
    for name in ("s1", "s2", "s3"):
        await until(lambda name=name: advice(runtime, name))
    assert len(server.asked) == 2
    first, second = await advice(runtime, "s1"), await advice(runtime, "s2")
    assert first["failures"]["cause"] == second["failures"]["cause"]

    now = time.monotonic()
    monkeypatch.setattr(observer_module, "time", SimpleNamespace(monotonic=lambda: now + 3700, time=time.time))
    await fail(runtime, "s4")
    await until(lambda: advice(runtime, "s4"))
    await runtime.shut_down()

    assert len(server.asked) == 3


async def test_an_answer_that_knows_contents_stays_with_its_session(
    make_replica: MakeReplica, server: Completions
) -> None:
    runtime = make_replica(store_content=True, agent_content=True)
    for name in ("s1", "s2"):
        await fail(runtime, name)
    await until(lambda: advice(runtime, "s2"))
    await runtime.shut_down()

    assert len(server.asked) == 2


async def test_replicas_share_the_budget_of_an_hour(
    make_replica: MakeReplica, server: Completions, telemetry: Telemetry
) -> None:
    replicas = [make_replica(agent_calls=3) for _ in range(2)]
    for number in range(4):
        for index, runtime in enumerate(replicas):
            await fail(runtime, f"s{number}-{index}", tool=f"tool{number}-{index}")
    await until(lambda: len(server.asked) >= 3)
    for runtime in replicas:
        await runtime.shut_down()

    assert len(server.asked) == 3
    assert telemetry.points("otel_mcp.observer.dropped") == []


@pytest.mark.parametrize(
    ("options", "shows"),
    [
        ({}, False),
        ({"store_content": True}, False),
        ({"agent_content": True}, False),
        ({"store_content": True, "agent_content": True}, True),
        (
            {"store_content": True, "agent_content": True, "redaction_hook": "tests.unit.agent.test_observer:hide"},
            False,
        ),
    ],
)
async def test_content_is_shown_with_both_switches_on_after_the_hook(
    make_replica: MakeReplica, server: Completions, options: dict[str, Any], shows: bool
) -> None:
    runtime = make_replica(**options)
    await fail(runtime, "s1")
    await until(lambda: advice(runtime, "s1"))
    await runtime.shut_down()

    asked = json.dumps(server.asked)
    assert ("secret-1" in asked, "secret reason" in asked) == (shows, shows)


def hide(_: object) -> str:
    """A redaction hook of a user's."""
    return "hidden"


async def test_a_pattern_that_was_found_is_asked_about_apart(make_replica: MakeReplica, server: Completions) -> None:
    runtime = make_replica()
    await fail(runtime, "s1")
    await until(lambda: advice(runtime, "s1"))
    state = await runtime.sessions.load("s1")
    assert state is not None
    state.attributes["cart"] = 3
    await runtime.sessions.save(state)

    for _ in range(2):
        runtime.observers.found("retry_storm", state)
    await until(lambda: len(server.asked) == 2)
    await runtime.observers.aclose(1.0)

    kept = await runtime.sessions.load("s1")
    await runtime.shut_down()
    assert kept is not None
    assert (kept.attributes["cart"], sorted(kept.attributes[ADVICE])) == (3, ["failures", "retry_storm"])


@pytest.mark.parametrize("trouble", [{"status": 500}, {"answer": {}}, {"answer": completion("I cannot tell.")}])
async def test_an_endpoint_without_advice_is_counted_and_left_alone(
    make_replica: MakeReplica, server: Completions, telemetry: Telemetry, failures: Any, trouble: dict[str, Any]
) -> None:
    for name, value in trouble.items():
        setattr(server, name, value)
    runtime = make_replica()
    await fail(runtime, "s1")
    await until(lambda: failures["observer agent"] == 1)
    await fail(runtime, "s2")
    await runtime.shut_down()

    assert len(server.asked) == 1
    assert telemetry.points("otel_mcp.observer.dropped") == [({"otel_mcp.observer": "agent"}, 1)]
    assert failures == {"observer agent": 1}
    assert await advice_left(runtime, "s1") is None


async def test_an_endpoint_that_knows_no_schema_costs_two_places_once(
    make_replica: MakeReplica, server: Completions
) -> None:
    server.knows_schemas = False
    runtime = make_replica(agent_calls=4)
    for number in range(4):
        await fail(runtime, f"s{number}", tool=f"tool{number}")
    await until(lambda: advice(runtime, "s2"))
    await runtime.shut_down()

    assert ["response_format" in asked for asked in server.asked] == [True, False, False, False]
    assert await advice_left(runtime, "s3") is None


async def test_a_session_that_was_deleted_meanwhile_stays_deleted(
    make_replica: MakeReplica, server: Completions
) -> None:
    runtime = make_replica()
    await fail(runtime, "s1")
    await until(lambda: advice(runtime, "s1"))
    state = await runtime.sessions.load("s1")
    assert state is not None
    await runtime.sessions.delete("s1")

    await Agent(runtime.settings, runtime.sessions).found("looped", state)

    assert len(server.asked) == 2
    assert await runtime.sessions.load("s1") is None


async def test_without_a_store_each_process_asks_for_itself(make_runtime: MakeRuntime, server: Completions) -> None:
    runtime = make_runtime(agent_model="small", agent_url=server.url, agent_calls=1, flush_interval=0.02)
    for name in ("s1", "s2"):
        await fail(runtime, name, tool=f"tool of {name}")
    await until(lambda: advice(runtime, "s1"))
    await runtime.shut_down()

    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("error_type", "failure", "wanted"),
    [
        (None, None, False),
        ("tool_error", "invalid_arguments", True),
        ("-32603", None, True),
        ("cancelled", "cancelled", False),
        ("disconnected", None, False),
    ],
)
async def test_only_calls_that_failed_are_looked_at(
    make_runtime: MakeRuntime, error_type: str | None, failure: str | None, wanted: bool
) -> None:
    runtime = make_runtime()
    agent = Agent(load(agent_model="small"), runtime.sessions)

    assert agent.wants(CallRecord("add", 1, 0.0, 0.1, error_type, failure)) is wanted


def test_without_its_library_the_agent_is_left_out_with_a_warning(
    make_runtime: MakeRuntime, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    caplog.set_level(logging.WARNING, logger="otel_mcp")

    runtime = make_runtime(agent_model="small")

    assert not runtime.observers
    assert "the extra `agent`" in caplog.text


def test_the_library_is_not_loaded_before_the_first_question() -> None:
    code = (
        "import sys; from otel_mcp.runtime import Runtime; from otel_mcp.settings import load; "
        "runtime = Runtime(load(agent_model='small')); assert runtime.observers; assert 'openai' not in sys.modules"
    )

    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
