"""Around a scripted app, every ASGI message is what it would be without us but for headers that we add."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import pytest

from otel_mcp.api import MCPMiddleware
from otel_mcp.exchange.handler import ExchangeHandler
from otel_mcp.model.call import SCOPE_KEY
from tests.integration.conftest import Observed
from tests.support.scripted import OURS, RECEIVE, Conversation, Scripted, Step, converse, http_scope

pytestmark = pytest.mark.anyio

META: Final = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": {"name": "scripted", "version": "1"},
}
CALL = {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": "add", "arguments": {"a": 1}}}
MODERN_CALL = {**CALL, "params": {**CALL["params"], "_meta": META}}  # type: ignore[dict-item]
INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 0,
    "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "scripted", "version": "1"}},
}
RESULT = {"jsonrpc": "2.0", "id": 7, "result": {"content": [{"type": "text", "text": "3"}]}}
INITIALIZED = {"jsonrpc": "2.0", "id": 0, "result": {"protocolVersion": "2025-11-25", "capabilities": {}}}
LEGACY = {"content-type": "application/json", "accept": "application/json, text/event-stream"}
SESSION = {**LEGACY, "mcp-protocol-version": "2025-11-25", "mcp-session-id": "abc-123"}
MODERN = {**LEGACY, "mcp-protocol-version": "2026-07-28", "mcp-method": "tools/call", "mcp-name": "add"}
PROGRESS = {"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": 1, "progress": 1}}
DISCONNECT = {"type": "http.disconnect"}


def body(message: object, *, pieces: int = 1) -> list[dict[str, Any]]:
    """A request body in some pieces."""
    encoded = message if isinstance(message, bytes) else json.dumps(message).encode()
    size = max(1, -(-len(encoded) // pieces))
    parts = [encoded[at : at + size] for at in range(0, len(encoded), size)] or [b""]
    return [{"type": "http.request", "body": part, "more_body": at < len(parts) - 1} for at, part in enumerate(parts)]


def start(status: int = 200, content_type: str | None = "application/json", **more: str) -> dict[str, Any]:
    """The start of a response."""
    headers = {**({"content-type": content_type} if content_type else {}), **more}
    return {
        "type": "http.response.start",
        "status": status,
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
    }


def chunk(message: object = b"", *, more: bool = False) -> dict[str, Any]:
    """A piece of a response body."""
    encoded = message if isinstance(message, bytes) else json.dumps(message).encode()
    return {"type": "http.response.body", "body": encoded, "more_body": more}


def event(message: object, *, more: bool = True) -> dict[str, Any]:
    """A server-sent event as a piece of a response body."""
    return chunk(b"event: message\r\ndata: " + json.dumps(message).encode() + b"\r\n\r\n", more=more)


@dataclass
class Case:
    """A request and what the app does with it."""

    steps: Sequence[Step]
    incoming: Sequence[dict[str, Any]] = ()
    headers: dict[str, str] = field(default_factory=lambda: dict(SESSION))
    method: str = "POST"
    scope: dict[str, Any] | None = None
    refuse_from: int | None = None
    added: frozenset[bytes] = frozenset()
    """The headers that are expected to have been added."""

    def make_scope(self) -> dict[str, Any]:
        """The scope of the request."""
        return self.scope or http_scope(self.method, self.headers)


STREAM = start(content_type="text/event-stream")
X, BOTH = frozenset({b"x-session-id"}), OURS
CASES: dict[str, Callable[[], Case]] = {
    "json-answer": lambda: Case([RECEIVE, start(), chunk(RESULT)], body(CALL), added=X),
    "sessionless-answer": lambda: Case([RECEIVE, start(), chunk(RESULT)], body(MODERN_CALL), MODERN, added=X),
    "initialize-without-an-id": lambda: Case(
        [RECEIVE, start(), chunk(INITIALIZED)], body(INITIALIZE), LEGACY, added=BOTH
    ),
    "initialize-with-the-servers-id": lambda: Case(
        [RECEIVE, start(mcp_session_id="theirs"), chunk(INITIALIZED)], body(INITIALIZE), LEGACY, added=X
    ),
    "initialize-of-a-browser": lambda: Case(
        [RECEIVE, start(), chunk(INITIALIZED)], body(INITIALIZE), {**LEGACY, "origin": "https://app.example"}
    ),
    "initialize-that-failed": lambda: Case([RECEIVE, start(400), chunk(b"{}")], body(INITIALIZE), LEGACY),
    "body-in-pieces": lambda: Case([RECEIVE, RECEIVE, RECEIVE, start(), chunk(RESULT)], body(CALL, pieces=3), added=X),
    "answer-in-pieces": lambda: Case(
        [RECEIVE, start(), *(chunk(bytes([b]), more=True) for b in json.dumps(RESULT).encode()), chunk()],
        body(CALL),
        added=X,
    ),
    "event-stream": lambda: Case(
        [RECEIVE, STREAM, event(PROGRESS), chunk(b": ping\n\n", more=True), event(PROGRESS), event(RESULT), chunk()],
        body(CALL),
        added=X,
    ),
    "events-cut-anywhere": lambda: Case(
        [RECEIVE, STREAM, *(chunk(bytes([b]), more=True) for b in event(RESULT)["body"]), chunk()], body(CALL), added=X
    ),
    "body-never-read": lambda: Case([start(202, None), chunk()], body(CALL)),
    "body-read-to-the-half": lambda: Case([RECEIVE, start(413), chunk(b"{}")], body(CALL, pieces=2)),
    "body-read-after-the-answer-began": lambda: Case([start(), RECEIVE, chunk(RESULT)], body(CALL)),
    "body-beyond-the-limit": lambda: Case(
        [*[RECEIVE] * 4, start(), chunk(RESULT)], body(b'{"jsonrpc":"2.0"' + b" " * 3_000_000, pieces=4)
    ),
    "answer-beyond-the-limit": lambda: Case(
        [RECEIVE, start(), chunk(b"[" + b" " * 900_000, more=True), chunk(b"]")], body(CALL), added=X
    ),
    "compressed-answer": lambda: Case(
        [RECEIVE, start(content_encoding="gzip"), chunk(b"\x1f\x8b\x00\xff")], body(CALL), added=X
    ),
    "request-that-is-no-json": lambda: Case([RECEIVE, start(400), chunk(b"{}")], body(b'{"jsonrpc": "2.')),
    "request-that-is-a-batch": lambda: Case([RECEIVE, start(400), chunk(b"{}")], body([CALL, CALL])),
    "request-without-a-body": lambda: Case([RECEIVE, start(400), chunk(b"{}")], body(b"")),
    "answer-that-is-no-json": lambda: Case([RECEIVE, start(), chunk(b"\xff\xfe{")], body(CALL), added=X),
    "notification": lambda: Case(
        [RECEIVE, start(202, None), chunk()], body({"jsonrpc": "2.0", "method": "notifications/initialized"})
    ),
    "refusal": lambda: Case([RECEIVE, start(401, www_authenticate="Bearer"), chunk(b"no")], body(CALL)),
    "session-that-is-gone": lambda: Case([RECEIVE, start(404), chunk(b"{}")], body(CALL)),
    "get-stream": lambda: Case(
        [STREAM, event(PROGRESS), RECEIVE], [DISCONNECT], {**SESSION, "accept": "text/event-stream"}, "GET"
    ),
    "delete": lambda: Case([RECEIVE, start(200, None), chunk()], body(b""), SESSION, "DELETE"),
    "disconnect-mid-stream": lambda: Case(
        [RECEIVE, STREAM, event(PROGRESS), RECEIVE], [*body(CALL), DISCONNECT], added=X
    ),
    "disconnect-before-the-answer": lambda: Case([RECEIVE, RECEIVE], [*body(MODERN_CALL), DISCONNECT], MODERN),
    "disconnect-after-the-answer": lambda: Case(
        [RECEIVE, start(), chunk(RESULT), RECEIVE], [*body(CALL), DISCONNECT], added=X
    ),
    "client-gone-while-the-app-sends": lambda: Case(
        [RECEIVE, STREAM, event(PROGRESS), event(RESULT)], body(CALL), refuse_from=2, added=X
    ),
    "client-gone-before-the-app-sends": lambda: Case([RECEIVE, start(), chunk(RESULT)], body(CALL), refuse_from=0),
    "app-raises-before-the-answer": lambda: Case([RECEIVE, ValueError("the app is broken")], body(CALL)),
    "app-raises-before-it-reads": lambda: Case([ValueError("the app is broken")], body(CALL)),
    "app-raises-within-the-answer": lambda: Case(
        [RECEIVE, STREAM, event(PROGRESS), ValueError("the app is broken")], body(CALL), added=X
    ),
    "app-raises-after-the-answer": lambda: Case(
        [RECEIVE, start(), chunk(RESULT), ValueError("the app is broken")], body(CALL), added=X
    ),
    "app-is-cancelled": lambda: Case([RECEIVE, STREAM, asyncio.CancelledError()], body(CALL), added=X),
    "app-exits": lambda: Case([RECEIVE, SystemExit(3)], body(CALL)),
    "two-starts": lambda: Case([RECEIVE, start(), start(500), chunk(RESULT)], body(CALL), added=X),
    "no-start": lambda: Case([RECEIVE], body(CALL)),
    "body-without-a-start": lambda: Case([RECEIVE, chunk(RESULT)], body(CALL)),
    "start-without-headers": lambda: Case(
        [RECEIVE, {"type": "http.response.start", "status": 200}, {"type": "http.response.body"}], body(CALL), added=X
    ),
    "headers-in-a-tuple": lambda: Case(
        [RECEIVE, {**start(), "headers": ((b"Content-Type", b"application/json"),)}, chunk(RESULT)], body(CALL), added=X
    ),
    "headers-in-lists": lambda: Case(
        [RECEIVE, {**start(), "headers": [[b"content-type", b"application/json"]]}, chunk(RESULT)], body(CALL), added=X
    ),
    "headers-in-a-generator": lambda: Case(
        [RECEIVE, {**start(), "headers": (header for header in start()["headers"])}, chunk(RESULT)],
        body(CALL),
        added=X,
    ),
    "headers-in-a-generator-of-a-refusal": lambda: Case(
        [RECEIVE, {**start(401), "headers": (header for header in start()["headers"])}, chunk(b"no")], body(CALL)
    ),
    "messages-of-extensions": lambda: Case(
        [
            {"type": "http.response.debug", "info": {"a": 1}},
            RECEIVE,
            {**start(), "trailers": True},
            {"type": "http.response.pathsend", "path": "/tmp/x"},
            chunk(RESULT),
            {"type": "http.response.trailers", "headers": [(b"x", b"y")], "more_trailers": False},
        ],
        body(CALL),
        added=X,
    ),
    "other-post": lambda: Case([RECEIVE, start(), chunk(b"{}")], body({"order": 1}), {"content-type": "text/plain"}),
    "other-json-post": lambda: Case([RECEIVE, start(), chunk(b"{}")], body({"method": "order"}), LEGACY),
    "other-get": lambda: Case([RECEIVE, start(), chunk(b"ok")], body(b""), {}, "GET"),
    "websocket": lambda: Case(
        [RECEIVE, {"type": "websocket.accept"}, {"type": "websocket.close"}],
        [{"type": "websocket.connect"}],
        scope={"type": "websocket", "path": "/mcp", "headers": [], "query_string": b""},
    ),
    "lifespan": lambda: Case(
        [RECEIVE, {"type": "lifespan.startup.complete"}, RECEIVE, {"type": "lifespan.shutdown.complete"}],
        [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}],
        scope={"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}},
    ),
    "lifespan-that-fails": lambda: Case(
        [RECEIVE, {"type": "lifespan.startup.failed", "message": "no"}, ValueError("the app is broken")],
        [{"type": "lifespan.startup"}],
        scope={"type": "lifespan", "asgi": {"version": "3.0"}},
    ),
    "unknown-kind-of-connection": lambda: Case(
        [RECEIVE, {"type": "later"}], [{"type": "now"}], scope={"type": "something.new"}
    ),
}


@pytest.mark.parametrize("name", CASES)
async def test_messages_pass_unchanged_in_both_directions(observed: Observed, name: str) -> None:
    case, other = CASES[name](), CASES[name]()
    plain, wrapped = Scripted(other.steps), Scripted(case.steps)
    middleware = MCPMiddleware(wrapped, observed.runtime)

    without = await converse(plain, other.make_scope(), other.incoming, refuse_from=other.refuse_from)
    within = await converse(middleware, case.make_scope(), case.incoming, refuse_from=case.refuse_from)

    added = within.added_to(without)
    assert added.keys() == case.added
    assert within.without(added) == without.events
    assert {key: value for key, value in wrapped.scopes[0].items() if key != SCOPE_KEY} == plain.scopes[0]
    expected = [step for step in case.steps if isinstance(step, BaseException)]
    assert type(within.raised) is type(without.raised)
    assert [within.raised] == (expected or wrapped.failures or [None])


@pytest.mark.parametrize("name", CASES)
async def test_messages_pass_unchanged_where_everything_of_ours_fails(
    observed: Observed, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("sabotage")

    for owner, methods in (
        (ExchangeHandler, ("_begin_known", "_slow_begin", "_slow_answer", "_close")),
        (observed.runtime.exchanges.requests, ("feed",)),
        (observed.runtime.exchanges.session_ids, ("claim",)),
    ):
        for method in methods:
            monkeypatch.setattr(owner, method, fail)
    case, other = CASES[name](), CASES[name]()
    middleware = MCPMiddleware(Scripted(case.steps), observed.runtime)

    without = await converse(Scripted(other.steps), other.make_scope(), other.incoming, refuse_from=other.refuse_from)
    within = await converse(middleware, case.make_scope(), case.incoming, refuse_from=case.refuse_from)

    assert within.events == without.events
    assert repr(within.raised) == repr(without.raised)


def _response_headers(conversation: Conversation) -> dict[bytes, bytes]:
    (first,) = (what for _, what in conversation.events if what["type"] == "http.response.start")
    return dict(first["headers"])


async def test_message_of_the_app_is_not_changed_where_headers_are_added(observed: Observed) -> None:
    case = CASES["initialize-without-an-id"]()
    before = json.dumps([step for step in case.steps if isinstance(step, dict)], default=repr)

    within = await converse(MCPMiddleware(Scripted(case.steps), observed.runtime), case.make_scope(), case.incoming)

    assert _response_headers(within).keys() >= OURS
    assert json.dumps([step for step in case.steps if isinstance(step, dict)], default=repr) == before


async def test_our_own_id_is_removed_before_the_app_sees_it(observed: Observed) -> None:
    first = CASES["initialize-without-an-id"]()
    opened = await converse(MCPMiddleware(Scripted(first.steps), observed.runtime), first.make_scope(), first.incoming)
    ours = _response_headers(opened)[b"mcp-session-id"].decode()
    app = Scripted([RECEIVE, start(), chunk(RESULT)])

    answered = await converse(
        MCPMiddleware(app, observed.runtime), http_scope(headers={**SESSION, "mcp-session-id": ours}), body(CALL)
    )

    assert ours.startswith("om1.")
    assert b"mcp-session-id" not in dict(app.scopes[0]["headers"])
    assert _response_headers(answered)[b"x-session-id"] == ours.encode()
    assert b"mcp-session-id" not in _response_headers(answered)


async def test_id_with_a_forged_tag_passes_and_opens_nothing_of_ours(observed: Observed) -> None:
    forged = "om1.AAAAAAAAAAAAAAAAAAAAAA.AAAAAAAAAAAA"
    app = Scripted([RECEIVE, start(404), chunk(b"{}")])

    answered = await converse(
        MCPMiddleware(app, observed.runtime), http_scope(headers={**SESSION, "mcp-session-id": forged}), body(CALL)
    )

    assert dict(app.scopes[0]["headers"])[b"mcp-session-id"] == forged.encode()
    assert not OURS & _response_headers(answered).keys()
    assert observed.runtime.resolver.registry.get(forged) is None


@pytest.mark.parametrize(
    ("name", "error_type"),
    [
        ("json-answer", None),
        ("event-stream", None),
        ("disconnect-before-the-answer", "cancelled"),
        ("app-raises-before-the-answer", "500"),
        ("two-starts", None),
        ("refusal", "401"),
    ],
)
async def test_scripted_call_is_one_span_with_its_outcome(
    observed: Observed, name: str, error_type: str | None
) -> None:
    case = CASES[name]()

    await converse(MCPMiddleware(Scripted(case.steps), observed.runtime), case.make_scope(), case.incoming)

    (span,) = observed.spans()
    assert span.name == "tools/call add"
    assert (span.attributes or {}).get("error.type") == error_type
