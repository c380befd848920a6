"""Log records made inside a call carry its session and tool, of any logger and wherever the work goes."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import logging.config
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry._logs import NoOpLoggerProvider
from opentelemetry.context import Context
from opentelemetry.sdk._logs import LoggerProvider, LogRecordLimits
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from otel_mcp import MCPMiddleware, SessionLogFilter
from otel_mcp.telemetry import logs
from otel_mcp.types import Message, Receive, Send
from tests.support.answers import OK, result
from tests.support.asgi import Reply, post, read, respond
from tests.support.messages import ask, call, legacy_headers, modern
from tests.support.providers import IN_MEMORY_LOGS, Telemetry
from tests.unit.conftest import MakeRuntime

pytestmark = pytest.mark.anyio

Work = Callable[[], Awaitable[None] | None]
ANOTHER = [("authorization", "Bearer another")]


class Server:
    """A server without an SDK, whose calls do `work` and may log by the API of OpenTelemetry."""

    def __init__(self, telemetry: Telemetry) -> None:
        self.telemetry = telemetry
        self.logger = telemetry.logger_provider.get_logger("the app")
        self.work: Work = lambda: None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        await read(receive)
        done = self.work()
        if done is not None:
            await done
        await respond(send, result(1, OK))

    def log(self, body: str = "a line", **options: Any) -> None:
        self.logger.emit(body=body, **options)

    def lines(self) -> list[dict[str, Any]]:
        """The attributes of each line of the app's, in order."""
        exported = [data.log_record for data in self.telemetry.log_exporter.get_finished_logs()]
        return [dict(record.attributes or {}) for record in exported if record.body == "a line"]


@pytest.fixture
def server(telemetry: Telemetry) -> Server:
    return Server(telemetry)


@pytest.fixture
async def app(server: Server, make_runtime: MakeRuntime) -> MCPMiddleware:
    """Serve it; its first call has shown that its calls have no other span than ours."""
    app = MCPMiddleware(server, make_runtime())
    await post(app, modern())
    return app


def stamp(reply: Reply, tool: str = "add") -> dict[str, Any]:
    return {"session.id": reply.session_id, "otel_mcp.session.source": "inferred_weak", "gen_ai.tool.name": tool}


def run_in_thread(function: Callable[[], object]) -> None:
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


def at_once(server: Server) -> None:
    server.log()


async def in_task(server: Server) -> None:
    async def work() -> None:
        server.log()

    await asyncio.create_task(work())


async def to_thread(server: Server) -> None:
    await asyncio.to_thread(server.log)


def in_copied_context(server: Server) -> None:
    context = contextvars.copy_context()
    run_in_thread(lambda: context.run(server.log))


def in_attached_context(server: Server) -> None:
    context = otel_context.get_current()

    def work() -> None:
        token = otel_context.attach(context)
        server.log()
        otel_context.detach(token)

    run_in_thread(work)


def in_named_context(server: Server) -> None:
    context = otel_context.get_current()
    run_in_thread(lambda: server.log(context=context))


def beneath_the_span_alone(server: Server) -> None:
    server.log(context=trace.set_span_in_context(trace.get_current_span(), Context()))


def beneath_a_span_of_its_own(server: Server) -> None:
    with server.telemetry.tracer_provider.get_tracer("app").start_as_current_span("query"):
        server.log()


INSIDE = [
    *(at_once, in_task, to_thread, in_copied_context, in_attached_context, in_named_context),
    *(beneath_the_span_alone, beneath_a_span_of_its_own),
]


@pytest.mark.parametrize("work", INSIDE, ids=lambda work: work.__name__)
async def test_a_record_made_inside_a_call_has_its_session_and_tool(
    app: MCPMiddleware, server: Server, work: Callable[[Server], Awaitable[None] | None]
) -> None:
    server.work = lambda: work(server)

    reply = await post(app, modern())

    assert server.lines() == [stamp(reply)]


async def test_records_of_two_interleaved_calls_keep_apart(app: MCPMiddleware, server: Server) -> None:
    barrier = asyncio.Barrier(2)

    async def work() -> None:
        for _ in range(3):
            await barrier.wait()
            server.log()

    server.work = work
    first, second = await asyncio.gather(post(app, modern()), post(app, modern("remove"), ANOTHER))

    found = Counter((line["session.id"], line["gen_ai.tool.name"]) for line in server.lines())
    assert first.session_id != second.session_id
    assert found == {(first.session_id, "add"): 3, (second.session_id, "remove"): 3}


