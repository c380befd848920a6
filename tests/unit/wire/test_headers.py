"""Which HTTP requests may be MCP, told from their headers."""

from __future__ import annotations

import pytest

from otel_mcp.middleware import look
from otel_mcp.wire import headers
from otel_mcp.wire.headers import MAYBE, NO, YES
from tests.support.asgi import make_scope

JSON = {b"content-type": b"application/json"}
SSE = {b"accept": b"text/event-stream"}


@pytest.mark.parametrize(
    ("method", "given", "verdict"),
    [
        ("POST", JSON, MAYBE),
        ("POST", {b"content-type": b"application/json; charset=utf-8"}, MAYBE),
        ("POST", {b"content-type": b"Application/JSON"}, MAYBE),
        ("POST", {**JSON, b"mcp-protocol-version": b"2025-06-18"}, YES),
        ("POST", {**JSON, b"mcp-session-id": b"x"}, YES),
        ("POST", {**JSON, b"mcp-method": b"tools/list"}, YES),
        ("POST", {}, NO),
        ("POST", {b"content-type": b"text/plain", b"mcp-session-id": b"x"}, NO),
        ("POST", {b"content-type": b"application/x-www-form-urlencoded"}, NO),
        ("POST", {b"content-type": b"multipart/form-data; boundary=application/json"}, NO),
        ("GET", SSE, MAYBE),
        ("GET", {b"accept": b"application/json, text/event-stream"}, MAYBE),
        ("GET", {**SSE, b"mcp-protocol-version": b"2025-06-18"}, YES),
        ("GET", {b"mcp-session-id": b"x"}, YES),
        ("GET", {}, NO),
        ("GET", {b"accept": b"text/html"}, NO),
        ("DELETE", {b"mcp-session-id": b"x"}, YES),
        ("DELETE", {}, NO),
        ("PUT", {**JSON, b"mcp-session-id": b"x"}, NO),
        ("OPTIONS", {b"mcp-session-id": b"x"}, NO),
        ("HEAD", SSE, NO),
    ],
)
def test_a_request_is_recognised_by_its_method_and_headers(
    method: str, given: dict[bytes, bytes], verdict: int
) -> None:
    assert headers.recognise(method, given) == verdict


def test_of_a_repeated_header_the_first_stands() -> None:
    scope = make_scope(headers=[("mcp-session-id", "one"), ("host", "a"), ("mcp-session-id", "two")])

    assert look({**scope, "method": "DELETE"}) == ({b"mcp-session-id": b"one", b"host": b"a"}, YES)


def test_a_header_is_read_as_text_of_bounded_length() -> None:
    given = {b"user-agent": b"x" * 1000, b"empty": b"", b"latin": b"\xe9\xff"}

    assert headers.text(given, b"user-agent") == "x" * 256
    assert headers.text(given, b"user-agent", 10) == "x" * 10
    assert headers.text(given, b"empty") is None
    assert headers.text(given, b"absent") is None
    assert headers.text(given, b"latin") == "\xe9\xff"
