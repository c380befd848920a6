"""What becomes of a finished call: the session document, digests, and content only where somebody asked."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import anyio
import pytest

from otel_mcp import MCPMiddleware, ToolCall
from otel_mcp.model.call import Call, Exchange
from otel_mcp.model.delta import CallRecord, SessionDelta
from otel_mcp.model.outcomes import was_accepted
from otel_mcp.runtime import Runtime
from otel_mcp.telemetry.content import as_attribute, redactor
from otel_mcp.types import Message, Receive, Send
from otel_mcp.wire.jsonrpc import Message as RpcMessage
from otel_mcp.wire.jsonrpc import Outcome
from tests.support.answers import FAILED, OK, Server, error
from tests.support.asgi import post, read, respond
from tests.support.messages import MODERN_HEADERS, ask, call, initialize, legacy_headers, modern, notify
from tests.support.providers import Clock, Telemetry, id_of, trace_of
from tests.unit.conftest import MakeRuntime

pytestmark = pytest.mark.anyio


async def document(runtime: Runtime, session_id: str = "own") -> Any:
    """The session document, as anybody may load it."""
    await runtime.shut_down()
    return await runtime.sessions.load(session_id)


def ended(status: int | None, outcome: Outcome | None = None, *, accepted: bool = False) -> Call:
    """A finished call."""
    exchange = Exchange("POST", "/mcp", {})
    exchange.status = status
    made = exchange.add(RpcMessage("tools/call", 1, {}))
    made.outcome, made.accepted = outcome, accepted
    return made


@pytest.mark.parametrize(
    ("status", "outcome", "accepted"),
    [
        (200, Outcome(), True),
        (200, Outcome("tool_error"), True),
        (200, Outcome(None, "-32602"), True),
        (200, Outcome(None, "-32601"), True),
        (200, Outcome(None, "-32600"), False),
        (200, Outcome(None, "-32700"), False),
        (200, None, True),
        (202, None, True),
        (None, None, False),
        *((status, None, False) for status in (401, 403, 404, 405, 406, 413, 415, 421, 500, 502, 503)),
    ],
)
def test_a_message_was_accepted_where_the_answer_shows_it(
    status: int | None, outcome: Outcome | None, accepted: bool
) -> None:
    assert was_accepted(ended(status, outcome)) is accepted


def test_what_reached_a_handler_was_accepted_whatever_the_answer() -> None:
    assert was_accepted(ended(404, Outcome(None, "-32600"), accepted=True))


ONE_ROUND: Message = {"rounds": 1, "input_wait": 0.0, "waiting": None, "answers": None}


async def test_the_document_of_a_session_tells_its_calls(clock: Clock, runtime: Runtime, telemetry: Telemetry) -> None:
    server = Server({"tools/call": {"result": OK}}, session_id="own")

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        clock.now += 0.5
        await server(scope, receive, send)

    wrapped = MCPMiddleware(app, runtime)
    await post(wrapped, initialize())
    await post(wrapped, notify("notifications/initialized"), legacy_headers("own"))
    listed = await post(wrapped, ask("tools/list", 1), legacy_headers("own"))
    good = await post(wrapped, call(request_id=0), legacy_headers("own"))
    server.results["tools/call"] = {"result": FAILED}
    bad = await post(wrapped, call("fail", request_id="two"), legacy_headers("own"))

    state = await document(runtime)

    first, second = telemetry.spans()[-2:]
    assert state.model_dump(exclude={"tool_calls", "created_at", "last_activity"}) == {
        "session_id": "own",
        "user_agent": "unit/1",
        "tool_call_count": 2,
        "error_count": 0,
        "request_count": 4,
        "context_bytes": sum(len(reply.body) for reply in (listed, good, bad)),
        "catalogue_bytes": len(listed.body),
        "service": "unit",
        "client_name": "unit-client",
        "client_version": "9",
        "protocol_version": "2025-11-25",
        "source": "header",
        "conversation_id": None,
        "previous_id": None,
        "synthetic_type": None,
        "tenant": None,
        "attributes": {},
        "findings": [],
        "outcome": None,
        "ended": None,
        "interrupted": None,
    }
    assert [entry.model_dump(exclude={"arguments_digest"}) for entry in state.tool_calls] == [
        {
            "tool_name": "add",
            "request_id": 0,
            "started_at": datetime.fromtimestamp(clock.now - 1, UTC),
            "duration": pytest.approx(0.5),
            "error_type": None,
            "failure": None,
            "result_bytes": len(good.body),
            "trace_id": trace_of(first),
            "span_id": id_of(first),
            "service_instance_id": telemetry.tracer_provider.resource.attributes["service.instance.id"],
            "task": None,
            "arguments": None,
            "result": None,
            **ONE_ROUND,
        },
        {
            "tool_name": "fail",
            "request_id": "two",
            "started_at": datetime.fromtimestamp(clock.now - 0.5, UTC),
            "duration": pytest.approx(0.5),
            "error_type": "tool_error",
            "failure": "unknown_tool",
            "result_bytes": len(bad.body),
            "trace_id": trace_of(second),
            "span_id": id_of(second),
            "service_instance_id": telemetry.tracer_provider.resource.attributes["service.instance.id"],
            "task": None,
            "arguments": None,
            "result": None,
            **ONE_ROUND,
        },
    ]


async def test_errors_of_a_session_are_those_of_server_and_tools(runtime: Runtime, telemetry: Telemetry) -> None:
    listed = {"result": {"tools": [{"name": "add"}]}}
    server = Server({"tools/list": listed}, session_id="own")
    app = MCPMiddleware(server, runtime)
    await post(app, ask("tools/list"), legacy_headers("own"))
    for answer, tool in (
        ({"result": FAILED}, "add"),
        ({"error": {"code": -32603}}, "add"),
        ({"result": FAILED}, "made-up"),
        ({"error": {"code": -32602}}, "add"),
        ({"result": {}}, "add"),
    ):
        server.results["tools/call"] = answer
        await post(app, call(tool), legacy_headers("own"))

    telemetry.metrics()
    state = await runtime.sessions.load("own")
    assert state is not None
    assert [made.failure for made in state.tool_calls] == [
        "tool",
        "exception",
        "unknown_tool",
        "invalid_arguments",
        None,
    ]
    assert state.error_count == 2


async def test_a_digest_tells_repeats_apart_and_reveals_nothing(make_runtime: MakeRuntime) -> None:
    digests: list[list[str | None]] = []
    for key in ("one", "one", "other"):
        runtime = make_runtime(hash_key=key)
        app = MCPMiddleware(Server(session_id="own"), runtime)
        for arguments in ({"a": 1}, {"a": 1}, {"a": 2}, {}, None, {"a": "x" * 100_000}):
            message = call()
            message["params"]["arguments"] = arguments
            await post(app, message, legacy_headers("own"))
        digests.append([entry.arguments_digest for entry in (await document(runtime)).tool_calls])

    one, again, other = digests
    assert one == again
    assert one[0] == one[1] != one[2]
    assert one[3:] == [None, None, None]
    assert one[0] != other[0]
    assert one[0] is not None
    assert len(one[0]) == 16


async def test_content_stays_out_of_the_document_unless_the_user_asked_for_it(runtime: Runtime) -> None:
    app = MCPMiddleware(Server(session_id="own"), runtime)
    await post(app, call(), legacy_headers("own"))

    (entry,) = (await document(runtime)).tool_calls

    assert (entry.arguments, entry.result) == (None, None)


@pytest.mark.parametrize("sse", [False, True])
async def test_content_is_kept_where_the_user_asked_for_it(make_runtime: MakeRuntime, sse: bool) -> None:
    runtime = make_runtime(store_content=True)
    app = MCPMiddleware(Server(session_id="own", sse=sse), runtime)

    for _ in range(2):
        await post(app, call(), legacy_headers("own"))

    for entry in (await document(runtime)).tool_calls:
        assert (entry.arguments, entry.result) == ({"a": 1}, OK)


def install_hook(monkeypatch: pytest.MonkeyPatch, hook: object) -> str:
    """Make a module with a redaction hook importable; returns its setting."""
    module = ModuleType("hooks_of_a_user")
    module.__dict__["redact"] = hook
    monkeypatch.setitem(sys.modules, "hooks_of_a_user", module)
    return "hooks_of_a_user:redact"


async def test_a_redaction_hook_sees_every_value_before_it_is_kept(
    make_runtime: MakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def hook(value: Any) -> Any:
        seen.append(value)
        return "redacted"

    runtime = make_runtime(store_content=True, redaction_hook=install_hook(monkeypatch, hook))
    await post(MCPMiddleware(Server(session_id="own"), runtime), call(), legacy_headers("own"))

    (entry,) = (await document(runtime)).tool_calls
    assert (entry.arguments, entry.result) == ("redacted", "redacted")
    assert seen == [{"a": 1}, OK]


def failing(value: Any) -> Any:
    raise ValueError("secret")


@pytest.mark.parametrize("hook", [failing, "text"])
async def test_a_hook_that_fails_lets_nothing_through(
    make_runtime: MakeRuntime, monkeypatch: pytest.MonkeyPatch, failures: Any, logs: Any, hook: object
) -> None:
    runtime = make_runtime(store_content=True, redaction_hook=install_hook(monkeypatch, hook))
    await post(MCPMiddleware(Server(session_id="own"), runtime), call(), legacy_headers("own"))

    (entry,) = (await document(runtime)).tool_calls

    assert (entry.tool_name, entry.arguments, entry.result) == ("add", None, None)
    assert failures["redaction hook"] > 0
    assert "secret" not in "\n".join(logs())


@pytest.mark.parametrize("name", ["nowhere:redact", "json:nothing", "json", ":", "", "a b:c"])
def test_a_hook_that_cannot_be_loaded_lets_nothing_through(failures: Any, name: str) -> None:
    redact = redactor(name)

    assert redact({"a": 1}) is None
    assert failures["redaction hook"] > 0


def test_without_a_hook_content_is_as_it_is() -> None:
    assert redactor(None)({"a": 1}) == {"a": 1}


def test_a_captured_value_is_json_of_bounded_length() -> None:
    assert as_attribute({"a": [1, None, "\u00e9"]}) == '{"a":[1,null,"\u00e9"]}'
    assert len(as_attribute("x" * 1_000_000)) == 16_384
    assert as_attribute(object()).startswith('"')


@pytest.mark.parametrize("how", ["option", "variable"])
async def test_content_goes_on_spans_only_where_somebody_asked_for_it(
    make_runtime: MakeRuntime, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    if how == "variable":
        monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "span_only")
    runtime = make_runtime(**({"capture_content": True} if how == "option" else {}))

    for _ in range(2):
        await post(MCPMiddleware(Server(), runtime), modern(), MODERN_HEADERS)

    for span in telemetry.spans():
        attributes = span.attributes or {}
        assert attributes["gen_ai.tool.call.arguments"] == '{"a":1}'
        assert attributes["gen_ai.tool.call.result"] == as_attribute(OK)


async def test_a_message_that_the_server_refused_leaves_nothing_in_the_store(runtime: Runtime) -> None:
    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await read(receive)
        status = int(dict(scope["headers"])[b"x-test-status"])
        await respond(send, error(-32600, None), status)

    wrapped = MCPMiddleware(app, runtime)
    for status in (200, 400, 401, 403, 404, 405, 406, 413, 415, 421, 500):
        for message, headers in (
            (call(), legacy_headers(f"made-up-{status}")),
            (modern(), list(MODERN_HEADERS)),
            (call(meta={"openai/session": f"made-up-{status}"}), legacy_headers("x")),
            (call(), [("x-session-id", f"made-up-{status}"), ("mcp-protocol-version", "2025-11-25")]),
            (initialize(), []),
        ):
            await post(wrapped, message, [*headers, ("x-test-status", str(status))])

    await runtime.shut_down()
    assert runtime.sessions.active in (0, None)
    assert runtime.sessions.local == 0


async def test_a_document_keeps_the_newest_calls_and_the_true_count(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime(max_tool_calls=5, flush_calls=3)
    app = MCPMiddleware(Server(session_id="own"), runtime)

    for number in range(23):
        await post(app, call(request_id=number), legacy_headers("own"))

    state = await document(runtime)
    kept = [entry.request_id for entry in state.tool_calls]
    assert state.tool_call_count == 23
    assert 5 <= len(kept) <= 10
    assert kept == list(range(23))[-len(kept) :]


async def test_a_full_batch_is_drained_in_parts_that_no_request_waits_for(
    make_runtime: MakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = make_runtime(flush_calls=64)
    recorded: list[Call] = []
    batches: list[None] = []
    monkeypatch.setattr(runtime.metrics, "record", lambda call: recorded.append(call))
    monkeypatch.setattr(runtime.metrics, "close", lambda: batches.append(None))
    calls = [ended(200) for _ in range(100)]
    runtime.recorder.add(ended(200))
    runtime.recorder.drain()  # As a reader of metrics may have done before: all at once then, and only then.
    recorded.clear()
    batches.clear()

    for call_ in calls:
        runtime.recorder.add(call_)
    assert recorded == []
    parts: list[int] = []
    while len(recorded) < 100:
        before = len(recorded)
        await asyncio.sleep(0)
        parts.append(len(recorded) - before)

    assert recorded == calls
    assert max(parts) == 16
    assert len(batches) == 2


async def test_a_session_is_active_until_its_last_call_ended(
    make_runtime: MakeRuntime,
) -> None:
    runtime = make_runtime()
    app = MCPMiddleware(Server(session_id="own"), runtime)
    await post(app, call(request_id=1), legacy_headers("own"))
    await post(app, call(request_id=2), legacy_headers("own"))
    await asyncio.sleep(0.02)

    state = await document(runtime)

    ends = [entry.started_at.timestamp() + entry.duration for entry in state.tool_calls]
    assert state.last_activity.timestamp() == pytest.approx(max(ends), abs=5e-6)


async def test_a_batch_in_many_parts_is_one_delta_of_a_session(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime(flush_calls=20, max_tool_calls=5)
    deltas: list[SessionDelta] = []
    runtime.recorder._submit = deltas.append  # pyright: ignore[reportPrivateUsage]
    app = MCPMiddleware(Server(session_id="own"), runtime)

    for number in range(20):
        await post(app, call(request_id=number), legacy_headers("own"))
    for _ in range(20):
        await asyncio.sleep(0)

    assert [delta.call_count for delta in deltas] == [20]
    assert [record.request_id for record in deltas[0].calls] == [15, 16, 17, 18, 19]
    assert deltas[0].began == max(record.started_at for record in deltas[0].calls)
    assert deltas[0].first_activity is not None
    assert deltas[0].first_activity < deltas[0].calls[0].started_at


async def submitted_in_turns(runtime: Runtime, sessions: list[int]) -> tuple[list[int], list[SessionDelta]]:
    """Finish a call for each of `sessions` within one turn. Returns the records made in each turn, and the deltas."""
    deltas: list[SessionDelta] = []
    made: list[CallRecord] = []
    recorder, finished = cast("Any", runtime.recorder), list[Call]()
    make = recorder._call_record

    def counted(call: Call) -> CallRecord:
        made.append(record := make(call))
        return record

    recorder._call_record, recorder._submit = counted, deltas.append
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime.recorder, "add", finished.append)
        for number, session in enumerate(sessions):
            app = MCPMiddleware(Server(session_id=f"own{session}"), runtime)
            await post(app, call(request_id=number), legacy_headers(f"own{session}"))
    for call_ in finished:
        runtime.recorder.add(call_)
    turns: list[int] = []
    while sum(delta.call_count for delta in deltas) < len(sessions):
        before = len(made), len(deltas)
        await asyncio.sleep(0)
        turns.append(max(len(made) - before[0], len(deltas) - before[1]))
        assert len(turns) < 100
    return turns, deltas


@pytest.mark.parametrize(
    "sessions", [list(range(64)), [0] * 64, [0] * 30 + list(range(34))], ids=["many", "one", "both"]
)
async def test_records_of_a_batch_are_made_in_parts(make_runtime: MakeRuntime, sessions: list[int]) -> None:
    turns, deltas = await submitted_in_turns(make_runtime(flush_calls=64, max_tool_calls=64), sessions)

    assert max(turns) == 16
    assert sum(turns) == 64
    assert len(deltas) == len(set(sessions))
    for session, delta in zip(dict.fromkeys(sessions), deltas, strict=True):
        assert [entry.request_id for entry in delta.calls] == [n for n, own in enumerate(sessions) if own == session]


async def test_the_next_batch_begins_after_the_records_of_the_one_before(make_runtime: MakeRuntime) -> None:
    sessions = [number % 20 for number in range(60)]

    _, deltas = await submitted_in_turns(make_runtime(flush_calls=30), sessions)

    assert [delta.call_count for delta in deltas] == ([2] * 10 + [1] * 10) * 2
    assert [[entry.request_id for entry in delta.calls] for delta in deltas[:20:19]] == [[0, 20], [19]]
    assert [entry.request_id for delta in deltas for entry in delta.calls if delta.facts is deltas[0].facts] == [
        0,
        20,
        40,
    ]


async def test_a_drain_submits_what_is_left_of_a_closed_batch(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime(flush_calls=40)
    deltas: list[SessionDelta] = []
    recorder = cast("Any", runtime.recorder)
    recorder._submit = deltas.append
    for number in range(40):
        app = MCPMiddleware(Server(session_id=f"own{number}"), runtime)
        await post(app, call(request_id=number), legacy_headers(f"own{number}"))
    recorder._drain(45)
    assert len(deltas) == 5

    runtime.recorder.drain()

    assert [entry.request_id for delta in deltas for entry in delta.calls] == list(range(40))


async def test_a_delta_that_cannot_be_submitted_costs_no_other(make_runtime: MakeRuntime, failures: Any) -> None:
    runtime = make_runtime()
    deltas: list[SessionDelta] = []

    def submit(delta: SessionDelta) -> None:
        if not failures["record"]:
            raise RuntimeError("secret")
        deltas.append(delta)

    cast("Any", runtime.recorder)._submit = submit
    for number in range(3):
        app = MCPMiddleware(Server(session_id=f"own{number}"), runtime)
        await post(app, call(request_id=number), legacy_headers(f"own{number}"))

    runtime.recorder.drain()

    assert [entry.request_id for delta in deltas for entry in delta.calls] == [1, 2]


async def test_however_many_calls_end_at_once_none_is_lost(
    make_runtime: MakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = make_runtime()
    recorded: list[Call] = []
    monkeypatch.setattr(runtime.metrics, "record", lambda call: recorded.append(call))
    calls = [ended(200) for _ in range(12_000)]

    for call_ in calls:
        runtime.recorder.add(call_)
    runtime.recorder.drain()

    assert recorded == calls


class Slow:
    """Stands for `Metrics.record`: keeps what is recorded, and holds the first until `go_on` is set."""

    def __init__(self) -> None:
        self.recorded: list[Call] = []
        self.began = threading.Event()
        self.go_on = threading.Event()

    def __call__(self, call: Call) -> None:
        if not self.began.is_set():
            self.began.set()
            assert self.go_on.wait(60)
        self.recorded.append(call)

    def held_in(self, work: Callable[[], None]) -> threading.Thread:
        """A thread that does `work`, which has begun to record."""
        thread = threading.Thread(target=work)
        thread.start()
        assert self.began.wait(60)
        return thread


async def test_the_loop_does_not_spin_while_another_thread_records(
    make_runtime: MakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder, slow = (runtime := make_runtime(flush_calls=8)).recorder, Slow()
    monkeypatch.setattr(runtime.metrics, "record", slow)
    looks: list[None] = []
    drain = recorder._drain  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(recorder, "_drain", lambda most: (looks.append(None), drain(most))[1])
    calls = [ended(200) for _ in range(20)]
    recorder.add(calls[0])
    thread = slow.held_in(recorder.drain)

    for call_ in calls[1:]:
        recorder.add(call_)
    for _ in range(200):
        await asyncio.sleep(0)
    turns = len(looks)
    slow.go_on.set()
    with anyio.fail_after(60):
        while len(slow.recorded) < 20:
            await anyio.lowlevel.checkpoint()
    thread.join()

    assert turns < 20
    assert sorted(map(id, slow.recorded)) == sorted(map(id, calls))


async def test_a_drain_of_all_during_a_partial_one_is_completed(
    make_runtime: MakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that ends drains from another thread than the loop's, and the loop may have no other turn."""
    recorder, slow = (runtime := make_runtime(flush_calls=8)).recorder, Slow()
    monkeypatch.setattr(runtime.metrics, "record", slow)

    async def loop_that_ends() -> None:
        for _ in range(200):
            recorder.add(ended(200))
        await asyncio.sleep(0)

    thread = slow.held_in(lambda: asyncio.run(loop_that_ends()))
    recorder.drain()
    slow.go_on.set()
    await asyncio.to_thread(thread.join)

    assert len(slow.recorded) == 200


