"""Recorded exchanges through the middleware: every message observed once, as it was, and nothing of it changed."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind

from otel_mcp import MCPMiddleware
from otel_mcp.exchange.outgoing import METHODS
from otel_mcp.model.call import SCOPE_KEY
from otel_mcp.runtime import Runtime
from tests.replay.capture import CHUNKINGS, NAMES, Capture, load, together
from tests.replay.reading import Asked, Reading, answers_of, read, transport_id
from tests.replay.replayer import Playing, Replay
from tests.support.asgi import without_added_headers
from tests.support.providers import Clock, Telemetry, trace_of
from tests.unit.conftest import MakeRuntime

pytestmark = pytest.mark.anyio
Replayed = Callable[[Capture], Awaitable["Result"]]

TOOL_CALLS = "otel_mcp.tool.calls"
DURATION = "mcp.server.operation.duration"
LISTEN = "subscriptions/listen"
NOT_TAKEN = {"-32600", "-32700"}
"""Codes of requests that a server did not take, whatever the HTTP status."""
STYLES: list[Callable[[Any], bytes]] = [
    lambda value: json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode(),
    lambda value: json.dumps(value, ensure_ascii=False).encode(),
    lambda value: json.dumps(value).encode(),
]
"""How servers write JSON."""
PRECISION = 20_000
"""Nanoseconds by which a float of today's Unix time may be off, and then some."""


@dataclass
class Result:
    """A replayed scenario, what it holds, and what was observed of it."""

    reading: Reading
    playing: list[Playing]
    spans: list[ReadableSpan]
    telemetry: Telemetry
    runtime: Runtime
    minted: str | None
    began: float

    def span_of(self, asked: Asked) -> ReadableSpan:
        """The one span of a request."""
        started = round((self.began + asked.began) * 1e6) * 1000
        (found,) = [
            span
            for span in self.spans
            if (span.attributes or {})["jsonrpc.request.id"] == str(asked.id)
            and (span.attributes or {})["mcp.method.name"] == asked.method
            and span.start_time == started
        ]
        return found


@pytest.fixture(params=NAMES)
def capture(request: pytest.FixtureRequest) -> Capture:
    return load(request.param)


@pytest.fixture(params=list(CHUNKINGS))
def recut(request: pytest.FixtureRequest, capture: Capture) -> Capture:
    """A capture in one of the chunkings."""
    return CHUNKINGS[request.param](capture)


@pytest.fixture
def replayed(make_runtime: MakeRuntime, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch) -> Replayed:
    """Replays a capture through a runtime of its own."""

    async def made(capture: Capture) -> Result:
        runtime = make_runtime()
        clock = Clock(float(round(time.time())))
        clock.install(monkeypatch)
        began = clock.now
        replay = Replay(capture, lambda app: MCPMiddleware(app, runtime), clock)
        playing = await replay.run()
        await runtime.shut_down()
        spans = [span for span in telemetry.spans() if span.kind is not SpanKind.CLIENT]
        return Result(read(capture), playing, spans, telemetry, runtime, replay.minted, began)

    return made


