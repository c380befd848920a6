"""One connection with and without us, side by side, and everything that must be the same or empty afterwards."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

from otel_mcp import MCPMiddleware, guard
from otel_mcp.model.call import SCOPE_KEY
from otel_mcp.runtime import Runtime
from otel_mcp.settings import load
from otel_mcp.types import ASGIApp, Message, Scope
from tests.support.asgi import make_scope
from tests.support.providers import Telemetry
from tests.support.scripted import OURS, RECEIVE, Conversation, Scripted, Step, converse

PATIENCE = 60
"""Seconds after which one connection hangs."""


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.name}: {record.getMessage()}")


@contextmanager
def log_lines(*names: str) -> Generator[list[str]]:
    """Lines of these loggers from warnings on, while the block runs."""
    handler = _Lines()
    loggers = [logging.getLogger(name) for name in names]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield handler.lines
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


@contextmanager
def runtimes() -> Generator[tuple[Callable[..., Runtime], Telemetry]]:
    """Makes runtimes on providers in memory; both end with the block."""
    telemetry, made = Telemetry(), list[Runtime]()

    def make(**options: object) -> Runtime:
        made.append(
            Runtime(
                load(**{"service_name": "hostile", "max_new_sessions": 1_000_000, **options}),
                telemetry.tracer_provider,
                telemetry.meter_provider,
                telemetry.logger_provider,
            )
        )
        return made[-1]

    try:
        yield make, telemetry
    finally:
        for runtime in made:
            runtime.disable()
        telemetry.shut_down()


def side_by_side(exchanges: Sequence[tuple[Scope, Sequence[Message], Sequence[Step]]], **options: object) -> None:
    """Serve connections with and without us, and compare.

    Args:
        exchanges: each as scope, what `receive` gives, and what the app does.
        options: settings of the runtime.

    Raises:
        AssertionError: anybody could tell the difference, something of ours
            failed, or what we export cannot be sent.
    """
    asyncio.run(asyncio.wait_for(_side_by_side(exchanges, options), PATIENCE))


async def _side_by_side(
    exchanges: Sequence[tuple[Scope, Sequence[Message], Sequence[Step]]], options: dict[str, object]
) -> None:
    before = dict(guard.failures)
    with runtimes() as (make, telemetry), log_lines("otel_mcp", "opentelemetry") as lines:
        runtime = make(**options)
        for scope, incoming, steps in exchanges:
            plain_app, watched_app = Scripted(steps), Scripted(steps)
            plain = await converse(plain_app, scope, incoming)
            watched = await converse(MCPMiddleware(watched_app, runtime), scope, incoming)
            assert_same(plain_app, plain, watched_app, watched)
        await runtime.shut_down()
        assert_sendable(telemetry)
    failures = {name: count for name, count in guard.failures.items() if count != before.get(name, 0)}
    assert failures == {}, (failures, lines)
    assert [line for line in lines if "memory of this process only" not in line] == []


def assert_same(plain_app: Scripted, plain: Conversation, watched_app: Scripted, watched: Conversation) -> None:
    """The app was given the same, and the server got the same, but for the headers that we may add."""
    given = [_without_ours(scope) for scope in watched_app.scopes]
    assert given == [_without_ours(scope, keep=given[0]) for scope in plain_app.scopes]
    assert list(map(repr, watched_app.failures)) == list(map(repr, plain_app.failures))
    assert repr(watched.raised) == repr(plain.raised)
    added = watched.added_to(plain)
    assert set(added) <= OURS
    assert all(value.isascii() and b"\r" not in value and b"\n" not in value for value in added.values())
    assert watched.without(added) == plain.events if added else watched.events == plain.events


def _without_ours(scope: Scope, keep: Scope | None = None) -> Scope:
    """The scope but for our record; `keep` = the other side's, whose request had an id of ours taken off."""
    rest = {key: value for key, value in scope.items() if key != SCOPE_KEY}
    if keep is not None and len(keep["headers"]) < len(rest["headers"]):
        taken = [header for header in rest["headers"] if header not in keep["headers"]]
        assert all(name == b"mcp-session-id" and value.startswith(b"om1.") for name, value in taken)
        rest["headers"] = keep["headers"]
    return rest


def assert_sendable(telemetry: Telemetry) -> None:
    """Whatever we export can be encoded: one text that cannot would keep a whole batch from being sent."""
    spans = telemetry.spans()
    encode_spans(spans).SerializeToString()
    data = telemetry.reader.get_metrics_data()
    if data is not None:
        encode_metrics(data).SerializeToString()
    encode_logs(list(telemetry.log_exporter.get_finished_logs())).SerializeToString()


def posted(chunks: Sequence[Any]) -> list[Message]:
    """A request body as messages."""
    return [
        {"type": "http.request", "body": chunk, "more_body": number < len(chunks)}
        for number, chunk in enumerate(chunks, 1)
    ]


def answered(
    chunks: Sequence[Any], headers: Sequence[tuple[bytes, bytes]], status: int = 200, *, reads: int = 1
) -> list[Step]:
    """An app that reads so many messages and answers with these chunks."""
    return [
        *[RECEIVE] * reads,
        {"type": "http.response.start", "status": status, "headers": list(headers)},
        *({"type": "http.response.body", "body": chunk, "more_body": True} for chunk in chunks),
        {"type": "http.response.body", "body": b"", "more_body": False},
    ]


def scope_of(
    headers: Sequence[tuple[bytes, bytes]], *, method: str = "POST", path: str = "/mcp", query: bytes = b""
) -> Scope:
    """An HTTP request with these very headers."""
    older = {"asgi": {"version": "3.0", "spec_version": "2.3"}, "state": {}}
    return {**make_scope(method, path), "query_string": query, "headers": list(headers), **older}


__all__ = ["ASGIApp", "answered", "assert_same", "log_lines", "posted", "runtimes", "scope_of", "side_by_side"]