async def test_a_drain_wanted_after_the_last_look_looks_again(
    make_runtime: MakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = (runtime := make_runtime()).recorder
    recorded: list[Call] = []
    monkeypatch.setattr(runtime.metrics, "record", lambda call: recorded.append(call))

    class Late:
        """A lock, before whose first release somebody else wants what has just ended."""

        def __init__(self) -> None:
            self.asked = False
            self.acquire = (lock := threading.Lock()).acquire
            self._release = lock.release

        def release(self) -> None:
            if not self.asked:
                self.asked = True
                recorder.add(ended(200))
                recorder.drain()
            self._release()

    recorder._lock = Late()  # type: ignore[assignment]  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
    recorder.add(ended(200))
    recorder.drain()

    assert len(recorded) == 2


async def test_clear_leaves_nothing_of_a_batch(make_runtime: MakeRuntime) -> None:
    recorder = (runtime := make_runtime(flush_calls=20)).recorder
    deltas: list[SessionDelta] = []
    recorder._submit = deltas.append  # pyright: ignore[reportPrivateUsage]
    app = MCPMiddleware(Server(session_id="own"), runtime)
    for number in range(3):
        await post(app, call(request_id=number), legacy_headers("own"))
    recorder._drain(2)  # pyright: ignore[reportPrivateUsage]

    recorder.clear()
    await post(app, call(request_id=3), legacy_headers("own"))
    recorder.drain()

    assert [delta.call_count for delta in deltas] == [1]


async def test_calls_that_find_no_room_are_counted(make_runtime: MakeRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder, slow = (runtime := make_runtime()).recorder, Slow()
    dropped: Counter[str] = Counter()
    monkeypatch.setattr(runtime.metrics, "record", slow)
    monkeypatch.setattr(runtime.metrics, "store_dropped", lambda count, reason: dropped.update({reason: count}))
    calls = [ended(200) for _ in range(10_500)]
    recorder.add(calls[0])
    thread = slow.held_in(recorder.drain)

    for call_ in calls[1:]:
        recorder.add(call_)
    slow.go_on.set()
    thread.join()
    recorder.drain()

    assert len(slow.recorded) + dropped["full"] == len(calls)
    assert dropped["full"] == 500
    assert slow.recorded[1:] == calls[501:]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_begins_with_none_of_its_parents_calls(
    make_runtime: MakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even with its lock, which a thread that is not in the child may have held."""
    recorder, slow = (runtime := make_runtime(flush_calls=8)).recorder, Slow()
    monkeypatch.setattr(runtime.metrics, "record", slow)
    for _ in range(5):
        recorder.add(ended(200))
    thread = slow.held_in(recorder.drain)

    if not (child := os.fork()):
        slow.go_on.set()
        recorder.add(ended(200))
        recorder.drain()
        os._exit(len(slow.recorded))
    status = os.waitpid(child, 0)[1]
    slow.go_on.set()
    thread.join()

    assert os.waitstatus_to_exitcode(status) == 1
    assert len(slow.recorded) == 5


def test_a_loop_that_stopped_in_a_hurry_keeps_no_other_from_recording(
    make_runtime: MakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = make_runtime(flush_calls=8)
    recorded: list[Call] = []
    monkeypatch.setattr(runtime.metrics, "record", lambda call: recorded.append(call))

    async def fill() -> None:
        for _ in range(10):
            runtime.recorder.add(ended(200))

    async def go_on() -> None:
        await fill()
        while len(recorded) < 20:
            await anyio.lowlevel.checkpoint()

    stopped = asyncio.new_event_loop()
    try:
        stopped.run_until_complete(fill())
        asyncio.run(asyncio.wait_for(go_on(), 60))
    finally:
        stopped.close()

    assert len(recorded) == 20


async def test_where_content_is_kept_fewer_calls_wait(
    make_runtime: MakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = make_runtime(flush_calls=8, store_content=True)
    recorded: list[Call] = []
    monkeypatch.setattr(runtime.metrics, "record", lambda call: recorded.append(call))

    for _ in range(20):
        runtime.recorder.add(ended(200))

    assert len(recorded) == 16


async def test_without_a_loop_a_full_batch_is_drained_at_once(
    make_runtime: MakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = make_runtime(flush_calls=8)
    recorded: list[Call] = []
    monkeypatch.setattr(runtime.metrics, "record", lambda call: recorded.append(call))

    def finish() -> None:
        for _ in range(20):
            runtime.recorder.add(ended(200))

    await asyncio.to_thread(finish)

    assert len(recorded) == 16


async def test_finished_calls_are_recorded_without_another_request(make_runtime: MakeRuntime) -> None:
    seen = anyio.Event()
    telemetry_of: list[ToolCall] = []

    async def observer(finished: ToolCall, _: object) -> None:
        telemetry_of.append(finished)
        seen.set()

    sys.modules["observers_of_a_user"] = SimpleNamespace(observer=observer)  # type: ignore[assignment]
    try:
        runtime = make_runtime(flush_interval=0.01, observers="observers_of_a_user:observer")
        await post(MCPMiddleware(Server(), runtime), call(), legacy_headers("own"))
        with anyio.fail_after(60):
            await seen.wait()
    finally:
        del sys.modules["observers_of_a_user"]

    assert [finished.tool_name for finished in telemetry_of] == ["add"]


def test_a_second_event_loop_records_as_the_first_one_did(make_runtime: MakeRuntime, telemetry: Telemetry) -> None:
    """Some hosts, and most test clients, run each request on a loop of its own."""
    runtime = make_runtime(flush_interval=0.01)
    app = MCPMiddleware(Server(), runtime)

    async def first() -> None:
        await post(app, call(request_id=1), legacy_headers("own"))

    async def second() -> None:
        await post(app, call(request_id=2), legacy_headers("own"))
        with anyio.fail_after(60):
            while len(telemetry.span_exporter.get_finished_spans()) < 2:
                await anyio.lowlevel.checkpoint()

    asyncio.run(first())
    asyncio.run(second())

    assert [(span.attributes or {})["jsonrpc.request.id"] for span in telemetry.spans()] == ["1", "2"]


async def test_recording_has_nothing_of_the_call_that_started_it(
    make_runtime: MakeRuntime, telemetry: Telemetry
) -> None:
    runtime = make_runtime(flush_interval=0.01)
    app = MCPMiddleware(Server(session_id="own"), runtime)
    await post(app, initialize())
    await post(app, call(), legacy_headers("own"))
    telemetry.spans()

    # The app is known to have no seam, so this call's span and session are current while it is answered.
    await post(app, call(), legacy_headers("own"))
    await post(MCPMiddleware(Server(), runtime), modern("other"), [*MODERN_HEADERS, ("via", "x")], path="/elsewhere")
    with anyio.fail_after(60):
        while len(telemetry.span_exporter.get_finished_spans()) < 4:
            await anyio.lowlevel.checkpoint()

    attributes = telemetry.spans()[-1].attributes or {}
    assert attributes["otel_mcp.session.source"] == "none"
    assert "session.id" not in attributes


async def test_calls_of_one_session_are_one_delta_with_its_agreement(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    deltas: list[SessionDelta] = []
    monkeypatch.setattr(runtime.recorder, "_submit", deltas.append)
    app = MCPMiddleware(Server(), runtime)
    for client in ("one", "two", "one"):
        await post(app, modern(client=client), MODERN_HEADERS)
    await post(app, modern("fail", client="one"), MODERN_HEADERS)
    runtime.recorder.drain()

    counts = sorted((delta.requests, delta.call_count, len(delta.calls)) for delta in deltas)
    assert counts == [(1, 1, 1), (3, 3, 3)]
    assert len({delta.touch_key for delta in deltas}) == 2
    assert None not in {delta.touch_key for delta in deltas}


async def test_a_call_that_cannot_be_recorded_costs_no_other(
    runtime: Runtime, telemetry: Telemetry, failures: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounded = runtime.metrics.names["tools/call"].bounded
    broken: list[str] = []

    def once(name: str, **known: bool) -> str:
        if not broken:
            broken.append(name)
            raise RuntimeError("secret")
        return bounded(name, **known)

    monkeypatch.setitem(cast("dict[str, Any]", runtime.metrics.names), "tools/call", SimpleNamespace(bounded=once))
    app = MCPMiddleware(Server(), runtime)
    for number in range(3):
        await post(app, call(request_id=number), legacy_headers("own"))

    assert sum(telemetry.counts("mcp.server.operation.duration").values()) == 2
    assert len(telemetry.spans()) == 3
    assert failures["record"] == 1


async def test_counts_that_cannot_be_recorded_cost_no_session_its_calls(
    runtime: Runtime, failures: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise MemoryError

    monkeypatch.setattr(runtime.metrics, "settle", broken)
    runtime.metrics.request_refused(403, None)
    app = MCPMiddleware(Server(session_id="own"), runtime)
    await post(app, call(), legacy_headers("own"))

    state = await document(runtime)

    assert state.tool_call_count == 1
    assert failures["record"] > 0