def attributes_of(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def is_large(asked: Asked) -> bool:
    """Whether the answer is beyond what may be held of one."""
    return asked.size is not None and asked.size > 256 * 1024


def expected_session(asked: Asked, result: Result) -> tuple[str | None, str]:
    """Session id and source of a request; a session that only we can know is ``?``."""
    if asked.transport_id is not None and not asked.refused:
        return asked.transport_id, "header"
    if asked.refused:
        return None, "none"
    if asked.exchange.modern:
        return "?", "inferred_weak"
    return result.minted, "header"


async def test_a_replayed_capture_is_observed_as_it_happened(recut: Capture, replayed: Replayed) -> None:
    """One test for all of it, since replaying takes longer than looking."""
    result = await replayed(recut)
    the_answers_are_those_of_the_server(result)
    every_request_has_one_span(result)
    each_span_tells_how_its_request_ended(result)
    rounds_link_to_the_call_that_they_go_on_with(result)
    what_servers_asked_is_measured(result)
    each_span_lasts_until_the_answer_was_on_its_way(result)
    one_client_is_one_session(result)
    the_parent_is_the_one_that_the_client_sent(result)
    every_message_is_counted_once(result)
    catalogues_are_measured_to_the_byte(result)
    await the_document_holds_the_calls(result)
    an_end_is_told_once(result)


def the_answers_are_those_of_the_server(result: Result) -> None:
    for playing in result.playing:
        assert without_added_headers(playing.sent, playing.meant) == playing.meant
        names = [name for name, _ in playing.scope["headers"]]
        assert names == [name.encode() for name, _ in playing.recorded.headers]
        assert {key for key in playing.scope if key.startswith("otel")} == {SCOPE_KEY}
        assert b"".join(message.get("body", b"") for message in playing.got) == b"".join(
            chunk.body for chunk in playing.recorded.request
        )


def every_request_has_one_span(result: Result) -> None:
    assert Counter(span.name for span in result.spans) == Counter(asked.name for asked in result.reading.requests)
    assert {span.kind for span in result.spans} <= {SpanKind.SERVER}
    calls = [asked for asked in result.reading.requests if asked.method == "tools/call"]
    assert sum(1 for span in result.spans if span.name.startswith("tools/call")) == len(calls)
    for asked in result.reading.requests:
        attributes = attributes_of(result.span_of(asked))
        assert attributes.get("gen_ai.tool.name") == (asked.target if asked.method == "tools/call" else None)
        assert attributes.get("gen_ai.prompt.name") == (asked.target if asked.method == "prompts/get" else None)


def each_span_tells_how_its_request_ended(result: Result) -> None:
    for asked in result.reading.requests:
        span = result.span_of(asked)
        attributes = attributes_of(span)
        if asked.method == LISTEN:
            # A client ends its subscription by leaving: that is no error.
            expected = (None, None) if asked.error_type == "cancelled" else (asked.error_type, asked.status_code)
            assert (attributes.get("error.type"), attributes.get("rpc.response.status_code")) == expected, asked
            continue
        found = (attributes.get("error.type"), attributes.get("rpc.response.status_code"))
        assert found == ((None, None) if is_large(asked) else (asked.error_type, asked.status_code)), asked
        assert (span.status.status_code.name == "ERROR") is (found[0] is not None)


def rounds_link_to_the_call_that_they_go_on_with(result: Result) -> None:
    for asked in result.reading.requests:
        span = result.span_of(asked)
        links = [link.context for link in span.links]
        firsts = [attributes_of(each) for each in result.spans if any(each.context == context for context in links)]
        numbers = [first.get("otel_mcp.call.round") for first in firsts]
        if asked.goes_on:
            assert (attributes_of(span)["otel_mcp.call.round"], numbers) == (2, [1])


def what_servers_asked_is_measured(result: Result) -> None:
    exchanges = [playing.recorded for playing in result.playing]
    asked = Counter(
        answer.message["method"]
        for exchange in exchanges
        for answer in answers_of(exchange)
        if answer.message.get("method") in METHODS and transport_id(exchange)
    )
    measured: Counter[str] = Counter()
    for attributes, (count, _) in result.telemetry.points("mcp.client.operation.duration"):
        measured[attributes["mcp.method.name"]] += count
    assert measured == asked


def each_span_lasts_until_the_answer_was_on_its_way(result: Result) -> None:
    for asked in result.reading.requests:
        span = result.span_of(asked)
        if asked.method == LISTEN and asked.error_type == "cancelled":
            # It lasts as long as the client listens.
            assert span.end_time is not None
            assert abs(span.end_time - (result.began + asked.exchange.ended) * 1e9) < PRECISION, asked
            continue
        if asked.ended is None:
            continue
        assert span.end_time is not None
        late = span.end_time - (result.began + asked.ended) * 1e9
        if is_large(asked):
            # Only the end of its stream shows that the large event was the answer.
            assert -PRECISION < late < (asked.exchange.ended - asked.ended) * 1e9 + PRECISION, asked
        else:
            assert abs(late) < PRECISION, asked


def one_client_is_one_session(result: Result) -> None:
    sessions: set[str] = set()
    client = result.reading.client
    for asked in result.reading.requests:
        attributes = attributes_of(result.span_of(asked))
        session_id, source = expected_session(asked, result)
        found = (attributes.get("session.id"), attributes["otel_mcp.session.source"])
        if asked.refused and asked.exchange.modern and found != (None, "none"):
            # An error of a handler under its own HTTP status: the span may name what would have begun.
            assert asked.method != "server/discover", asked
            session_id, source = "?", "inferred_weak"
        if session_id == "?":
            assert found[0] is not None
            assert found[1] == source, asked
        else:
            assert found == (session_id, source), asked
        if found[0] is not None and not asked.refused:
            sessions.add(str(found[0]))
            assert attributes["otel_mcp.client.name"] == (asked.client or client), asked
        if not asked.refused:
            assert attributes.get("mcp.protocol.version") == asked.version, asked
        carried = None if asked.exchange.modern else asked.transport_id or result.minted
        if not asked.refused and not asked.exchange.query:
            assert attributes.get("mcp.session.id") == carried, asked
    assert len(sessions) == (1 if any(not asked.refused for asked in result.reading.requests) else 0)
    starts = [event["attributes"] for event in result.telemetry.events() if event["name"] == "session.start"]
    assert {start["session.id"] for start in starts} == sessions
    assert len(starts) == len(sessions)


def the_parent_is_the_one_that_the_client_sent(result: Result) -> None:
    for asked in result.reading.requests:
        span = result.span_of(asked)
        found = f"{trace_of(span)}-{span.parent.span_id:016x}" if span.parent is not None else None
        assert found == asked.parent, asked


def every_message_is_counted_once(result: Result) -> None:
    counted: Counter[str] = Counter()
    errors: Counter[str | None] = Counter()
    for attributes, (count, _) in result.telemetry.points(DURATION):
        counted[attributes["mcp.method.name"]] += count
        if attributes["mcp.method.name"] == "tools/call":
            errors[attributes.get("error.type")] += count
    assert counted == Counter(method for method in result.reading.methods if method != LISTEN)
    spans = (attributes_of(span) for span in result.spans)
    assert errors == Counter(found.get("error.type") for found in spans if found["mcp.method.name"] == "tools/call")
    active = result.telemetry.points("otel_mcp.requests.active")
    assert all(value == 0 for _, value in active)
    sizes = [asked.size for asked in result.reading.requests if asked.method == "tools/call" and asked.size is not None]
    measured = [value for _, value in result.telemetry.points("otel_mcp.tool.result.size")]
    assert (sum(count for count, _ in measured), sum(size for _, size in measured)) == (len(sizes), sum(sizes))


def catalogues_are_measured_to_the_byte(result: Result) -> None:
    answers = [answer for playing in result.playing for answer in answers_of(playing.recorded)]
    listed = [answer for answer in answers if "tools" in (answer.message.get("result") or {})]
    sizes: dict[str, int] = {}
    total = cut = 0
    for answer in listed:
        write = next((write for write in STYLES if len(write(answer.message)) == answer.size), STYLES[0])
        tools = {tool["name"]: len(write(tool)) for tool in answer.message["result"]["tools"]}
        sizes |= tools
        total += sum(tools.values())
        # Where the lines of an event were cut anew, line ends stand between the tokens.
        cut += answer.size - len(write(answer.message))
    found = [value for _, value in result.telemetry.points("otel_mcp.catalogue.size")]
    assert sum(count for count, _ in found) == len(listed)
    assert total <= sum(size for _, size in found) <= total + cut
    points = result.telemetry.points("otel_mcp.tool.definition.size")
    measured = {attributes["gen_ai.tool.name"]: size for attributes, size in points}
    assert measured.keys() == sizes.keys()
    assert all(size <= measured[name] <= size + cut for name, size in sizes.items())
    counted = [value for _, value in result.telemetry.points("otel_mcp.catalogue.tools")]
    assert counted == ([len(sizes)] if listed else [])
    calls = {attributes["gen_ai.tool.name"]: calls for attributes, calls in result.telemetry.points(TOOL_CALLS)}
    tools = [asked for asked in result.reading.requests if asked.method == "tools/call"]
    made = Counter(asked.target for asked in tools if not asked.goes_on)
    assert {name: made[name] for name in sizes} == {name: calls[name] for name in sizes}
    assert sum(calls.values()) == sum(made.values())


async def the_document_holds_the_calls(result: Result) -> None:
    sessions = {
        attributes_of(result.span_of(asked))["session.id"] for asked in result.reading.requests if not asked.refused
    }
    taken = [
        asked
        for asked in result.reading.requests
        if not asked.refused and asked.status_code not in NOT_TAKEN and asked.method != LISTEN
    ]
    for session_id in sessions:
        state = await result.runtime.sessions.load(str(session_id))
        assert state is not None
        calls = [asked for asked in taken if asked.method == "tools/call" and not asked.goes_on]
        assert sum(call.rounds - 1 for call in state.tool_calls) == sum(asked.goes_on for asked in taken)
        doubtful = [asked for asked in result.reading.requests if asked.refused and asked.exchange.modern]
        assert len(calls) <= state.tool_call_count <= len(calls) + len(doubtful)
        assert len(taken) <= state.request_count <= len(taken) + len(doubtful) + 1
        assert state.client_name == result.reading.client
        if not doubtful:
            assert [call.tool_name for call in sorted(state.tool_calls, key=lambda call: call.started_at)] == [
                asked.target for asked in sorted(calls, key=lambda asked: asked.began)
            ]


def an_end_is_told_once(result: Result) -> None:
    ends = [event["attributes"] for event in result.telemetry.events() if event["name"] == "session.end"]
    reasons = {end["session.id"]: end["otel_mcp.session.end.reason"] for end in ends}
    assert len(reasons) == len(ends) <= 1
    for session_id in result.reading.deleted:
        assert reasons[session_id or result.minted] == "client_delete"


@pytest.mark.parametrize(
    "names",
    [
        ("A-mcp2-stateful-mcp2-legacy", "B-mcp1-stateful-mcp1", "H-fm4-events-mcp112"),
        ("I-mcp2-sse-mcp1-sse", "I-mcp1-sse-mcp1-sse", "A-mcp19-stateful-mcp19"),
        ("A-fm4-stateful-mcp2-legacy", "F-mcp2-stateful-mcp2-legacy-cancel", "J-mcp1-stateful-mcp1-ping17s"),
    ],
)
@pytest.mark.parametrize("chunking", ["as recorded", "at random"])
async def test_clients_that_overlap_are_not_mixed(names: tuple[str, ...], chunking: str, replayed: Replayed) -> None:
    """Their JSON-RPC ids are the same, their requests and streams interleaved; each keeps its own session."""
    result = await replayed(CHUNKINGS[chunking](together([load(name) for name in names])))

    the_answers_are_those_of_the_server(result)
    every_request_has_one_span(result)
    each_span_tells_how_its_request_ended(result)
    each_span_lasts_until_the_answer_was_on_its_way(result)
    found = {attributes_of(result.span_of(asked))["session.id"] for asked in result.reading.requests}
    for asked in result.reading.requests:
        assert attributes_of(result.span_of(asked))["session.id"] == asked.transport_id
    assert len(found) == len(names)
