"""A tool that asks for input, on real servers: the rounds of one logical call know each other."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import httpx2
import pytest
from fastmcp import Context as FastMCPContext
from fastmcp import FastMCP
from mcp.server.mcpserver import Context, MCPServer
from opentelemetry.sdk.trace import ReadableSpan
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from otel_mcp import MCPInstrumentor, SessionState, guard, semconv
from otel_mcp.types import Message
from tests.support.providers import Telemetry
from tests.support.rounds import ANSWER, Person, ask

pytestmark = pytest.mark.anyio


def sdk2(*, streaming: bool = False) -> Starlette:
    mcp = MCPServer("shop", log_level="WARNING")

    @mcp.tool()
    async def approve(ctx: Context[Any], a: int) -> Any:  # pyright: ignore[reportUnusedFunction]
        if streaming:
            await ctx.report_progress(1, 2)
        return ask(ctx.request_state, answered=bool(ctx.input_responses))

    return mcp.streamable_http_app(stateless_http=True, json_response=not streaming)


def fastmcp4() -> Starlette:
    mcp = FastMCP[Any]("shop")

    @mcp.tool()
    async def approve(ctx: FastMCPContext, a: int) -> Any:  # pyright: ignore[reportUnusedFunction]
        return ask(ctx.request_state, answered=bool(ctx.input_responses))

    return mcp.http_app(stateless_http=True)


def handwritten() -> Starlette:
    """Without an SDK, and without a state: what the rounds have in common is tool and arguments."""
    served = count(1)

    async def serve(request: Request) -> Response:
        asks = {"resultType": "input_required", "inputRequests": {}}
        result: Message = {"resultType": "complete", "content": []} if next(served) % 3 == 0 else asks
        return JSONResponse({"jsonrpc": "2.0", "id": (await request.json())["id"], "result": result})

    return Starlette(routes=[Route("/mcp", serve, methods=["POST"])])


SERVERS: dict[str, Callable[[], Starlette]] = {
    "sdk2": sdk2,
    "sdk2-streaming": lambda: sdk2(streaming=True),
    "fastmcp4": fastmcp4,
    "handwritten": handwritten,
}


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    made = Telemetry()
    MCPInstrumentor().instrument(
        tracer_provider=made.tracer_provider, meter_provider=made.meter_provider, service_name="rounds"
    )
    guard.failures.clear()
    yield made
    assert not guard.failures
    MCPInstrumentor().uninstrument()
    made.shut_down()


@asynccontextmanager
async def serving(app: Starlette) -> AsyncGenerator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(app)
    base = "http://127.0.0.1:8000"
    async with app.router.lifespan_context(app), httpx2.AsyncClient(transport=transport, base_url=base) as client:
        yield client


def rounds(telemetry: Telemetry) -> list[tuple[object, ReadableSpan]]:
    """The spans of calls of the tool, with the number of their rounds."""
    telemetry.metrics()
    found = [(span.attributes or {}, span) for span in telemetry.span_exporter.get_finished_spans()]
    return [
        (attributes.get(semconv.CALL_ROUND), span)
        for attributes, span in found
        if attributes.get(semconv.GEN_AI_TOOL_NAME) == "approve"
    ]


def id_of(span: ReadableSpan) -> int:
    context = span.get_span_context()
    assert context is not None
    return context.span_id


def linked(span: ReadableSpan) -> list[int]:
    return [link.context.span_id for link in span.links]


@pytest.mark.parametrize("server", SERVERS)
async def test_rounds_are_numbered_and_link_to_the_first(telemetry: Telemetry, server: str) -> None:
    async with serving(SERVERS[server]()) as http:
        results = await Person(http).approve()
        await Person(http).approve()  # Another logical call of the same arguments.

    assert [result["resultType"] for result in results] == ["input_required", "input_required", "complete"]
    numbers, spans = zip(*rounds(telemetry), strict=True)
    first, again = id_of(spans[0]), id_of(spans[3])
    assert list(numbers) == [1, 2, 3] * 2
    assert [linked(span) for span in spans] == [[], [first], [first], [], [again], [again]]


async def test_a_forged_state_goes_on_with_nothing(telemetry: Telemetry) -> None:
    async with serving(sdk2()) as http:
        person = Person(http)
        asked = await person.call()
        refused = await person.call(f"{asked['requestState']}x", ANSWER)
        of_other_arguments = await person.call(asked["requestState"], ANSWER, a=2)

    assert (refused["code"], of_other_arguments["code"]) == (-32602, -32602)
    assert [number for number, _ in rounds(telemetry)] == [1, None, 2]


async def test_a_state_answered_twice_is_the_second_round_each_time(telemetry: Telemetry) -> None:
    async with serving(sdk2()) as http:
        person = Person(http)
        asked = await person.call()
        for _ in range(2):
            assert (await person.call(asked["requestState"], ANSWER))["resultType"] == "input_required"

    (first, span), *later = rounds(telemetry)
    assert first == 1
    assert [(number, linked(each)) for number, each in later] == [(2, [id_of(span)])] * 2


async def test_a_request_that_says_it_brings_input_is_a_call(telemetry: Telemetry) -> None:
    async with serving(sdk2()) as http:
        person = Person(http)
        for number in range(3):
            await person.call(answers={}, a=number)
            await person.call(f"forged-{number}", ANSWER)
        asked = await person.call()
        for _ in range(3):  # The first goes on with that, the others repeat it.
            await person.call(asked["requestState"], ANSWER)
        assert len(await entries(telemetry, person)) == 9

    ((_, counted),) = telemetry.points(semconv.METRIC_TOOL_CALLS)
    assert counted == 9


async def entries(telemetry: Telemetry, person: Person) -> list[tuple[int, bool, bool]]:
    """Return of each entry of the document: rounds, whether it waits, whether it answers what is not there."""
    telemetry.metrics()  # Which also records what has finished.
    state = await SessionState.load(person.session_id)
    assert state is not None
    assert state.tool_call_count == len(state.tool_calls)
    return [(call.rounds, call.waiting is not None, call.answers is not None) for call in state.tool_calls]


@pytest.mark.parametrize("server", SERVERS)
async def test_the_document_has_one_entry_for_each_logical_call(telemetry: Telemetry, server: str) -> None:
    async with serving(SERVERS[server]()) as http:
        person = Person(http)
        for _ in range(2):
            await person.approve()
        await person.call(a=7)  # Nobody answers.
        assert await entries(telemetry, person) == [(3, False, False), (3, False, False), (1, True, False)]
        await (await SessionState.get_or_create(person.session_id)).delete()

    by_tool = {semconv.GEN_AI_TOOL_NAME: "approve"}
    ((of_wait, (brought, _)),) = telemetry.points(semconv.METRIC_CALL_INPUT_WAIT)
    assert (of_wait, brought) == (by_tool, 4)
    assert telemetry.points(semconv.METRIC_CALL_INPUT_ABANDONED) == [(by_tool, 1)]
    assert telemetry.points(semconv.METRIC_TOOL_CALLS) == [(by_tool, 3)]


async def test_what_is_forged_or_repeated_is_a_call_of_its_own(telemetry: Telemetry) -> None:
    async with serving(sdk2()) as http:
        person = Person(http)
        asked = await person.call()
        await person.call(f"{asked['requestState']}x", ANSWER)
        for _ in range(2):
            await person.call(asked["requestState"], ANSWER)

        assert await entries(telemetry, person) == [(1, False, True), (2, True, False), (1, True, True)]
