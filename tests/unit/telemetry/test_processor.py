"""What lies beneath a call is decided by the parent of a span, however that parent got there."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from opentelemetry import context as otel_context
from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import Link, Tracer

from otel_mcp import MCPMiddleware
from otel_mcp.runtime import Runtime
from otel_mcp.types import Message, Receive, Send
from tests.support.answers import OK, result
from tests.support.asgi import Reply, post, read, respond
from tests.support.messages import modern
from tests.support.providers import Telemetry

pytestmark = pytest.mark.anyio

Work = Callable[[Tracer], Awaitable[None] | None]


class Tool:
    """A server without an SDK, whose calls do `work`."""

    def __init__(self, telemetry: Telemetry) -> None:
        self.tracer = telemetry.tracer_provider.get_tracer("a library")
        self.work: Work = lambda _: None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        await read(receive)
        done = self.work(self.tracer)
        if done is not None:
            await done
        await respond(send, result(1, OK))


@pytest.fixture
def tool(telemetry: Telemetry) -> Tool:
    return Tool(telemetry)


@pytest.fixture
async def app(tool: Tool, runtime: Runtime, telemetry: Telemetry) -> MCPMiddleware:
    """An app whose calls are known to have no other span than ours: its first one has shown it."""
    app = MCPMiddleware(tool, runtime)
    await post(app, modern())
    telemetry.span_exporter.clear()
    return app


def in_thread(function: Callable[[], object]) -> None:
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


def leaf(tracer: Tracer, **options: Any) -> None:
    tracer.start_span("leaf", **options).end()


def attached(tracer: Tracer) -> None:
    context = otel_context.get_current()

    def work() -> None:
        token = otel_context.attach(context)
        leaf(tracer)
        otel_context.detach(token)

    in_thread(work)


def used_span(tracer: Tracer) -> None:
    span = trace.get_current_span()

    def work() -> None:
        with trace.use_span(span):
            leaf(tracer)

    in_thread(work)


def named_context(tracer: Tracer) -> None:
    context = otel_context.get_current()
    in_thread(lambda: leaf(tracer, context=context))


def bare_context(tracer: Tracer) -> None:
    leaf(tracer, context=trace.set_span_in_context(trace.get_current_span(), Context()))


def grandchild(tracer: Tracer) -> None:
    with tracer.start_as_current_span("between") as between:
        in_thread(lambda: leaf(tracer, context=trace.set_span_in_context(between)))


def copied(tracer: Tracer) -> None:
    context = contextvars.copy_context()
    in_thread(lambda: context.run(leaf, tracer))


def of_an_own_session(tracer: Tracer) -> None:
    with tracer.start_as_current_span("between", attributes={"session.id": "the app's"}):
        leaf(tracer)


async def in_task(tracer: Tracer) -> None:
    async def work() -> None:
        leaf(tracer)

    await asyncio.create_task(work())


BENEATH = [attached, used_span, named_context, bare_context, grandchild, copied, of_an_own_session, in_task]


def leaves(telemetry: Telemetry) -> list[ReadableSpan]:
    return [span for span in telemetry.spans() if span.name == "leaf"]


def stamp(reply: Reply) -> dict[str, str | None]:
    return {"session.id": reply.session_id, "otel_mcp.session.source": "inferred_weak"}


@pytest.mark.parametrize("work", BENEATH, ids=lambda work: work.__name__)
async def test_a_span_beneath_a_call_has_its_session(
    app: MCPMiddleware, tool: Tool, telemetry: Telemetry, work: Work
) -> None:
    tool.work = work

    reply = await post(app, modern())

    (span,) = leaves(telemetry)
    assert dict(span.attributes or {}) == stamp(reply)


def empty_context(tracer: Tracer) -> None:
    leaf(tracer, context=Context())


def linked_root(tracer: Tracer) -> None:
    call = trace.get_current_span()
    around = trace.set_span_in_context(trace.INVALID_SPAN)
    leaf(tracer, context=around, links=[Link(call.get_span_context())])


def called_back(tracer: Tracer) -> None:
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    leaf(tracer, context=propagate.extract(carrier, otel_context.get_current()))


def another_trace(tracer: Tracer) -> None:
    other = tracer.start_span("other", context=Context())
    leaf(tracer, context=trace.set_span_in_context(other))


def sibling(tracer: Tracer) -> None:
    call: Any = trace.get_current_span()
    leaf(tracer, context=trace.set_span_in_context(trace.NonRecordingSpan(call.parent)))


NOT_BENEATH = [empty_context, linked_root, called_back, another_trace, sibling]


@pytest.mark.parametrize("work", NOT_BENEATH, ids=lambda work: work.__name__)
async def test_a_span_with_another_parent_has_no_session(
    app: MCPMiddleware, tool: Tool, telemetry: Telemetry, work: Work
) -> None:
    tool.work = work
    parent = ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")

    await post(app, modern(), [parent])

    (span,) = leaves(telemetry)
    assert dict(span.attributes or {}) == {}


async def test_what_a_call_leaves_behind_stays_in_its_session(
    app: MCPMiddleware, tool: Tool, telemetry: Telemetry
) -> None:
    over, tasks = asyncio.Event(), list[asyncio.Task[None]]()

    async def later() -> None:
        await over.wait()
        leaf(tool.tracer)

    tool.work = lambda _: tasks.append(asyncio.create_task(later()))
    reply = await post(app, modern())
    tool.work = lambda _: None
    await post(app, modern(), [("authorization", "Bearer another")])
    over.set()
    await asyncio.gather(*tasks)

    (span,) = leaves(telemetry)
    assert dict(span.attributes or {}) == stamp(reply)


async def test_a_parent_of_another_session_decides(app: MCPMiddleware, tool: Tool, telemetry: Telemetry) -> None:
    spans = list[trace.Span]()
    tool.work = lambda _: spans.append(trace.get_current_span())
    first = await post(app, modern())

    def work(tracer: Tracer) -> None:
        leaf(tracer, context=trace.set_span_in_context(spans[0]))
        leaf(tracer)

    tool.work = work
    second = await post(app, modern(), [("authorization", "Bearer another")])

    assert first.session_id != second.session_id
    assert [(span.attributes or {}).get("session.id") for span in leaves(telemetry)] == [
        first.session_id,
        second.session_id,
    ]


async def test_a_session_id_that_the_app_sets_is_not_spread(telemetry: Telemetry, runtime: Runtime, tool: Tool) -> None:
    await post(MCPMiddleware(tool, runtime), modern())

    with tool.tracer.start_as_current_span("web", attributes={"session.id": "a browser's"}):
        leaf(tool.tracer)

    (span,) = leaves(telemetry)
    assert dict(span.attributes or {}) == {}