async def test_a_background_task_keeps_the_session_of_its_call(app: MCPMiddleware, server: Server) -> None:
    over, tasks = asyncio.Event(), list[asyncio.Task[None]]()

    async def later() -> None:
        await over.wait()
        server.log()

    server.work = lambda: tasks.append(asyncio.create_task(later()))
    reply = await post(app, modern())
    server.work = lambda: None
    await post(app, modern(), ANOTHER)
    over.set()
    await asyncio.gather(*tasks)

    assert server.lines() == [stamp(reply)]


async def test_a_call_that_the_sampler_dropped_is_known_as_well(
    make_runtime: MakeRuntime, telemetry: Telemetry
) -> None:
    unsampled = Telemetry(ALWAYS_OFF)
    telemetry.tracer_provider = unsampled.tracer_provider
    server = Server(telemetry)
    app = MCPMiddleware(server, make_runtime())
    await post(app, modern())
    server.work = lambda: beneath_a_span_of_its_own(server)

    reply = await post(app, modern())

    assert server.lines() == [stamp(reply)]
    unsampled.shut_down()


async def test_a_request_that_calls_no_tool_has_a_session_alone(app: MCPMiddleware, server: Server) -> None:
    server.work = server.log

    reply = await post(app, ask("tools/list", _meta=modern()["params"]["_meta"]))

    assert server.lines() == [{"session.id": reply.session_id, "otel_mcp.session.source": "inferred_weak"}]


async def test_a_conversation_wins_over_the_session_of_the_transport(app: MCPMiddleware, server: Server) -> None:
    server.work = server.log

    reply = await post(app, modern(**{"openai/session": "v1/chat"}), legacy_headers("of-the-transport"))

    assert server.lines() == [stamp(reply) | {"otel_mcp.session.source": "conversation"}]


@pytest.mark.parametrize(
    ("own", "added"),
    [
        ({"session.id": "a browser's"}, {"gen_ai.tool.name": "add"}),
        ({"gen_ai.tool.name": "another"}, {"otel_mcp.session.source": "inferred_weak"}),
        ({"order": 7}, {"otel_mcp.session.source": "inferred_weak", "gen_ai.tool.name": "add"}),
    ],
)
async def test_what_a_record_says_itself_is_never_overwritten(
    app: MCPMiddleware, server: Server, own: dict[str, Any], added: dict[str, Any]
) -> None:
    server.work = lambda: server.log(attributes=own)

    reply = await post(app, modern())

    session = {} if "session.id" in own else {"session.id": reply.session_id}
    assert server.lines() == [{**session, **added, **own}]


async def test_nothing_is_added_outside_a_call(app: MCPMiddleware, server: Server) -> None:
    server.work = lambda: server.log(context=trace.set_span_in_context(trace.INVALID_SPAN, Context()))
    await post(app, modern())

    server.log()
    agent = {"gen_ai.tool.name": "of an agent's own span", "session.id": "of an app"}
    with server.telemetry.tracer_provider.get_tracer("app").start_as_current_span("other", attributes=agent):
        server.log()

    assert server.lines() == [{}, {}, {}]


async def test_hashed_ids_are_hashed_on_records_as_well(make_runtime: MakeRuntime, server: Server) -> None:
    app = MCPMiddleware(server, make_runtime(session_id="hashed"))
    await post(app, call(), legacy_headers("of-the-transport"))
    server.work = server.log

    await post(app, call(), legacy_headers("of-the-transport"))

    (line,) = server.lines()
    span = server.telemetry.spans()[-1]
    assert line["session.id"] == (span.attributes or {})["session.id"]
    assert "of-the-transport" not in line["session.id"]


async def test_records_are_left_alone_once_uninstrumented(make_runtime: MakeRuntime, server: Server) -> None:
    runtime = make_runtime()
    app = MCPMiddleware(server, runtime)
    await post(app, modern())

    def work() -> None:
        runtime.disable()
        server.log()

    server.work = work
    await post(app, modern())

    assert server.lines() == [{}]


