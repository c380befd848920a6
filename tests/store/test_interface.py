"""`SessionState` as a tool's author uses it, over memory and over real servers."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import otel_mcp
from otel_mcp import SessionState, api, current
from otel_mcp.model import state as model
from tests.support.providers import Telemetry
from tests.support.stores import SERVERS, Server, delta, facts

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module", params=["memory", *SERVERS])
def url(request: pytest.FixtureRequest) -> Iterator[str | None]:
    if request.param == "memory":
        yield None
        return
    server = Server(request.param)
    yield server.url
    server.close()


@pytest.fixture(autouse=True)
async def instrumented(url: str | None, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """A process that has not met any request."""
    telemetry = Telemetry()
    for name in ("runtime", "_options", "_uninstrumented", "_failed"):
        monkeypatch.setattr(current, name, getattr(current, name))
    current.configure(
        tracer_provider=telemetry.tracer_provider,
        meter_provider=telemetry.meter_provider,
        logger_provider=telemetry.logger_provider,
        redis_url=url,
        service_name="svc",
    )
    yield
    if current.runtime is not None:
        await current.runtime.shut_down()
    current.discard()
    telemetry.shut_down()


async def test_a_session_is_created_changed_read_and_deleted() -> None:
    assert await SessionState.load("abc") is None

    state = await SessionState.get_or_create("abc", user_agent="agent/1")
    state.attributes["cart"] = 3
    await state.save()

    read = await SessionState.load("abc")
    assert read is not None
    assert (read.user_agent, read.attributes, read.service) == ("agent/1", {"cart": 3}, "svc")
    again = await SessionState.get_or_create("abc", user_agent="other")
    assert again == read
    assert await api.sessions().load("abc") == read
    assert await read.delete()
    assert (await SessionState.load("abc"), await read.delete()) == (None, False)


async def test_a_document_includes_calls_that_still_wait() -> None:
    now = time.time()
    api.sessions().submit(delta(2, of=facts("calls", at=now), at=now))

    state = await SessionState.load("calls")
    assert state is not None
    state.attributes["seen"] = True
    await state.save()

    read = await SessionState.load("calls")
    assert read is not None
    assert (read.tool_call_count, read.attributes) == (2, {"seen": True})
    assert await read.delete()


async def test_all_ways_to_a_session_lead_to_one_class() -> None:
    made = await SessionState.get_or_create("abc")

    assert type(made) is SessionState is api.SessionState is model.SessionState is otel_mcp.SessionState
    assert await made.delete()


@pytest.mark.parametrize("method", ["load", "get_or_create", "save", "delete"])
async def test_where_opentelemetry_is_switched_off_each_method_raises(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    state = SessionState(session_id="abc")
    arguments: tuple[Any, ...] = ("abc",) if method in {"load", "get_or_create"} else ()

    with pytest.raises(RuntimeError, match="OTEL_SDK_DISABLED"):
        await getattr(state, method)(*arguments)
