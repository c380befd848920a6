"""Whatever a client sends: app and client see what they would have seen without us, and nothing of ours fails."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.hostile import strategies as made
from tests.support.sides import answered, posted, scope_of, side_by_side

JSON = [(b"content-type", b"application/json")]
SSE = [(b"content-type", b"text/event-stream")]
few = settings(
    max_examples=120, derandomize=True, deadline=None, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)  # fmt: skip

OPTIONS: list[dict[str, Any]] = [
    {},
    {
        "session_sources": "cookie,conversation,header,inferred",
        "session_id": "hashed",
        "trusted_proxies": "127.0.0.0/8",
    },
    {"store_content": True, "capture_content": True, "session_span": True},
]
statuses = st.sampled_from([200, 200, 200, 200, 202, 204, 301, 400, 401, 404, 405, 500])


@st.composite
def exchanges(draw: st.DrawFn) -> tuple[Any, Any, Any]:
    """A connection and the app's side of it."""
    method = draw(st.sampled_from(["POST"] * 8 + ["GET", "DELETE", "PUT"]))
    query = draw(st.sampled_from([b"", b"", b"session_id=q", b"sessionId=%00%ff", b"session_id=" + b"q" * 5000]))
    scope = scope_of(
        draw(made.request_headers()), method=method, query=query, path=draw(st.sampled_from(["/mcp", "/é"]))
    )
    incoming = posted(draw(made.bodies().flatmap(made.cut)))
    headers = [*draw(st.sampled_from([JSON, SSE])), *draw(st.sampled_from([[], [(b"mcp-session-id", b"known")]]))]
    if draw(st.integers(0, 9)) == 0:
        headers.append((draw(st.sampled_from([b"content-encoding", b"x-session-id", b"content-type"])), b"gzip"))
    if headers[0] == SSE[0]:
        body = draw(made.streams())
    else:
        body = draw(st.one_of(made.replies().map(made.encoded), st.binary(max_size=20)))
    steps = answered(draw(made.cut(body)), headers, draw(statuses), reads=draw(st.integers(0, len(incoming))))
    if draw(st.integers(0, 9)) == 0:
        steps.insert(draw(st.integers(0, len(steps))), ValueError("the app's own"))
    return scope, incoming, steps


@few
@given(st.lists(exchanges(), min_size=1, max_size=4), st.sampled_from(OPTIONS))
def test_nobody_can_tell_that_we_are_there(connections: list[Any], options: dict[str, Any]) -> None:
    side_by_side(connections, **options)