async def test_a_provider_that_comes_later_is_found_when_a_session_begins(
    make_runtime: MakeRuntime, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, provider = Server(telemetry), telemetry.logger_provider
    telemetry.logger_provider = NoOpLoggerProvider()  # pyright: ignore[reportAttributeAccessIssue]
    runtime = make_runtime()
    app = MCPMiddleware(server, runtime)
    await post(app, modern())
    server.work = server.log
    await post(app, modern())
    assert runtime.log_processor is None

    monkeypatch.setattr(runtime, "_logger_provider", provider)
    await runtime.shut_down()
    reply = await post(app, modern())

    telemetry.logger_provider = provider
    assert server.lines() == [{}, stamp(reply)]


@pytest.mark.filterwarnings("ignore:Log record attributes were dropped")
async def test_limits_of_the_provider_hold_for_what_is_added(make_runtime: MakeRuntime, telemetry: Telemetry) -> None:
    limits = LogRecordLimits(max_log_record_attributes=3, max_log_record_attribute_length=8)
    telemetry.logger_provider = LoggerProvider(log_record_limits=limits)
    exported = IN_MEMORY_LOGS()
    batches = BatchLogRecordProcessor(exported)
    telemetry.logger_provider.add_log_record_processor(batches)
    server = Server(telemetry)
    app = MCPMiddleware(server, make_runtime())
    await post(app, modern())
    server.work = lambda: server.log(attributes={"order": 7})

    reply = await post(app, modern())
    batches.force_flush()

    (line,) = [data for data in exported.get_finished_logs() if data.log_record.body == "a line"]
    assert dict(line.log_record.attributes) == {
        "session.id": (reply.session_id or "")[:8],
        "otel_mcp.session.source": "inferred",
        "gen_ai.tool.name": "add",
    }
    assert line.log_record.attributes.dropped == 1


def test_the_processor_comes_first_and_wants_no_record_for_itself(telemetry: Telemetry) -> None:
    provider = LoggerProvider()
    assert logs.install(provider) is not None
    assert not provider.get_logger("app").enabled()

    provider.add_log_record_processor(BatchLogRecordProcessor(IN_MEMORY_LOGS()))

    assert provider.get_logger("app").enabled()
    provider.shutdown()
    assert logs.install(NoOpLoggerProvider()) is None


def test_a_record_that_cannot_be_read_is_counted_and_passes(failures: Counter[str]) -> None:
    broken: Any = object()

    logs.SessionLogProcessor().on_emit(broken)

    assert failures == {"log processor": 1}


class Lines(logging.Handler):
    """Keeps formatted lines."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


FORMATS = {
    "%": "%(session_id)s|%(session_source)s|%(tool_name)s|%(message)s",
    "{": "{session_id}|{session_source}|{tool_name}|{message}",
    "$": "$session_id|$session_source|$tool_name|$message",
}


@pytest.mark.parametrize("style", FORMATS)
async def test_the_filter_serves_every_style_of_format_inside_and_outside(
    app: MCPMiddleware, server: Server, style: str
) -> None:
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "filters": {"session": {"()": "otel_mcp.SessionLogFilter"}},
            "formatters": {"line": {"format": FORMATS[style], "style": style}},
            "handlers": {"lines": {"()": Lines, "filters": ["session"], "formatter": "line"}},
            "loggers": {"tests.filtered": {"handlers": ["lines"], "propagate": False, "level": "INFO"}},
        }
    )
    logger = logging.getLogger("tests.filtered")
    server.work = lambda: logger.info("inside")

    reply = await post(app, modern())
    logger.info("outside")

    (handler,) = logger.handlers
    assert isinstance(handler, Lines)
    assert handler.lines == [f"{reply.session_id}|inferred_weak|add|inside", "|||outside"]


def test_the_filter_keeps_what_a_record_has_already() -> None:
    record = logging.makeLogRecord({"session_id": "mine", "tool_name": "mine"})

    assert SessionLogFilter().filter(record)

    assert (vars(record)["session_id"], vars(record)["session_source"], vars(record)["tool_name"]) == (
        "mine",
        "",
        "mine",
    )


def test_the_filter_passes_records_when_the_session_cannot_be_found(
    monkeypatch: pytest.MonkeyPatch, failures: Counter[str]
) -> None:
    monkeypatch.setattr(logs, "described", lambda _: 1 / 0)
    record = logging.makeLogRecord({})

    assert SessionLogFilter().filter(record)

    assert vars(record)["session_id"] == ""
    assert failures == {"log filter": 1}
