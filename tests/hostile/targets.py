"""What atheris is let loose on: every parser that a stranger's bytes reach, and what must hold of each.

A target takes bytes and raises only if something is wrong. Without atheris, the
same targets run as ordinary tests on the corpus below.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from http.cookies import SimpleCookie
from typing import Any, Final, cast
from unittest.mock import Mock

from opentelemetry import propagate

from otel_mcp.exchange.replies import Answer, Replies, reading_of
from otel_mcp.hashing import KeyedHashes, minted_at
from otel_mcp.identity.address import Clients
from otel_mcp.identity.claims import Claims
from otel_mcp.identity.hosts import HOST_KEYS, conversation, from_baggage
from otel_mcp.identity.principal import principal
from otel_mcp.model.call import Exchange, client_info
from otel_mcp.model.delta import CallRecord, SessionFacts
from otel_mcp.model.state import SessionState
from otel_mcp.settings import load
from otel_mcp.store import document as document_text
from otel_mcp.telemetry.metrics import Metrics
from otel_mcp.telemetry.propagation import carried
from otel_mcp.wire import headers, jsonrpc, sse

HASHES: Final = KeyedHashes()
HASHES.learn(b"k" * 32)
CLAIMS: Final = Claims(load(service_name="s", session_sources="cookie,conversation,header,inferred"), HASHES)
CLIENTS: Final = {name: Clients(("10.0.0.0/8", "::1"), name) for name in ("x-forwarded-for", "forwarded", "x-real-ip")}
LIMIT: Final = 300


def body(data: bytes) -> None:
    """A request body: parsed, or refused as no JSON; every text of it can be encoded."""
    try:
        messages = jsonrpc.parse_messages(data)
    except ValueError:
        return
    assert len(messages) <= 100
    for message in messages:
        assert len(message.method) <= 256
        jsonrpc.is_mcp(message)
        exchange = Exchange("POST", "/", {})
        call = exchange.add(message)
        for given in (message.method, message.target, message.id, *client_info(call)):
            if isinstance(given, str):
                given.encode()
        conversation(message.meta, HOST_KEYS, "codex opencode")
        carried((name, value) for name, value in message.meta.items())


def reply(data: bytes) -> None:
    """An answer, recognised by how it begins, or parsed."""
    known = jsonrpc.result_id(data)
    try:
        replies = jsonrpc.parse_replies(data)
    except ValueError:
        return
    for entry in replies:
        jsonrpc.outcome_of(entry)
        jsonrpc.negotiated_version(entry)
        jsonrpc.json_id(entry.get("id"))
        jsonrpc.listed_names(entry.get("result"), "tools")
    if known is not None and len(replies) == 1 and "id" in replies[0] and data.count(b'"id"') == 1:
        assert known == replies[0]["id"], (known, replies[0]["id"])


def stream(data: bytes) -> None:
    """The events of a stream are the same however it is cut, and never larger than the limit."""
    if not data:
        return
    step, data = 1 + data[0] % 7, data[1:]
    whole = list(sse.Decoder(LIMIT).feed(data))
    decoder = sse.Decoder(LIMIT)
    pieces = [event for start in range(0, len(data), step) for event in decoder.feed(data[start : start + step])]
    assert pieces == whole, (pieces, whole)
    assert all(event.data is None or len(event.data) == event.size <= LIMIT for event in whole)
    quick = sse.whole(data, LIMIT)
    if quick is not None:
        assert [quick] == whole, (quick, whole)
    result = sse.result_size(data, 1)
    assert result is None or (quick is not None and quick.size == result), (quick, result)


def answer(data: bytes) -> None:
    """Whatever a server streams, its reader finishes each call once at most."""
    if len(data) < 2:
        return
    exchange = Exchange("POST", "/", {})
    exchange.confirmed = bool(data[0] & 1)
    for number in range(data[0] >> 6):
        message = jsonrpc.Message("tools/call", number, {"name": "add"})
        exchange.add(message)
    finished: list[Any] = []

    class InFlight:
        """Keeps what is finished."""

        def finish(self, call: Any, outcome: object, size: int | None) -> None:
            if not call.finished:
                call.finished = True
                finished.append(call)

        def stream_opened(self, exchange: Exchange, session_id: str) -> None:
            pass

        def find(self, exchange: Exchange, request_id: object) -> None:
            return None

    kind = b"text/event-stream" if data[0] & 2 else b"application/json"
    exchange.status = 400 if data[0] & 4 else 200
    replies = Replies(load(), Metrics(None), cast("Any", Mock()), cast("Any", None), cast("Any", InFlight()))
    reader = Answer(replies, exchange, reading_of({b"content-type": kind}))
    step, data = 1 + data[1], data[2:]
    for start in range(0, len(data), step):
        reader.feed(memoryview(data)[start : start + step] if step % 2 else data[start : start + step], more=True)
    reader.feed(b"", more=False)
    assert len(finished) == len({id(call) for call in finished})


def _lines(data: bytes) -> dict[bytes, bytes]:
    found = (line.partition(b":") for line in data.split(b"\n"))
    return {name.lower(): value for name, _, value in found}


def head(data: bytes) -> None:
    """Request headers of any shape, and a query."""
    given = _lines(data)
    pairs = list(given.items())
    scope = {"headers": pairs, "query_string": data}
    found = dict(reversed(pairs))
    for method in ("GET", "POST", "DELETE"):
        headers.recognise({**scope, "method": method})
    headers.query_session_id(scope)
    headers.endpoint_session_id(data)
    for name, clients in CLIENTS.items():
        clients.of({**scope, "client": ("10.0.0.1", 1)})
        clients.of({"headers": [(name.encode(), data)], "client": ("10.0.0.1", 1)})
    principal(None, {**found, b"authorization": b"Bearer e30." + data + b".x"}, HASHES)
    principal(None, {b"authorization": data}, HASHES)


def claim(data: bytes) -> None:
    """Which session a request claims: always a key that Redis and a header can hold."""
    given, _, payload = data.partition(b"\n\n")
    found = _lines(given)
    exchange = Exchange("POST", "/", found, client="10.0.0.1")
    wire_id = found.get(b"mcp-session-id")
    exchange.wire_session_id = exchange.transport_id = wire_id[:512].decode("latin-1") if wire_id else None
    try:
        messages = jsonrpc.parse_messages(payload)
    except ValueError:
        messages = [jsonrpc.Message("tools/call", 1, {})]
    for message in messages:
        found_claim = CLAIMS.of(exchange.add(message))
        if found_claim is not None:
            assert len(found_claim.key) <= 128
            assert found_claim.key.isascii()
            assert found_claim.key.isprintable()
            assert not set(found_claim.key) & set(" {}\r\n")


def session_id(data: bytes) -> None:
    """Ids of any bytes: stored harmlessly, and none of them is ours."""
    text = data.decode("utf-8", "surrogatepass") if _is_utf8(data) else data.decode("latin-1")
    assert not HASHES.is_ours(text)
    assert not HASHES.is_ours("om1." + text)
    minted_at("om1." + text)
    stored = HASHES.storable(text, hashed=False)
    assert 0 < len(stored) <= 128
    stored.encode("ascii")
    from_baggage(text)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8", "surrogatepass")
    except ValueError:
        return False
    return True


def context(data: bytes) -> None:
    """What a propagator is handed it reads."""
    text = data.decode("utf-8", "replace")
    propagate.extract(carried([("baggage", text), ("tracestate", text), ("traceparent", text)]))


def cookie(data: bytes) -> None:
    """Only the errors that we expect come out of the standard library."""
    exchange = Exchange("POST", "/", {b"cookie": data})
    CLAIMS.of(exchange.add(jsonrpc.Message("tools/call", 1, {})))
    with suppress(Exception):
        SimpleCookie(data.decode("latin-1"))


def document(data: bytes) -> None:
    """A document made of a stranger's texts is one that can be read back."""
    given = data.decode("utf-8", "surrogatepass") if _is_utf8(data) else data.decode("latin-1")
    record = CallRecord(given[:256], given[:256], 1.0, 0.1, error_type=given[:64], result_bytes=1)
    record.arguments = {given: [given]}
    facts = SessionFacts("id", 1.0, 3600.0, user_agent=given, client_name=given, source="header")
    calls = document_text.call(record)
    assert "\n" not in calls
    whole = f'{document_text.facts(facts, "s")[:-1]},"attributes":{{}},"tool_calls":[{calls}]}}'
    state = SessionState.model_validate_json(document_text.utf8(whole))
    assert len(state.tool_calls) == 1


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    function.__name__: function
    for function in (body, reply, stream, answer, head, claim, session_id, context, cookie, document)
}

