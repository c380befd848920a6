"""Rounds of one call on replicas with one real store, where the handler is faster than the store, or nobody knows."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from functools import partial
from typing import Any, Final

import anyio
import pytest

from otel_mcp import MCPMiddleware, semconv
from otel_mcp.runtime import Runtime
from otel_mcp.sessions import lookups
from otel_mcp.types import Asker, Message
from tests.support.answers import FAILED, OK, Server
from tests.support.asgi import Headers, post
from tests.support.messages import CLIENT_INFO, MODERN_HEADERS, call, legacy_headers
from tests.support.providers import Telemetry
from tests.support.stores import Server as Valkey
from tests.unit.conftest import MakeRuntime

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("patient")]

META: Final[Message] = {CLIENT_INFO: {"name": "person", "version": "1"}}


class Replicas:
    """Two processes, as far as they differ, on one store."""

    def __init__(self, make_runtime: MakeRuntime, valkey: Valkey) -> None:
        self.redis = valkey.client(decode_responses=True)
        self.redis.flushall()
        self.runtimes: list[Runtime] = [make_runtime(redis_url=valkey.url, flush_interval=0.05) for _ in range(2)]

    async def call(self, replica: int, result: Message, **params: Any) -> None:
        """Have a replica answer a call; it answers as soon as it is asked."""
        answers = Server({"tools/call": {"result": result}})
        await post(MCPMiddleware(answers, self.runtimes[replica]), call(meta=META, **params), list(MODERN_HEADERS))

    def count_looks(self, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
        """Count from now on what is looked up of rounds."""
        looks, sessions = Counter[str](), self.runtimes[1].sessions
        get = sessions.get

        async def counting(key: str, asker: Asker | None = None) -> str | None:
            looks[key.split(":")[0]] += 1
            return await get(key, asker)

        monkeypatch.setattr(sessions, "get", counting)
        return looks

    def counted(self) -> int:
        """Count the tool calls, as far as they are recorded."""
        return sum(sum(runtime.metrics.calls.values()) for runtime in self.runtimes)

    async def looked(self) -> None:
        """Wait until no look is under way, and what was asked for has been written."""
        while any(self.under_way(replica) for replica in range(2)):  # noqa: ASYNC110 (tasks of ours)
            await asyncio.sleep(0.001)

    def under_way(self, replica: int) -> int:
        rounds = self.runtimes[replica].exchanges.inflight.rounds
        return len(rounds._looks) + len(rounds._notes)  # pyright: ignore[reportPrivateUsage]

    async def settle(self) -> None:
        await self.looked()
        for runtime in self.runtimes:
            await runtime.shut_down()


def asks(state: str) -> Message:
    return {"resultType": "input_required", "inputRequests": {}, "requestState": state}


@pytest.fixture
async def replicas(
    valkey: Valkey, make_runtime: MakeRuntime, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> Replicas:
    monkeypatch.setattr(lookups, "PATIENCE", 60.0)  # The machine may be slow.
    made = Replicas(make_runtime, valkey)
    for replica in range(2):
        await made.call(replica, OK)  # From here on both know the session and the key of its hashes.
    await made.settle()
    telemetry.span_exporter.clear()
    return made


def dropped(telemetry: Telemetry) -> list[float]:
    """What could not be noted for other replicas."""
    points = telemetry.points(semconv.METRIC_STORE_DROPPED)
    return [value for by, value in points if by[semconv.REJECT_REASON] == "rounds"]


def rounds(telemetry: Telemetry) -> list[tuple[object, list[int]]]:
    """The rounds of the calls in the order of their beginning, and what they link to."""
    finished = sorted(telemetry.span_exporter.get_finished_spans(), key=lambda span: span.start_time or 0)
    spans = [(span.get_span_context(), span) for span in finished if span.name.startswith("tools/call")]
    ids = [context.span_id for context, _ in spans if context is not None]
    return [
        ((span.attributes or {}).get(semconv.CALL_ROUND), [ids.index(link.context.span_id) for link in span.links])
        for _, span in spans
    ]


async def test_rounds_faster_than_the_store_are_numbered_and_linked(replicas: Replicas, telemetry: Telemetry) -> None:
    before = replicas.counted()
    await replicas.call(0, asks("first"))
    await replicas.looked()
    await replicas.call(1, asks("second"), requestState="first", inputResponses={})
    await replicas.looked()
    await replicas.call(0, OK, requestState="second", inputResponses={})
    await replicas.settle()

    assert rounds(telemetry) == [(1, []), (2, [0]), (3, [0])]
    assert replicas.counted() - before == 1


async def test_a_round_waits_for_no_look_when_the_process_ends(
    replicas: Replicas, telemetry: Telemetry, valkey: Valkey
) -> None:
    before = replicas.counted()
    valkey.hang()
    try:
        await replicas.call(1, OK, requestState="first")
        answered = time.time_ns()
        assert (replicas.under_way(1), rounds(telemetry)) == (1, [])
        await asyncio.sleep(0.01)
        replicas.runtimes[1].exchanges.close()
        replicas.runtimes[1].recorder.drain()
    finally:
        valkey.resume()

    (span,) = telemetry.span_exporter.get_finished_spans()
    assert span.end_time is not None
    assert span.end_time <= answered
    assert (rounds(telemetry), replicas.counted() - before) == ([(None, [])], 1)
    await replicas.looked()


@pytest.mark.parametrize(("result", "looks"), [(OK, 2), (FAILED, 1)])
async def test_what_nobody_has_asked_for_is_looked_up_twice_at_most(
    replicas: Replicas, result: Message, looks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = replicas.count_looks(monkeypatch)
    await replicas.call(1, result, requestState="forged")
    await replicas.settle()
    assert counted["round"] == looks


async def test_looks_beyond_a_hundred_are_left_out(
    replicas: Replicas, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, looks = replicas.counted(), replicas.count_looks(monkeypatch)
    async with anyio.create_task_group() as tasks:
        for number in range(150):
            tasks.start_soon(partial(replicas.call, 1, FAILED, requestState=f"forged-{number}"))
    await replicas.settle()

    assert (dropped(telemetry), looks["round"]) == ([0], 100)
    assert replicas.counted() - before == 150


async def test_a_session_has_the_store_keep_few_questions_for_ten_minutes(
    replicas: Replicas, telemetry: Telemetry
) -> None:
    for number in range(70):
        await replicas.call(0, asks(f"state-{number}"))
    await replicas.settle()

    (keys, left) = replicas.redis.keys("*round:*"), dropped(telemetry)
    assert (len(keys), left) == (64, [6])
    assert all(0 < replicas.redis.ttl(key) <= 600 for key in keys)


@pytest.mark.parametrize("headers", [MODERN_HEADERS, legacy_headers("chat")], ids=["2026-07-28", "2025-11-25"])
async def test_a_forged_round_is_a_call_in_either_revision(replicas: Replicas, headers: Headers) -> None:
    before = replicas.counted()
    for forged in ("inputResponses", "requestState"):
        params: Message = {forged: "forged"}
        await post(MCPMiddleware(Server(), replicas.runtimes[0]), call(meta=META, **params), list(headers))
    await replicas.settle()

    assert replicas.counted() - before == 2
