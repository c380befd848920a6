"""One record for each tool call: who called what, when, and how it went; and what becomes of records nobody takes."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from opentelemetry._logs import LogRecord, NoOpLoggerProvider
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor, SimpleLogRecordProcessor
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from otel_mcp import MCPMiddleware
from otel_mcp.model.call import Exchange
from otel_mcp.runtime import Runtime
from otel_mcp.settings import load
from otel_mcp.telemetry import audit
from otel_mcp.telemetry.audit import Audit
from otel_mcp.types import ASGIApp, Message, Receive, Send
from otel_mcp.wire.jsonrpc import Message as RpcMessage
from tests.support.answers import FAILED, OK, Server
from tests.support.asgi import post, read, respond
from tests.support.messages import CLIENT_INFO, MODERN_HEADERS, ask, call, initialize, legacy_headers, modern
from tests.support.providers import IN_MEMORY_LOGS, Clock, Telemetry, id_of, trace_of
from tests.support.waiting import wait_until
from tests.unit.conftest import MakeRuntime

pytestmark = pytest.mark.anyio

EVENT = "otel_mcp.tool.call"
REFUSED = "otel_mcp.request.refused"
DROPPED = "otel_mcp.audit.dropped"
ANN = [("authorization", "Bearer secret-of-ann")]


def records(telemetry: Telemetry) -> list[Any]:
    """The audit records, oldest first."""
    telemetry.metrics()  # Which records what has finished.
    exported = [data.log_record for data in telemetry.log_exporter.get_finished_logs()]
    return [record for record in exported if record.event_name == EVENT]


def refusals(telemetry: Telemetry) -> list[dict[str, Any]]:
    """The attributes of the records of requests that were refused unread."""
    exported = [data.log_record for data in telemetry.log_exporter.get_finished_logs()]
    return [dict(record.attributes or {}) for record in exported if record.event_name == REFUSED]


def dropped(telemetry: Telemetry) -> dict[str, int]:
    return {attributes["otel_mcp.reason"]: value for attributes, value in telemetry.points(DROPPED) if value}


@pytest.fixture
def audited(make_runtime: MakeRuntime) -> Runtime:
    return make_runtime(audit="events", hash_key="shared")


async def test_without_the_setting_there_is_no_record(runtime: Runtime, telemetry: Telemetry) -> None:
    await post(MCPMiddleware(Server(), runtime), call(), ANN)

    assert records(telemetry) == []
    assert DROPPED not in telemetry.metrics()


async def test_a_record_tells_who_called_what_and_how_it_went(
    clock: Clock, audited: Runtime, telemetry: Telemetry
) -> None:
    server = Server(session_id="own")
    audited.metrics.catalogues.tools.learn(["fail"])  # As its list of tools says.

    async def slow(scope: Message, receive: Receive, send: Send) -> None:
        clock.now += 0.5
        await server(scope, receive, send)

    app = MCPMiddleware(slow, audited)
    await post(app, initialize(), ANN)
    worked = await post(app, call(arguments={"a": 1}), [*legacy_headers("own"), *ANN])
    server.results["tools/call"] = {"result": FAILED}
    failed = await post(app, call("fail", 2, arguments={"a": 1}), [*legacy_headers("own"), *ANN])

    audited.recorder.drain()
    first, second = records(telemetry)
    span = next(span for span in telemetry.spans() if span.name == "tools/call add")
    assert (f"{first.trace_id:032x}", f"{first.span_id:016x}") == (trace_of(span), id_of(span))
    assert first.timestamp == clock.now_ns - 500_000_000
    assert (first.severity_number.name, first.body) == ("INFO", None)
    common = {
        "enduser.pseudo.id": first.attributes["enduser.pseudo.id"],
        "otel_mcp.client.name": "unit-client",
        "otel_mcp.client.version": "9",
        "session.id": "own",
        "otel_mcp.session.source": "header",
        "otel_mcp.call.duration": pytest.approx(0.5),
        "otel_mcp.call.arguments.hash": first.attributes["otel_mcp.call.arguments.hash"],
    }
    number = first.attributes["otel_mcp.audit.number"]
    assert dict(first.attributes) == common | {
        "gen_ai.tool.name": "add",
        "otel_mcp.call.result.size": len(worked.body),
        "otel_mcp.audit.number": number,
    }
    assert dict(second.attributes) == common | {
        "gen_ai.tool.name": "fail",
        "otel_mcp.call.result.size": len(failed.body),
        "error.type": "tool_error",
        "otel_mcp.failure": "tool",
        "otel_mcp.audit.number": number + 1,
    }
    assert len(first.attributes["enduser.pseudo.id"]) == 32
    assert "secret-of-ann" not in telemetry.everything()


async def test_each_round_of_a_call_is_on_record_with_its_number(audited: Runtime, telemetry: Telemetry) -> None:
    asking = {"resultType": "input_required", "requestState": "s-1", "inputRequests": {"a": {"method": "roots/list"}}}
    await post(MCPMiddleware(Server({"tools/call": {"result": asking}}), audited), modern(), MODERN_HEADERS)
    answer = modern()
    answer["params"] |= {"requestState": "s-1", "inputResponses": {"a": {"roots": []}}}
    await post(MCPMiddleware(Server(), audited), answer, MODERN_HEADERS)
    await post(MCPMiddleware(Server(), audited), modern(), MODERN_HEADERS)
    with anyio.fail_after(60):
        while len(records(telemetry)) < 3:  # noqa: ASYNC110 (a look of ours)
            await anyio.sleep(0.001)

    assert sorted(record.attributes.get("otel_mcp.call.round", 0) for record in records(telemetry)) == [0, 1, 2]


async def test_records_are_as_many_as_the_metric_counts(audited: Runtime, telemetry: Telemetry) -> None:
    server = Server(session_id="own")
    app = MCPMiddleware(server, audited)
    for answer in ({"result": OK}, {"result": FAILED}, {"error": {"code": -32602}}, {"error": {"code": -32603}}):
        server.results["tools/call"] = answer
        await post(app, call(), legacy_headers("own"))
    await post(app, ask("tools/list"), legacy_headers("own"))
    await post(MCPMiddleware(refuse, audited), call(), ANN)

    made = [dict(record.attributes) for record in records(telemetry)]
    measured = telemetry.points("mcp.server.operation.duration")
    assert len(made) == 5
    assert len(made) == sum(value[0] for by, value in measured if by["mcp.method.name"] == "tools/call")
    told = [(of.get("error.type"), of.get("rpc.response.status_code"), of.get("otel_mcp.failure")) for of in made]
    assert told == [
        (None, None, None),
        ("tool_error", None, "tool"),
        (None, "-32602", "invalid_arguments"),
        ("-32603", "-32603", "exception"),
        ("401", None, "refused"),
    ]
    assert "session.id" not in made[-1]


async def refuse(scope: Message, receive: Receive, send: Send) -> None:
    await read(receive)
    await respond(send, b"", 401)


async def test_calls_that_are_not_sampled_are_on_record(make_runtime: MakeRuntime) -> None:
    telemetry = Telemetry(ALWAYS_OFF)
    runtime = Runtime(
        load(audit="events"), telemetry.tracer_provider, telemetry.meter_provider, telemetry.logger_provider
    )
    await post(MCPMiddleware(Server(), runtime), modern())

    (record,) = records(telemetry)
    assert telemetry.spans() == []
    assert (record.trace_id != 0, record.trace_flags.sampled) == (True, False)
    runtime.disable()
    telemetry.shut_down()


def authenticated(app: ASGIApp, **token: Any) -> ASGIApp:
    """An app behind a middleware that has verified a token."""

    async def serve(scope: Message, receive: Receive, send: Send) -> None:
        scope["user"] = SimpleNamespace(is_authenticated=True, access_token=SimpleNamespace(**token))
        await app(scope, receive, send)

    return serve


CLAIMS = {"email": "ann@example.com", "sub": "ann", "level": 3, "roles": ["admin"]}


@pytest.mark.parametrize(
    ("way", "attribute", "value"),
    [
        ("hash", "enduser.pseudo.id", None),
        ("none", None, None),
        ("claim:email", "enduser.id", "ann@example.com"),
        ("claim:sub", "enduser.id", "ann"),
        ("claim:level", "enduser.id", "3"),
        ("claim:client_id", "enduser.id", "desk"),
        ("claim:roles", "enduser.pseudo.id", None),
        ("claim:missing", "enduser.pseudo.id", None),
    ],
)
@pytest.mark.parametrize("inside", [True, False])
async def test_the_caller_is_named_as_the_setting_says(
    make_runtime: MakeRuntime, telemetry: Telemetry, way: str, attribute: str | None, value: str | None, inside: bool
) -> None:
    runtime = make_runtime(audit="events", audit_caller=way)
    token = {"client_id": "desk", "subject": "ann", "claims": CLAIMS}
    app: ASGIApp = (
        MCPMiddleware(authenticated(Server(), **token), runtime)
        if inside
        else authenticated(MCPMiddleware(Server(), runtime), **token)
    )
    await post(app, modern(), ANN)

    (record,) = records(telemetry)
    named = {name: told for name, told in record.attributes.items() if name.startswith("enduser.")}
    if attribute is None:
        assert named == {}
    else:
        assert list(named) == [attribute]
        assert value is None or named[attribute] == value
    if attribute != "enduser.id":
        assert "ann@example.com" not in telemetry.everything()


async def test_a_token_that_nobody_has_verified_names_nobody(make_runtime: MakeRuntime, telemetry: Telemetry) -> None:
    # {"iss":"https://issuer","sub":"ann@example.com"}
    forged = "Bearer e30.eyJpc3MiOiJodHRwczovL2lzc3VlciIsInN1YiI6ImFubkBleGFtcGxlLmNvbSJ9.c2ln"
    app = MCPMiddleware(Server(), make_runtime(audit="events", audit_caller="claim:sub"))
    await post(app, modern(), [("authorization", forged)])

    (record,) = records(telemetry)
    assert {name for name in record.attributes if name.startswith("enduser.")} == {"enduser.pseudo.id"}
    assert "ann@example.com" not in telemetry.everything()


async def test_a_caller_has_a_different_hash_in_each_service(make_runtime: MakeRuntime, telemetry: Telemetry) -> None:
    for service, key, headers in (
        *(("shop", "key", ANN), ("shop", "key", ANN), ("bank", "key", ANN), ("shop", "rotated", ANN)),
        *(("shop", "key", [("authorization", "Bearer of-bob")]), ("shop", "key", [])),
    ):
        runtime = make_runtime(audit="events", service_name=service, hash_key=key)
        await post(MCPMiddleware(Server(), runtime), modern(), headers)
        runtime.recorder.drain()

    ann, again, elsewhere, rotated, bob, nobody = (
        record.attributes.get("enduser.pseudo.id") for record in records(telemetry)
    )
    assert ann == again
    assert len({ann, elsewhere, rotated, bob}) == 4
    assert nobody is None


@pytest.mark.parametrize("set_on", ["logs", "traces"])
async def test_hashes_differ_between_services_that_are_named_in_code(telemetry: Telemetry, set_on: str) -> None:
    hashed: list[set[str]] = []
    for service in ("shop", "bank"):
        named = Resource.create({"service.name": service})
        logs = LoggerProvider(named) if set_on == "logs" else LoggerProvider()
        traces = TracerProvider(resource=named) if set_on == "traces" else telemetry.tracer_provider
        exporter = IN_MEMORY_LOGS()
        logs.add_log_record_processor(SimpleLogRecordProcessor(exporter))
        runtime = Runtime(load(audit="events", hash_key="shared"), traces, telemetry.meter_provider, logs)
        await post(MCPMiddleware(Server(), runtime), modern(), ANN)
        runtime.disable()
        (data,) = exporter.get_finished_logs()
        of = data.log_record.attributes
        hashed.append({of["enduser.pseudo.id"], of["otel_mcp.call.arguments.hash"]})

    assert len(hashed[0] | hashed[1]) == 4


async def test_names_that_a_client_makes_up_are_on_no_record(audited: Runtime, telemetry: Telemetry) -> None:
    server = Server()
    app = MCPMiddleware(server, audited)
    await post(app, modern(), MODERN_HEADERS)
    made_up = call(
        "tool-of-ann@planted.example", meta={CLIENT_INFO: {"name": "unit-client", "version": "1 (@planted)"}}
    )
    for answer in ({"error": {"code": -32602}}, {"result": FAILED}):
        server.results["tools/call"] = answer
        await post(app, made_up)
    await post(MCPMiddleware(refuse, audited), modern("tool@planted.example", client="ann@planted.example"), ANN)

    known, *others = [dict(record.attributes) for record in records(telemetry)]
    assert (known["gen_ai.tool.name"], known["otel_mcp.client.version"]) == ("add", "9")
    assert [other["gen_ai.tool.name"] for other in others] == ["_OTHER"] * 3
    assert [other["otel_mcp.client.name"] for other in others] == ["unit-client", "unit-client", "_OTHER"]
    assert "planted" not in repr(others)


class Away(IN_MEMORY_LOGS):
    """An exporter whose Collector is away, while that is so."""

    away: bool | str = True

    def export(self, batch: Sequence[Any]) -> Any:
        if self.away == "raises":
            raise ConnectionError
        result = super().export(batch)
        return SimpleNamespace(name="FAILURE") if self.away else result


@pytest.mark.parametrize("away", [True, "raises"])
async def test_records_that_an_exporter_does_not_take_are_counted(
    make_runtime: MakeRuntime, telemetry: Telemetry, away: bool | str
) -> None:
    exporter = Away()
    exporter.away = away
    telemetry.logger_provider.add_log_record_processor(BatchLogRecordProcessor(exporter))
    app = MCPMiddleware(Server(), make_runtime(audit="events"))

    async def call_and_export(count: int) -> None:
        for _ in range(count):
            await post(app, modern())
        telemetry.metrics()
        telemetry.logger_provider.force_flush()

    await call_and_export(3)
    exporter.away = False
    await call_and_export(2)

    assert dropped(telemetry) == {"export": 3}
    assert len(records(telemetry)) == 5


async def test_records_that_a_full_queue_pushes_out_are_counted(
    make_runtime: MakeRuntime, telemetry: Telemetry
) -> None:
    exporter = IN_MEMORY_LOGS()
    processor = BatchLogRecordProcessor(exporter, max_queue_size=4, max_export_batch_size=4, schedule_delay_millis=1e6)
    lock = getattr(processor, "_batch_processor")._export_lock  # noqa: B009
    telemetry.logger_provider.add_log_record_processor(processor)
    app = MCPMiddleware(Server(), make_runtime(audit="events"))

    with lock:  # The exporter is busy with what it had before.
        for _ in range(7):
            await post(app, modern())
        telemetry.metrics()
    telemetry.logger_provider.force_flush()

    assert dropped(telemetry) == {"full": 3}
    assert len(exporter.get_finished_logs()) == 4


async def test_records_that_others_push_out_are_counted_without_a_later_one(
    make_runtime: MakeRuntime, telemetry: Telemetry
) -> None:
    exporter = IN_MEMORY_LOGS()
    processor = BatchLogRecordProcessor(exporter, max_queue_size=4, max_export_batch_size=4, schedule_delay_millis=1e6)
    lock = getattr(processor, "_batch_processor")._export_lock  # noqa: B009
    telemetry.logger_provider.add_log_record_processor(processor)
    app = MCPMiddleware(Server(), make_runtime(audit="events"))

    for _ in range(2):
        await post(app, modern())
    telemetry.metrics()
    telemetry.logger_provider.force_flush()
    with lock:
        for _ in range(3):
            await post(app, modern())
        telemetry.metrics()
        assert dropped(telemetry) == {}
        for _ in range(4):
            telemetry.logger_provider.get_logger("other").emit(LogRecord())
    telemetry.logger_provider.force_flush()

    # The exporter's thread may have woken just now: then it is the next reading that counts.
    assert await anyio.to_thread.run_sync(lambda: wait_until(lambda: dropped(telemetry) == {"full": 3}))
    assert len([data for data in exporter.get_finished_logs() if data.log_record.event_name == EVENT]) == 2


class Hanging(IN_MEMORY_LOGS):
    """An exporter whose Collector does not answer, until that is over."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.over = Event(), Event()

    def export(self, batch: Sequence[Any]) -> Any:
        self.asked.set()
        self.over.wait(60)
        return super().export(batch)


