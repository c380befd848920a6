"""What strangers send: JSON that is nearly right, headers, ids, bodies and streams cut anywhere."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

KNOWN_METHODS = (
    "initialize", "ping", "tools/call", "tools/list", "prompts/get", "resources/read", "server/discover",
    "notifications/initialized", "notifications/cancelled", "notifications/progress", "subscriptions/listen",
)  # fmt: skip
NASTY = (
    "", "\x00", "\r\nx-injected: 1", "a\nb", "é", "\ud800", "\U0001f600", "a" * 5000, "{}", "{a}b", "../..", "%0d%0a",
    "om1.", "om1.AAAA.AAAA", "om1." + "A" * 28 + "." + "A" * 12, "c_" + "0" * 32, "h_" + "0" * 32, "p_" + "0" * 32,
    "=?utf-8?", "id with spaces", "*", "[x]", "'; --", "\u2028", "\ufeff", "mcp_session:x", "NaN",
)  # fmt: skip
META_KEYS = (
    "openai/session", "vscode.conversationId", "sessionID", "threadId", "sessionId", "x-codex-turn-metadata",
    "Mcp-Client-Session-Id", "baggage", "traceparent", "tracestate", "progressToken",
    "io.modelcontextprotocol/clientInfo", "io.modelcontextprotocol/protocolVersion",
    "io.modelcontextprotocol/clientCapabilities",
)  # fmt: skip

texts = st.one_of(st.just("\ud800"), st.sampled_from(NASTY), st.text(max_size=40))
"""Half surrogate pairs among them: JSON can spell them, UTF-8 cannot."""


class Raw:
    """JSON that is written as it stands: what Python would rather not hold as a value."""

    def __init__(self, what: str, text: str) -> None:
        self.what = what
        self.text = text

    def __repr__(self) -> str:
        return f"Raw({self.what})"

    def __hash__(self) -> int:
        return hash(self.text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Raw) and other.text == self.text


def nested(depth: int) -> Raw:
    """Objects in lists in objects."""
    return Raw(f"{depth} deep", '[{"d":' * (depth // 2) + "1" + "}]" * (depth // 2))


numbers = st.one_of(
    st.integers(),
    st.sampled_from([0, -1, 2**31, 2**53, 2**63, 2**64, -(2**63), 10**100]),
    st.sampled_from([Raw(f"{size} digits", "9" * size) for size in (4300, 4301, 6000)]),
    st.sampled_from([Raw(text, text) for text in ("NaN", "-Infinity", "1e400", "-0", "1E-9999", "01", "0x1")]),
    st.floats(allow_nan=False, allow_infinity=False),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, texts)
values = st.one_of(
    st.recursive(
        scalars,
        lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
        max_leaves=8,
    ),
    st.sampled_from([50, 180, 190, 199, 220, 500, 900, 20_000]).map(nested),
)
client_infos = st.one_of(
    st.fixed_dictionaries({"name": scalars, "version": scalars}),
    values,
)
metas = st.one_of(
    st.dictionaries(st.one_of(st.sampled_from(META_KEYS), texts), st.one_of(client_infos, values), max_size=5),
    values,
)
ids = st.one_of(scalars, values)


@st.composite
def params(draw: st.DrawFn) -> Any:
    """Parameters of the right shape with anything in them, or anything."""
    if draw(st.integers(0, 9)) == 0:
        return draw(values)
    made: dict[str, Any] = {}
    for name, strategy in (
        ("name", st.one_of(st.just("add"), scalars)),
        ("arguments", values),
        ("_meta", metas),
        ("clientInfo", client_infos),
        ("protocolVersion", st.one_of(st.just("2025-11-25"), scalars)),
        ("requestId", ids),
        ("uri", texts),
    ):
        if draw(st.booleans()):
            made[name] = draw(strategy)
    return made


@st.composite
def messages(draw: st.DrawFn) -> Any:
    """One JSON-RPC message, more or less."""
    message: dict[str, Any] = {"jsonrpc": draw(st.sampled_from(["2.0"] * 6 + ["1.0", 2, None]))}
    if draw(st.integers(0, 9)):
        message["id"] = draw(st.one_of(st.just(1), ids))
    if draw(st.integers(0, 9)):
        message["method"] = draw(st.one_of(st.sampled_from(KNOWN_METHODS), scalars))
    if draw(st.integers(0, 9)):
        message["params"] = draw(params())
    if draw(st.integers(0, 9)) == 0:
        message[draw(st.sampled_from(["result", "error"]))] = draw(values)
    return message


def encoded(value: Any, *, ascii_only: bool = True) -> bytes:
    """JSON as a careless peer writes it: NaN, half surrogate pairs and numbers of any length."""
    return _dumps(value, ascii_only).encode("utf-8", "surrogatepass")


def _dumps(value: Any, ascii_only: bool) -> str:
    if isinstance(value, Raw):
        return value.text
    if isinstance(value, dict):
        return (
            "{" + ",".join(f"{_dumps(key, ascii_only)}:{_dumps(item, ascii_only)}" for key, item in value.items()) + "}"
        )
    if isinstance(value, list):
        return "[" + ",".join(_dumps(item, ascii_only) for item in value) + "]"
    return json.dumps(value, ensure_ascii=ascii_only)


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """A request body: one message, a batch, a message that has been damaged, or noise."""
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return draw(st.binary(max_size=60))
    if kind == 1:
        return encoded(draw(st.lists(st.one_of(messages(), values), max_size=5)))
    body = encoded(draw(messages()), ascii_only=draw(st.booleans()))
    if kind == 2:
        return b"\xef\xbb\xbf" + body
    if kind == 3:
        at = draw(st.integers(0, len(body)))
        return body[:at] + draw(st.binary(max_size=4)) + body[at:]
    if kind == 4:
        return body.replace(b'"id"', b'"method":"tools/list","id":7,"id"', 1)
    return body


@st.composite
def cut(draw: st.DrawFn, whole: bytes) -> list[bytes]:
    """The same bytes in pieces, empty ones among them."""
    places = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    return [whole[start:end] for start, end in zip([0, *places], [*places, len(whole)], strict=True)]


header_values = st.one_of(
    st.sampled_from(NASTY).map(lambda text: text.encode("utf-8", "surrogatepass")), st.binary(max_size=30)
)
tokens = st.sampled_from([
    b"Bearer e30.e30.e30", b"Bearer a.b.c", b"Bearer e30.eyJzdWIiOiJhIn0.x", b"Basic Og==", b"bearer", b"\xff",
    b"Bearer e30.eyJzdWIiOiJhIiwiaXNzIjp7fX0.x", b"Bearer e30." + b"W" * 4000 + b".x",
])  # fmt: skip
HEADERS = (
    b"mcp-session-id", b"mcp-protocol-version", b"mcp-method", b"mcp-name", b"x-session-id", b"user-agent",
    b"baggage", b"traceparent", b"tracestate", b"cookie", b"x-forwarded-for", b"forwarded", b"via", b"x-real-ip",
    b"x-api-key", b"origin", b"accept", b"content-type", b"content-length", b"last-event-id", b"host", b"expect",
    b"x-claude-code-session-id", b"mcp-client-session-id", b"mcp-param-secret",
)  # fmt: skip


@st.composite
def request_headers(draw: st.DrawFn) -> list[tuple[bytes, bytes]]:
    """Headers of a request that may be MCP; repeated, foreign and malformed ones among them."""
    given = [(b"content-type", b"application/json"), (b"accept", b"application/json, text/event-stream")]
    if draw(st.booleans()):
        given.append((b"mcp-protocol-version", draw(st.sampled_from([b"2025-11-25", b"2026-07-28", b"2025-03-26"]))))
    if draw(st.booleans()):
        given.append((b"mcp-session-id", draw(st.one_of(st.just(b"known"), header_values))))
    if draw(st.integers(0, 2)) == 0:
        given.append((b"authorization", draw(st.one_of(tokens, header_values))))
    more = st.lists(st.tuples(st.sampled_from(HEADERS), header_values), max_size=4)
    return [*given, *draw(more)]


@st.composite
def replies(draw: st.DrawFn) -> Any:
    """What a server may answer, whatever it was asked."""
    reply: dict[str, Any] = {"jsonrpc": "2.0", "id": draw(st.one_of(st.just(1), ids))}
    kind = draw(st.integers(0, 4))
    if kind == 0:
        reply["error"] = draw(st.one_of(st.fixed_dictionaries({"code": scalars, "message": texts}), values))
    elif kind == 1:
        reply["result"] = draw(values)
    elif kind == 2:
        reply["result"] = {"isError": draw(scalars), "content": draw(values)}
    elif kind == 3:
        reply["result"] = {"protocolVersion": draw(scalars), "tools": draw(values)}
    else:
        reply["result"] = {"tools": draw(st.lists(st.fixed_dictionaries({"name": scalars}), max_size=3))}
    return reply


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """An event stream, well made or not."""
    ends = draw(st.sampled_from([b"\n", b"\r\n", b"\r"]))
    parts: list[bytes] = []
    for _ in range(draw(st.integers(0, 5))):
        kind = draw(st.integers(0, 4))
        if kind == 0:
            parts.append(draw(st.binary(max_size=30)))
        elif kind == 1:
            parts.append(b": comment" + ends + ends)
        elif kind == 2:
            parts.append(b"event: endpoint" + ends + b"data: /m?session_id=" + draw(header_values) + ends + ends)
        else:
            data = encoded(draw(st.one_of(replies(), messages(), st.lists(replies(), max_size=3))))
            parts.append(draw(st.sampled_from([b"", b"event: message" + ends])) + b"data: " + data + ends + ends)
    return b"".join(parts)
