"""Whose child the span of a call is: of what ``_meta`` names, else of the HTTP request, else of its headers."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

import pytest

from examples.demo.otlp_records import SpanRecord
from tests.support.clients import LEGACY, MODERN, connect
from tests.support.servers import Server
from tests.support.telemetry import ancestors, server_spans
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.process, pytest.mark.anyio]


@dataclass(frozen=True)
class Remote:
    """A span of the client's, which only its context tells of."""

    trace_id: str
    span_id: str

    @classmethod
    def make(cls) -> Remote:
        return cls(secrets.token_hex(16), secrets.token_hex(8))

    @property
    def traceparent(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-01"


async def _call(server: Server, mode: str, *, meta: Remote | None, header: Remote | None) -> SpanRecord:
    """The span of one call, once everything that belongs to it has arrived."""
    headers = {"traceparent": header.traceparent} if header else {}
    async with connect(server.url, name=f"tracer-{secrets.token_hex(4)}", mode=mode, headers=headers) as caller:
        if meta is None:
            await caller.call("add", a=1, b=2)
        else:
            await caller.call("add", meta={"traceparent": meta.traceparent}, a=1, b=2)
        session_id = caller.session_id

    def spans() -> list[SpanRecord]:
        calls = server_spans(server.telemetry, "tools/call")
        return [span for span in calls if span.attributes.get("session.id") == session_id]

    assert wait_until(spans)
    (span,) = spans()
    assert wait_until(lambda: _http_span(server, span) is not None)
    return span


def _http_span(server: Server, call: SpanRecord) -> SpanRecord | None:
    """The span of the HTTP request that carried a call: its parent, or what it links to."""
    related = {call.parent_id, *(link.span_id for link in call.links)}
    for span in server.telemetry.spans():
        if span.span_id in related and span.kind == "SERVER" and "mcp.method.name" not in span.attributes:
            return span
    return None


@pytest.mark.parametrize("mode", [LEGACY, MODERN])
async def test_context_in_meta_is_the_parent_and_the_http_span_is_linked(two_workers: Server, mode: str) -> None:
    meta, header = Remote.make(), Remote.make()

    span = await _call(two_workers, mode, meta=meta, header=header)

    http = _http_span(two_workers, span)
    assert http is not None
    assert (span.trace_id, span.parent_id) == (meta.trace_id, meta.span_id)
    assert [(link.trace_id, link.span_id) for link in span.links] == [(http.trace_id, http.span_id)]
    assert (http.trace_id, http.parent_id) == (header.trace_id, header.span_id)


@pytest.mark.parametrize("mode", [LEGACY, MODERN])
async def test_the_http_span_lies_between_the_traceparent_and_the_message(two_workers: Server, mode: str) -> None:
    header = Remote.make()

    span = await _call(two_workers, mode, meta=None, header=header)

    http = _http_span(two_workers, span)
    assert http is not None
    assert span.trace_id == header.trace_id
    assert span.parent_id == http.span_id
    assert http.parent_id == header.span_id
    assert span.links == ()


@pytest.mark.parametrize("mode", [LEGACY, MODERN])
async def test_call_without_a_context_begins_a_trace_of_its_own_request(two_workers: Server, mode: str) -> None:
    span = await _call(two_workers, mode, meta=None, header=None)

    http = _http_span(two_workers, span)
    assert http is not None
    assert http.parent_id is None
    assert ancestors(span, two_workers.telemetry.spans()) == [http]