async def test_losses_are_counted_while_an_exporter_hangs_and_at_the_end(
    make_runtime: MakeRuntime, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch, failures: Any
) -> None:
    monkeypatch.setattr("otel_mcp.runtime._FLUSH_SECONDS", 0.2)
    exporter = Hanging()
    telemetry.logger_provider.add_log_record_processor(
        BatchLogRecordProcessor(exporter, max_queue_size=4, max_export_batch_size=2, schedule_delay_millis=1e6)
    )
    runtime = make_runtime(audit="events")
    app = MCPMiddleware(Server(), runtime)
    try:
        for _ in range(2):
            await post(app, modern())
        telemetry.metrics()
        assert await anyio.to_thread.run_sync(exporter.asked.wait, 10)
        for _ in range(7):
            await post(app, modern())
        telemetry.metrics()
        overrun = dropped(telemetry)
        await runtime.shut_down()
        at_end = dropped(telemetry)
    finally:
        exporter.over.set()
    await anyio.to_thread.run_sync(telemetry.logger_provider.force_flush)

    assert overrun["full"] >= 3
    assert at_end["shutdown"] >= 5  # The event that the session has begun takes a place as well.
    assert sum(at_end.values()) == 9
    assert dropped(telemetry) == at_end
    assert failures == {}


