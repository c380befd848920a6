"""How sessions went, as telemetry and documents have it: while they run, and at their end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from random import Random

import anyio
import pytest

from otel_mcp import MCPMiddleware, SessionState
from otel_mcp.identity.hosts import synthetic_type
from otel_mcp.model.delta import CallRecord, SessionDelta, SessionFacts
from otel_mcp.runtime import Runtime
from tests.support.agents import STORIES, Story, tell
from tests.support.answers import FAILED, Server
from tests.support.asgi import PATIENCE, delete, post
from tests.support.messages import call, initialize, legacy_headers
from tests.support.providers import Telemetry
from tests.support.stores import Server as Valkey
from tests.unit.conftest import MakeRuntime

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("patient")]


class Listening:
    """An observer that cares for patterns."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, str, int]] = []

    async def __call__(self, call: object, session: object) -> None:
        """Care for no call."""

    async def found(self, pattern: str, session: SessionState) -> None:
        self.heard.append((pattern, session.session_id, len(session.tool_calls)))


async def test_a_loop_is_an_event_a_metric_a_mark_and_the_outcome(
    make_runtime: MakeRuntime, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    listening = Listening()
    monkeypatch.setattr("otel_mcp.observers.discover", lambda *_: {"listening": listening})
    runtime = make_runtime(flush_interval=60)
    app = MCPMiddleware(Server(session_id="own"), runtime)
    await post(app, initialize(name="agent"))
    for number in range(5):
        await post(app, call("add", request_id=number), legacy_headers("own"))
    runtime.recorder.drain()
    await runtime.sessions.worker.turn()

    await runtime.observers.aclose(PATIENCE)
    state = await runtime.sessions.load("own")
    assert state is not None
    assert (state.findings, state.outcome) == (["looped"], None)
    assert listening.heard == [("looped", "own", 5)]
    assert telemetry.events()[-1] == {
        "name": "session.finding",
        "attributes": {
            "session.id": "own",
            "otel_mcp.session.source": "header",
            "otel_mcp.client.name": "agent",
            "user_agent.name": "agent",
            "otel_mcp.client.version": "9",
            "user_agent.version": "9",
            "mcp.protocol.version": "2025-11-25",
            "otel_mcp.session.finding": "looped",
            "otel_mcp.session.finding.calls": 5,
            "gen_ai.tool.name": "add",
        },
    }
    found = {"otel_mcp.session.finding": "looped", "otel_mcp.client.name": "agent"}
    assert (found, 1) in telemetry.points("otel_mcp.session.findings")

    await delete(app, legacy_headers("own"))
    await runtime.shut_down()
    ended = telemetry.events()[-1]["attributes"]
    assert (ended["otel_mcp.session.outcome"], ended["otel_mcp.session.tool_calls"]) == ("looped", 5)


async def test_a_storm_that_the_window_has_forgotten_is_the_outcome(
    make_runtime: MakeRuntime, telemetry: Telemetry
) -> None:
    server = Server({"tools/call": {"result": FAILED}}, session_id="own")
    runtime = make_runtime(flush_interval=60, max_tool_calls=3)
    app = MCPMiddleware(server, runtime)
    await post(app, initialize())
    for number in range(3):
        await post(app, call("fail", request_id=number), legacy_headers("own"))
    runtime.recorder.drain()
    await runtime.sessions.worker.turn()
    del server.results["tools/call"]
    for number in range(9):
        await post(app, call("add", number, arguments={"a": number}), legacy_headers("own"))
    await delete(app, legacy_headers("own"))
    await runtime.shut_down()

    state = await runtime.sessions.load("own")
    assert state is not None
    assert {each.tool_name for each in state.tool_calls} == {"add"}
    assert (state.outcome, state.findings) == ("retry_storm", ["retry_storm"])


async def test_visits_at_an_even_pace_are_a_bots_from_the_fifth_on(
    valkey: Valkey, make_runtime: MakeRuntime, telemetry: Telemetry
) -> None:
    replicas = [make_runtime(redis_url=valkey.url, flush_interval=0.05) for _ in range(2)]
    now = time.time() - 460
    for number in range(6):
        for visitor, calls in (("monitor", 0), ("person", int(number == 3))):
            name, at = f"{visitor}-{number}", now + 60 * number
            facts = SessionFacts(name, at, 3600.0, source="header", visitor=visitor)
            came = SessionDelta(facts, at, requests=2, call_count=calls, ended=(at + 1, "client_delete"))
            replicas[number % 2].sessions.submit(came)
        await replicas[number % 2].shut_down()

    ended = {
        each["attributes"]["session.id"]: each["attributes"]
        for each in telemetry.events()
        if each["name"] == "session.end"
    }
    found = {
        name: (given["otel_mcp.session.outcome"], given.get("user_agent.synthetic.type"))
        for name, given in ended.items()
    }
    assert found == {
        **{f"monitor-{number}": ("no_call", None) for number in range(4)},
        "monitor-5": ("probe", "bot"),
        "monitor-4": ("probe", "bot"),
        **{f"person-{number}": ("no_call", None) for number in (0, 1, 2, 4, 5)},
        "person-3": ("worked", None),
    }


def pieces(story: Story, random: Random) -> Iterator[tuple[float, SessionDelta]]:
    """Cut a session into flushes, with the part of it after which each comes; its last call has just ended."""
    calls = sorted(story.calls, key=lambda call: call.started_at)
    ahead = time.time() - max((call.started_at + call.duration for call in calls), default=0.0) - 0.5
    known = SessionFacts(story.kind, ahead + calls[0].started_at if calls else ahead, 3600.0, client_name=story.client)
    known.synthetic_type = synthetic_type(story.client, None)
    yield 0.0, SessionDelta(known, known.created_at, requests=2)
    while calls:
        count = random.randint(1, 4)
        made: list[CallRecord] = [replace(each, started_at=each.started_at + ahead) for each in calls[:count]]
        del calls[:count]
        last = max(each.started_at + each.duration for each in made)
        part = 1 - len(calls) / len(story.calls)
        yield part, SessionDelta(known, last, requests=len(made), call_count=len(made), calls=made)


async def test_twelve_stories_over_two_replicas_and_a_restart_come_out_right(
    valkey: Valkey, make_runtime: MakeRuntime, telemetry: Telemetry
) -> None:
    random = Random(17)

    def replica() -> Runtime:
        made = make_runtime(redis_url=valkey.url, flush_interval=0.05)
        made.sessions.ensure_running()
        return made

    replicas = [replica(), replica()]
    stories = {behaviour.__name__: tell(label, behaviour, 1) for label, behaviour in STORIES}
    cut = [(part, delta) for story in stories.values() for part, delta in pieces(story, random)]
    for is_second in (False, True):
        if is_second:
            await replicas[0].shut_down()
            replicas[0].disable()
            replicas[0] = replica()
        now = [delta for part, delta in cut if (part > 0.5) is is_second]
        random.shuffle(now)
        for delta in now:
            random.choice(replicas).sessions.submit(delta)
            if random.random() < 0.3:
                await random.choice(replicas).sessions.flush()
    # One replica ends them all, before the other has written the last of them.
    for name in stories:
        facts = SessionFacts(name, time.time(), 3600.0)
        replicas[1].sessions.submit(SessionDelta(facts, time.time(), ended=(time.time(), "client_delete")))
    await replicas[1].sessions.flush()
    await replicas[0].sessions.flush()

    def outcomes() -> dict[str, str]:
        ended = [each["attributes"] for each in telemetry.events() if each["name"] == "session.end"]
        return {each["session.id"]: each["otel_mcp.session.outcome"] for each in ended}

    with anyio.fail_after(PATIENCE):
        while len(outcomes()) < len(stories):  # noqa: ASYNC110 (it happens in the background)
            await anyio.sleep(0.05)
    assert outcomes() == {name: story.label for name, story in stories.items()}
    await replicas[1].shut_down()
    for name, story in stories.items():
        state = await replicas[0].sessions.load(name)
        assert state is not None
        assert (state.outcome, state.tool_call_count) == (story.label, len(story.calls))
    await replicas[0].shut_down()
