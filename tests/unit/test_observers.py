"""Observers get every finished call; a slow, hanging, raising or flooding one harms nobody and is counted."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from opentelemetry import trace

import otel_mcp
from otel_mcp import MCPMiddleware, SessionState, ToolCall
from otel_mcp import observers as observers_module
from otel_mcp.model.delta import CallRecord, SessionFacts
from otel_mcp.model.session import Session
from otel_mcp.observers import Observers, SlowAndFailing
from otel_mcp.settings import load
from tests.support.answers import FAILED, Server
from tests.support.asgi import post
from tests.support.messages import call, initialize, legacy_headers, modern
from tests.unit.conftest import MakeRuntime

pytestmark = pytest.mark.anyio

Calls = list[tuple[ToolCall, SessionState]]


def finished(name: str = "add", **changes: Any) -> tuple[ToolCall, SessionState]:
    """A call as observers get it."""
    fields: dict[str, Any] = {"started_at": datetime(2026, 11, 22, tzinfo=UTC), "duration": 0.1, **changes}
    return ToolCall(tool_name=name, **fields), SessionState(session_id="own")


def recorded(name: str = "add") -> tuple[CallRecord, Session]:
    """A call as the recorder hands it over."""
    return CallRecord(name, 1, 1.0, 0.1), Session(SessionFacts("own", 1.0, 60.0), 1.0)


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Make observers importable by name; returns the setting that names them."""

    def made(**observers: Any) -> str:
        monkeypatch.setitem(sys.modules, "observers_of_a_user", SimpleNamespace(**observers))
        return ",".join(f"observers_of_a_user:{name}" for name in observers)

    return made


class Dropped(dict[str, int]):
    """What observers did not get, by observer."""

    def __call__(self, name: str, count: int) -> None:
        self[name] = self.get(name, 0) + count


async def settled(until: Callable[[], bool]) -> None:
    with anyio.fail_after(60):
        while not until():
            await anyio.lowlevel.checkpoint()


async def test_an_observer_gets_each_finished_call_with_its_session(
    make_runtime: MakeRuntime, install: Callable[..., str]
) -> None:
    seen: Calls = []

    async def observer(finished_call: ToolCall, session: SessionState) -> None:
        seen.append((finished_call, session))

    runtime = make_runtime(flush_interval=0.01, observers=install(observer=observer))
    server = Server(session_id="own")
    app = MCPMiddleware(server, runtime)
    await post(app, initialize())
    await post(app, call(request_id=1), legacy_headers("own"))
    server.results["tools/call"] = {"result": FAILED}
    await post(app, call("fail", request_id=2), legacy_headers("own"))
    await settled(lambda: len(seen) == 2)

    assert [(entry.tool_name, entry.request_id, entry.error_type) for entry, _ in seen] == [
        ("add", 1, None),
        ("fail", 2, "tool_error"),
    ]
    assert all(entry.arguments is None and entry.result is None for entry, _ in seen)
    assert [(session.session_id, session.client_name, session.tool_calls) for _, session in seen] == [
        ("own", "unit-client", [])
    ] * 2


async def test_what_an_observer_changes_is_its_own(make_runtime: MakeRuntime, install: Callable[..., str]) -> None:
    seen: Calls = []

    async def vandal(finished_call: ToolCall, session: SessionState) -> None:
        seen.append((finished_call, session))
        finished_call.tool_name = session.session_id = session.client_name = "changed"

    runtime = make_runtime(flush_interval=0.01, observers=install(vandal=vandal))
    app = MCPMiddleware(Server(session_id="own"), runtime)
    await post(app, initialize())
    await post(app, call(), legacy_headers("own"))
    await settled(lambda: len(seen) == 1)
    await runtime.shut_down()

    state = await runtime.sessions.load("own")
    assert state is not None
    assert (state.session_id, state.client_name, state.tool_calls[0].tool_name) == ("own", "unit-client", "add")