SEEDS: Final = (
    b"", b"\x00", b"\xff\xfe", b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"add"}}',
    b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"_meta":{"openai/session":"s","baggage":"session.id=1"}}}',
    b'[{"jsonrpc":"2.0","id":"a","method":"ping"},{"jsonrpc":"2.0","method":"notifications/cancelled"}]',
    b'{"jsonrpc":"2.0","id":1,"result":{"isError":true}}', b'{"jsonrpc":"2.0","id":"\xff","result":{}}',
    b'{"jsonrpc":"2.0","id":null,"error":{"code":-32600}}', b"\x02event: message\r\ndata: {}\r\n\r\n",
    b"\x07event: endpoint\ndata: /m?session_id=1\n\n",
    b"\x42\x05data: {\"jsonrpc\":\"2.0\",\"id\":0,\"result\":{}}\n\n",
    b"mcp-session-id:abc\nauthorization:Bearer e30.eyJzdWIiOiJhIn0.x\n\n{}", b"cookie:mcp_session=a; b=\"c\\\"",
    b"x-forwarded-for:10.0.0.2, [::1]:80, 9.9.9.9\nforwarded:for=\"[::1]\";by=_x", b"om1.AAAA.AAAA",
    b"a=b,session.id=c;d=e", b"\xed\xa0\x80", "\u2028\x85".encode(),
)  # fmt: skip
