"""Turn the body of a request into calls, or its headers if the body is too large.

Since 2026-07-28, headers repeat parts of the body for proxies, and servers refuse a
request whose headers differ from its body. We use the body, and count headers that differ.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from otel_mcp.bounded import Paths
from otel_mcp.exchange.inflight import InFlight
from otel_mcp.identity.address import Clients
from otel_mcp.identity.resolver import Resolver
from otel_mcp.model.call import MODERN, Call, Exchange, Reading
from otel_mcp.settings import Settings
from otel_mcp.wire import headers as wire_headers
from otel_mcp.wire.jsonrpc import (
    KNOWN_METHODS,
    MAX_TEXT,
    META_NAMESPACE,
    PLAIN_IDS,
    JsonId,
    Message,
    is_mcp,
    parse_head,
    parse_messages,
    parts,
    text,
)

MAX_BODY: Final = 1024 * 1024
"""Bytes. A larger request body is not parsed: its beginning, its headers or the SDK say which call it is."""
_MAX_HEAD: Final = 64 * 1024
"""Bytes that are read of the beginning of a larger body."""
_VERSION_META: Final = f"{META_NAMESPACE}protocolVersion"
_COMPARED: Final = (wire_headers.METHOD, wire_headers.NAME)
_NOTHING: Final[dict[str, Any]] = {}
_ENCODED: Final = b"=?"
"""Prefix of a header whose value is encoded."""


class Requests:
    """Turns the requests of this process into calls."""

    def __init__(self, settings: Settings, resolver: Resolver, inflight: InFlight) -> None:
        self._resolver = resolver
        self._inflight = inflight
        self.clients = Clients(settings.trusted_proxies, settings.proxy_header)
        self.contradicted: Counter[str] = Counter({
            name.decode(): 0 for name in (*_COMPARED, wire_headers.PROTOCOL_VERSION)
        })  # fmt: skip
        """Number of headers that differed from the body, by name."""
        self._bare: Paths[bool] = Paths()
        """Paths where no patched SDK reports calls: the HTTP app itself is the handler."""

    def feed(self, exchange: Exchange, held: bytearray | None, body: bytes, *, more: bool) -> bytearray | None:
        """Read a chunk of the request body; `held` has the chunks before it. Returns what to hold for the next one."""
        exchange.body_size += len(body)
        if exchange.body_size > MAX_BODY:
            exchange.parsed = True
            if exchange.http_method == "POST":
                head = held[:_MAX_HEAD] if held is not None else b""
                self._too_large(exchange, head + body[: _MAX_HEAD - len(head)])
            return None
        if more or held is not None:
            held = bytearray() if held is None else held
            held += body
            if more:
                return held
        exchange.parsed = True
        if exchange.http_method == "POST":
            whole = bytes(body) if held is None else held  # Some servers pass a memoryview.
            if exchange.transport_id in self._inflight.outgoing.waiting:
                self._inflight.outgoing.read(exchange, whole)
            if exchange.at_sdk and exchange.confirmed and whole[:1] == b"{":
                exchange.unparsed_body = whole  # The SDK parses it anyway, and reports the message.
            else:
                self._parse(exchange, whole)
                exchange.foreign = not exchange.confirmed and exchange.transport_id is None
        return None

    def read(self, exchange: Exchange) -> None:
        """Parse the body that was left to the SDK, if it is still unparsed."""
        body, exchange.unparsed_body = exchange.unparsed_body, None
        if body is not None:
            self._parse(exchange, body)

    def call_of(
        self, exchange: Exchange, request_id: JsonId | None, method: str, params: Mapping[str, Any] | None
    ) -> Call | None:
        """Find the call of a message that an SDK passes to its handler.

        Returns:
            ``None`` for a message that was not in the request: the SDK 2.x lists tools
            by itself, under the id of the call that it is about to serve.
        """
        params = params or {}
        target: Any = params.get("name")
        meta: Any = params.get("_meta", _NOTHING)
        is_plain = method == "tools/call" and type(target) is str and len(target) <= MAX_TEXT and target.isascii()
        is_plain = is_plain and type(params.get("_meta", _NOTHING)) is dict
        if not is_plain or type(request_id) is not int or request_id not in PLAIN_IDS:
            request_id, target, meta = parts(method, request_id, params)
            if method not in KNOWN_METHODS:  # From a stranger: clean it for export.
                method = text(method)
        if not exchange.calls:
            named = exchange.headers.get(wire_headers.METHOD)
            if named is not None and named != method.encode():
                if exchange.modern and exchange.at_sdk:
                    return None  # The SDK checks that header and body agree.
                self.read(exchange)
        if exchange.calls:
            return self._slow_call_of(exchange, Call(exchange, method, request_id, target, params, meta))
        # The SDK has read the body: it contains only this message.
        exchange.unparsed_body = None
        call = Call(exchange, method, request_id, target, params, meta)
        exchange.calls.append(call)
        self._inflight.begin(exchange, call)
        return call

    def _slow_call_of(self, exchange: Exchange, message: Call) -> Call | None:
        call = exchange.calls[0]
        if not call.id_unknown:
            return exchange.find(message.id, message.method)
        if call.method != message.method:
            return None
        # The body was too large for us to parse.
        call.id, call.id_unknown, call.target = message.id, False, message.target or call.target
        if message.params:
            call.params, call.meta = message.params, message.meta
        return call

    def _too_large(self, exchange: Exchange, head: bytes | bytearray) -> None:
        """Recognise the call of a body over `MAX_BODY` by its beginning, or by its headers (since 2026-07-28)."""
        message = parse_head(head)
        if message is None and exchange.modern and (method := wire_headers.text(exchange.headers, wire_headers.METHOD)):
            message = Message(method, None, {"name": wire_headers.text(exchange.headers, wire_headers.NAME)})
        if message is None or message.method.startswith("notifications/"):
            return
        exchange.confirmed = exchange.confirmed or is_mcp(message)
        if exchange.confirmed:
            message.id = "" if message.id is None else message.id
            self._begin(exchange, message, id_unknown=True)

    def _parse(self, exchange: Exchange, body: bytes | bytearray) -> None:
        if not exchange.confirmed and b'"jsonrpc"' not in bytes(body):
            return
        try:
            messages = parse_messages(body) if body else []
        except ValueError:
            return  # Not JSON: the server will refuse it.
        exchange.confirmed = exchange.confirmed or any(map(is_mcp, messages))
        if exchange.confirmed:
            for message in messages:
                self._inflight.handed_over.add(self._begin(exchange, message))

    def _begin(self, exchange: Exchange, message: Message, *, id_unknown: bool = False) -> Call:
        call = exchange.add(message)
        call.id_unknown = id_unknown
        self._learn_revision(exchange, call)
        for name, value in zip(_COMPARED, (call.method, call.target), strict=True):
            repeated = exchange.headers.get(name)
            if repeated is None or value is None or repeated.startswith(_ENCODED) or not value.isascii():
                continue
            if repeated[:256].decode("latin-1") != value:
                self.contradicted[name.decode()] += 1
        self._inflight.begin(exchange, call)
        return call

    def _learn_revision(self, exchange: Exchange, call: Call) -> None:
        version, initial = exchange.protocol_version, call.method == "initialize"
        if version is not None and version < MODERN:
            return
        if version is None:
            asked = call.params.get("protocolVersion") if initial else call.meta.get(_VERSION_META)
            version = text(asked, 32) if isinstance(asked, str) else None
        elif initial or (
            # Names a session that exists, and has no field of a revision without sessions.
            exchange.transport_id is not None
            and not any(key.startswith(META_NAMESPACE) for key in call.meta)
            and self._resolver.is_begun(exchange.transport_id)
        ):
            self.contradicted[wire_headers.PROTOCOL_VERSION.decode()] += 1
            version = None
        # A client may ask `initialize` for any revision; a modern one counts only once the server has agreed.
        exchange.protocol_version = None if initial and version is not None and version >= MODERN else version

    def is_bare(self, exchange: Exchange) -> bool:
        """Return whether no patched SDK will report the calls of this exchange."""
        if exchange.at_sdk or not exchange.confirmed or self._inflight.handed_over.paths.use(exchange.path):
            return False
        if exchange.routed:
            return True
        return self._bare.use(exchange.path) is True and exchange.transport_id == exchange.wire_session_id

    def learn_bare(self, exchange: Exchange) -> None:
        """Learn at the end of a request that its app is bare: it answered calls that no patched SDK reported."""
        if exchange.status is None or not 200 <= exchange.status < 300:
            return
        # A 200 that cannot be read is an answer too; a 202 only promises one.
        unread = exchange.status == 200 and exchange.reading is Reading.NOTHING
        if any(call.id is not None and not call.dispatched and (call.finished or unread) for call in exchange.calls):
            self._bare.learn(exchange.path, True)
