"""Which HTTP requests may be MCP, by their headers."""

from __future__ import annotations

from typing import Any

import pytest

from otel_mcp.current import look
from otel_mcp.wire import headers
from tests.support.asgi import make_scope

JSON = {b"content-type": b"application/json"}
SSE = {b"accept": b"text/event-stream"}


@pytest.mark.parametrize(
    ("method", "given", "certain"),
    [
        ("POST", JSON, False),
        ("POST", {b"content-type": b"application/json; charset=utf-8"}, False),
        ("POST", {b"content-type": b"Application/JSON"}, False),
        ("POST", {**JSON, b"mcp-protocol-version": b"2025-06-18"}, True),
        ("POST", {**JSON, b"mcp-session-id": b"x"}, True),
        ("POST", {**JSON, b"mcp-method": b"tools/list"}, True),
        ("POST", {}, None),
        ("POST", {b"content-type": b"text/plain", b"mcp-session-id": b"x"}, None),
        ("POST", {b"content-type": b"application/x-www-form-urlencoded"}, None),
        ("POST", {b"content-type": b"multipart/form-data; boundary=application/json"}, None),
        ("GET", SSE, False),
        ("GET", {b"accept": b"application/json, text/event-stream"}, False),
        ("GET", {**SSE, b"mcp-protocol-version": b"2025-06-18"}, True),
        ("GET", {b"mcp-session-id": b"x"}, True),
        ("GET", {}, None),
        ("GET", {b"accept": b"text/html"}, None),
        ("DELETE", {b"mcp-session-id": b"x"}, True),
        ("DELETE", {}, None),
        ("PUT", {**JSON, b"mcp-session-id": b"x"}, None),
        ("OPTIONS", {b"mcp-session-id": b"x"}, None),
        ("HEAD", SSE, None),
    ],
)
def test_a_request_is_recognised_by_its_method_and_headers(
    method: str, given: dict[bytes, bytes], certain: bool | None
) -> None:
    seen = headers.recognise({"method": method, "headers": list(given.items())})

    assert seen == (None if certain is None else (given, certain))


@pytest.mark.parametrize(
    "odd",
    [(b"Mcp-Session-Id", b"own"), (b"mcp-session-id", "own"), ("mcp-session-id", "own"), ("Mcp-Session-Id", b"own")],
)
def test_one_header_may_be_written_otherwise_than_the_others(odd: tuple[Any, Any]) -> None:
    plain = (b"host", b"shop"), (b"content-type", b"application/json")
    for lines in ([*plain, odd], [odd, *plain]):
        seen = headers.recognise({"method": "POST", "headers": lines})
        assert seen is not None
        assert (seen[0][b"mcp-session-id"], seen[1]) == (b"own", True)


def test_of_a_repeated_header_the_first_stands() -> None:
    scope = make_scope(headers=[("mcp-session-id", "one"), ("host", "a"), ("mcp-session-id", "two")])

    assert look({**scope, "method": "DELETE"}) == ({b"mcp-session-id": b"one", b"host": b"a"}, True)


def test_a_header_is_read_as_text_of_bounded_length() -> None:
    given = {b"user-agent": b"x" * 1000, b"empty": b"", b"latin": b"\xe9\xff"}

    assert headers.text(given, b"user-agent") == "x" * 256
    assert headers.text(given, b"user-agent", 10) == "x" * 10
    assert headers.text(given, b"empty") is None
    assert headers.text(given, b"absent") is None
    assert headers.text(given, b"latin") == "\xe9\xff"