@pytest.mark.parametrize("provider", [NoOpLoggerProvider(), LoggerProvider()])
async def test_where_nobody_exports_logs_records_are_counted_with_one_warning(
    telemetry: Telemetry, logs: Any, provider: Any
) -> None:
    runtime = Runtime(
        load(audit="events", service_name="unit"), telemetry.tracer_provider, telemetry.meter_provider, provider
    )
    app = MCPMiddleware(Server(), runtime)
    for _ in range(3):
        await post(app, modern())

    assert dropped(telemetry) == {"unconfigured": 3}
    assert [line for line in logs() if "AUDIT" in line] == [
        "otel_mcp: OTEL_PYTHON_MCP_AUDIT is on, but this process exports no logs (OTEL_LOGS_EXPORTER): "
        "audit records are counted as dropped"
    ]
    runtime.disable()


async def test_losses_of_each_reason_begin_at_zero(audited: Runtime, telemetry: Telemetry) -> None:
    await post(MCPMiddleware(Server(), audited), modern())

    assert {attributes["otel_mcp.reason"]: value for attributes, value in telemetry.points(DROPPED)} == {
        "error": 0,
        "export": 0,
        "full": 0,
        "shutdown": 0,
        "unconfigured": 0,
    }


async def test_a_failure_of_ours_is_counted_and_costs_no_answer(
    audited: Runtime, telemetry: Telemetry, failures: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> Any:
        raise ValueError

    monkeypatch.setattr("otel_mcp.telemetry.audit.client_of", broken)
    reply = await post(MCPMiddleware(Server(), audited), modern())

    assert reply.status == 200
    assert dropped(telemetry) == {"error": 1}
    assert failures == {"audit": 1}


async def test_another_runtime_goes_on_with_the_numbers(make_runtime: MakeRuntime, telemetry: Telemetry) -> None:
    for _ in range(2):
        runtime = make_runtime(audit="events")
        await post(MCPMiddleware(Server(), runtime), modern())
        runtime.disable()

    first, second = (record.attributes["otel_mcp.audit.number"] for record in records(telemetry))
    assert second == first + 1
    assert dropped(telemetry) == {}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_begins_to_number_again(runtime: Runtime, telemetry: Telemetry, tmp_path: Path) -> None:
    provider = telemetry.logger_provider
    audit = Audit((provider, None), runtime.resolver.hashes, lambda exchange, service: {}, "unit", runtime.metrics)
    finished = Exchange("POST", "/mcp", {}).add(RpcMessage("tools/call", 1, {}))
    for _ in range(2):
        audit.record(finished)

    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            audit.record(finished)
            number = records(telemetry)[-1].attributes["otel_mcp.audit.number"]
            (tmp_path / "seen").write_text(f"{number} {dropped(telemetry)}")
        os._exit(0)
    os.waitpid(child, 0)
    assert (tmp_path / "seen").read_text() == "1 {}"


class Doorkeeper:
    """Refuses all without a token that it knows, before it reads anything; Ann may come in, and Bob may not."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        token = dict(scope["headers"]).get(b"authorization", b"").decode()
        if token == "Bearer bob":
            scope["user"] = SimpleNamespace(is_authenticated=True, identity="bob")
        if token == ANN[0][1]:
            await self._app(scope, receive, send)
        else:
            await respond(send, {"error": "no"}, status=403 if token == "Bearer bob" else 401)


async def test_what_authentication_refuses_unread_is_on_record(audited: Runtime, telemetry: Telemetry) -> None:
    server = Server(session_id="own")
    app = MCPMiddleware(Doorkeeper(server), audited)
    audited.metrics.catalogues.tools.learn(["add"])  # As its list of tools says.
    await post(app, initialize(name="unit"), ANN)
    await post(app, call(), [*legacy_headers("own"), *ANN])
    assert len(records(telemetry)) == 1  # So the name of its client is not made up.

    await post(app, call(), [*legacy_headers("own"), ("authorization", "Bearer stolen")])
    await post(app, modern("add"), [*MODERN_HEADERS, ("authorization", "Bearer bob")])
    await post(app, modern("made up"), [("mcp-method", "tools/call"), ("mcp-name", "made up")])

    hashes = audited.resolver.hashes
    bob = hashes.digest("audit", audited.settings.service_name, hashes.digest("user", "name", "bob"))
    status = "http.response.status_code"
    about = {"otel_mcp.client.name": "unit"}  # By `User-Agent`.
    assert refusals(telemetry) == [
        {status: 401, **about, "session.id": "own", "otel_mcp.session.source": "header"},
        {status: 403, **about, "gen_ai.tool.name": "add", "enduser.pseudo.id": bob},
        {status: 401, **about, "gen_ai.tool.name": "_OTHER"},
    ]
    assert (len(records(telemetry)), dropped(telemetry)) == (1, {})


async def test_a_refused_caller_has_one_hash_before_and_after_others_call(telemetry: Telemetry) -> None:
    logs, exporter = LoggerProvider(Resource({"service.name": "in code"})), IN_MEMORY_LOGS()
    logs.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    settings = load(audit="events", hash_key="shared")
    runtime = Runtime(settings, telemetry.tracer_provider, telemetry.meter_provider, logs)
    app = MCPMiddleware(Doorkeeper(Server()), runtime)

    for caller in ("Bearer bob", ANN[0][1], "Bearer bob"):
        await post(app, modern("add"), [*MODERN_HEADERS, ("authorization", caller)])
        runtime.recorder.drain()
    runtime.disable()

    found = [data.log_record.attributes or {} for data in exporter.get_finished_logs()]
    hashes = runtime.resolver.hashes
    bob = hashes.digest("audit", "in code", hashes.digest("user", "name", "bob"))
    assert [each["enduser.pseudo.id"] == bob for each in found] == [True, False, True]


async def test_a_flood_of_refused_requests_leaves_room_for_records_of_calls(
    audited: Runtime, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("otel_mcp.telemetry.audit.time.monotonic", lambda: 7.5)
    app = MCPMiddleware(Doorkeeper(Server()), audited)

    for _ in range(60):
        await post(app, call())
    assert len(refusals(telemetry)) == 50

    monkeypatch.setattr("otel_mcp.telemetry.audit.time.monotonic", lambda: 8.0)
    await post(app, call())
    assert len(refusals(telemetry)) == 51
    assert sum(value for _, value in telemetry.points("otel_mcp.requests.refused")) == 61


async def test_without_the_setting_nothing_that_is_refused_is_on_record(runtime: Runtime, telemetry: Telemetry) -> None:
    await post(MCPMiddleware(Doorkeeper(Server()), runtime), call())

    assert refusals(telemetry) == []


async def test_what_is_refused_once_read_has_the_record_of_its_call_alone(
    audited: Runtime, telemetry: Telemetry
) -> None:
    async def limited(scope: Message, receive: Receive, send: Send) -> None:
        await read(receive)
        await respond(send, {"error": "no"}, status=403)

    await post(MCPMiddleware(limited, audited), call())

    assert [record.attributes["otel_mcp.failure"] for record in records(telemetry)] == ["refused"]
    assert refusals(telemetry) == []


@pytest.mark.parametrize("limits", [{}, {"COUNT": "6"}, {"VALUE_LENGTH": "5"}], ids=["none", "too few", "cut"])
async def test_the_short_way_to_attributes_leaves_the_same_record(
    telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch, limits: dict[str, str]
) -> None:
    for name, value in limits.items():
        monkeypatch.setenv(f"OTEL_LOGRECORD_ATTRIBUTE_{name}_LIMIT", value)
    found: list[tuple[Any, ...]] = []
    for short in (True, False):
        exporter, provider = IN_MEMORY_LOGS(), LoggerProvider(shutdown_on_exit=False)
        provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
        with monkeypatch.context() as patched, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if not short:
                patched.setattr(audit, "quick", lambda _: None)
            patched.setattr(audit.COUNT, "numbered", 0)
            settings = load(audit="events", hash_key="shared")
            runtime = Runtime(settings, telemetry.tracer_provider, telemetry.meter_provider, provider)
            await post(MCPMiddleware(Server(), runtime), modern(arguments={"a": 1}), MODERN_HEADERS)
            runtime.disable()
        (data,) = exporter.get_finished_logs()
        record = data.log_record
        attributes, bounded = {**record.attributes}, dict(vars(record.attributes))
        for own in ("otel_mcp.call.duration", "session.id"):
            attributes.pop(own, None)
        for own in ("_dict", "_lock"):
            del bounded[own]
        fields = dict(vars(record))
        assert fields.pop("timestamp") <= fields.pop("observed_timestamp")
        for own in ("attributes", "context", "trace_id", "span_id"):
            assert fields.pop(own)
        found.append((attributes, bounded, fields, {**vars(data), "log_record": None, "limits": repr(data.limits)}))
    assert found[0] == found[1]