async def test_an_observer_belongs_to_no_request(make_runtime: MakeRuntime, install: Callable[..., str]) -> None:
    seen: list[object] = []

    async def observer(_: ToolCall, __: SessionState) -> None:
        seen.append((otel_mcp.current_session(), trace.get_current_span().get_span_context().is_valid))

    runtime = make_runtime(flush_interval=0.01, observers=install(observer=observer))
    app = MCPMiddleware(Server(session_id="own"), runtime)
    for number in range(3):
        await post(app, call(request_id=number), legacy_headers("own"))
        await settled(lambda: len(seen) == number + 1)  # noqa: B023

    assert seen == [(None, False)] * 3


async def test_one_observer_waits_for_no_other(install: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    fast: Calls = []
    release = anyio.Event()
    hung: Calls = []

    async def hanging(*entry: Any) -> None:
        hung.append(entry)  # type: ignore[arg-type]
        await release.wait()

    async def quick(*entry: Any) -> None:
        fast.append(entry)  # type: ignore[arg-type]

    dropped = Dropped()
    observers = Observers(load(observers=install(hanging=hanging, quick=quick)), dropped)
    for _ in range(10):
        observers.deliver(*recorded())
    observers.ensure_running(asyncio.get_running_loop())
    await settled(lambda: len(fast) == 10)

    assert len(hung) == 1
    assert dropped == {}
    release.set()
    await settled(lambda: len(hung) == 10)


async def test_an_observer_that_hangs_is_given_up_and_counted(
    install: Callable[..., str], monkeypatch: pytest.MonkeyPatch, failures: Any
) -> None:
    monkeypatch.setattr(observers_module, "TIMEOUT", 0.001)
    begun: list[object] = []

    async def hanging(*entry: object) -> None:
        begun.append(entry)
        await anyio.sleep_forever()

    dropped = Dropped()
    observers = Observers(load(observers=install(hanging=hanging)), dropped)
    for _ in range(3):
        observers.deliver(*recorded())
    observers.ensure_running(asyncio.get_running_loop())
    name = "observers_of_a_user:hanging"
    await settled(lambda: dropped.get(name) == 3)

    assert len(begun) == 3
    assert failures[f"observer {name}"] == 3


class Odd(BaseException):
    """Neither an error nor an exit."""


@pytest.mark.parametrize(
    "problem", [ValueError("secret"), asyncio.CancelledError(), Odd("secret"), StopAsyncIteration()]
)
async def test_an_observer_that_raises_is_counted_and_gets_the_next_call(
    install: Callable[..., str], failures: Any, logs: Callable[[], list[str]], problem: BaseException
) -> None:
    seen: list[str] = []

    async def raising(finished_call: ToolCall, _: SessionState) -> None:
        seen.append(finished_call.tool_name)
        if finished_call.tool_name == "bad":
            raise problem

    dropped = Dropped()
    observers = Observers(load(observers=install(raising=raising)), dropped)
    for name in ("bad", "good"):
        observers.deliver(*recorded(name))
    observers.ensure_running(asyncio.get_running_loop())
    await settled(lambda: seen == ["bad", "good"])

    assert dropped == {"observers_of_a_user:raising": 1}
    assert "secret" not in "\n".join(logs())


async def test_an_observer_that_is_no_coroutine_function_is_counted(install: Callable[..., str], failures: Any) -> None:
    dropped = Dropped()
    observers = Observers(load(observers=install(plain=lambda *_: None)), dropped)
    observers.deliver(*recorded())
    observers.ensure_running(asyncio.get_running_loop())

    await settled(lambda: dropped == {"observers_of_a_user:plain": 1})

    assert failures["observer observers_of_a_user:plain"] == 1


async def test_patterns_go_to_observers_that_care_and_one_that_raises_is_counted(
    install: Callable[..., str], failures: Any
) -> None:
    class Watcher:
        def __init__(self) -> None:
            self.seen: list[object] = []

        def wants(self, _: object) -> bool:
            return False

        async def __call__(self, call: ToolCall, session: SessionState) -> None:
            raise AssertionError

        async def found(self, pattern: str, session: SessionState) -> None:
            self.seen.append((pattern, session.session_id, len(session.tool_calls)))

    class Failing(Watcher):
        async def found(self, pattern: str, session: SessionState) -> None:
            await super().found(pattern, session)
            raise ValueError("secret")

    async def plain(*_: object) -> None:
        raise AssertionError

    dropped, watcher, failing = Dropped(), Watcher(), Failing()
    observers = Observers(load(observers=install(failing=failing, plain=plain)), dropped, watcher=watcher)
    finished_call, session = finished()
    session.tool_calls = [finished_call]
    for pattern in ("looped", "ping_pong"):
        observers.found(pattern, session)
    await settled(lambda: len(watcher.seen) == len(failing.seen) == 2)

    assert watcher.seen == failing.seen == [("looped", "own", 1), ("ping_pong", "own", 1)]
    await settled(lambda: dropped == {"observers_of_a_user:failing": 2})


async def test_more_calls_than_an_observer_takes_let_the_oldest_go(
    install: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observers_module, "CAPACITY", 10)
    seen: list[str] = []

    async def observer(finished_call: ToolCall, _: SessionState) -> None:
        seen.append(finished_call.tool_name)

    dropped = Dropped()
    observers = Observers(load(observers=install(observer=observer)), dropped)
    for number in range(1000):
        observers.deliver(*recorded(str(number)))
    observers.ensure_running(asyncio.get_running_loop())
    await settled(lambda: len(seen) == 10)

    assert seen == [str(number) for number in range(990, 1000)]
    assert dropped == {"observers_of_a_user:observer": 990}


async def test_at_the_end_observers_may_finish_and_what_is_left_is_counted(
    install: Callable[..., str],
) -> None:
    seen: list[object] = []

    async def quick(*entry: object) -> None:
        seen.append(entry)

    async def hanging(*_: object) -> None:
        await anyio.sleep_forever()

    dropped = Dropped()
    observers = Observers(load(observers=install(quick=quick, hanging=hanging)), dropped)
    for _ in range(5):
        observers.deliver(*recorded())

    await observers.aclose(0.05)

    assert len(seen) == 5
    assert dropped["observers_of_a_user:hanging"] in (4, 5)
    assert "observers_of_a_user:quick" not in dropped


@pytest.mark.parametrize("path", ["nowhere:observer", "json:nothing", "json", ":", "a b:c"])
async def test_an_observer_that_cannot_be_loaded_is_left_out(failures: Any, path: str) -> None:
    observers = Observers(load(observers=path, log_calls=True), Dropped())

    assert bool(observers)
    assert sum(failures.values()) == 1


async def test_the_bundled_observer_tells_of_failing_and_slow_calls_without_content(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, logger="otel_mcp.calls")
    observe = SlowAndFailing(2.0)

    changes: dict[str, Any]
    for changes in (
        {"duration": 1.9},
        {"duration": 2.0, "trace_id": "ab" * 16},
        {"duration": 0.1, "error_type": "tool_error"},
    ):
        await observe(*finished(arguments={"secret": 1}, result="secret", **changes))
    call_, session = finished(duration=9.0)
    await observe(call_, session.model_copy(update={"session_id": "0123456789abcdef"}))

    assert caplog.messages == [
        f"tool 'add' took 2.000 s (session own, trace {'ab' * 16})",
        "tool 'add' failed with tool_error after 0.100 s (session own, trace None)",
        "tool 'add' took 9.000 s (session 01234567…, trace None)",
    ]


async def test_failed_calls_are_not_logged_unless_that_is_wanted(
    make_runtime: MakeRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for wanted in (False, True):
        runtime = make_runtime(log_calls=wanted)
        await post(MCPMiddleware(Server({"tools/call": {"result": FAILED}}), runtime), modern())
        await runtime.shut_down()

    lines = [record.getMessage() for record in caplog.records if record.name == "otel_mcp.calls"]
    assert [line[:33] for line in lines] == ["tool 'add' failed with tool_error"]


async def test_a_name_with_line_ends_writes_no_line_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    await SlowAndFailing(2.0)(*finished("a\nERROR forged", error_type="tool_error"))

    assert "\n" not in caplog.text.strip()


async def test_the_server_waits_for_no_observer(make_runtime: MakeRuntime, install: Callable[..., str]) -> None:
    async def hanging(*_: object) -> None:
        await anyio.sleep_forever()

    runtime = make_runtime(flush_calls=1, observers=install(hanging=hanging))
    app = MCPMiddleware(Server(session_id="own"), runtime)

    for number in range(50):
        reply = await post(app, call(request_id=number), legacy_headers("own"))
        assert reply.status == 200
