"""What a request asks for: the messages of its body, or what its headers say of one that is too large to be read.

The body says what a message is. Headers repeat parts of it for proxies, since the
revision of 2026-07-28, whose servers refuse a request where the two differ; one
that differs is counted and not believed.
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
"""Bytes of a request body that are read; of a larger one its headers or the dispatch seam tell."""
_MAX_HEAD: Final = 64 * 1024
"""Bytes that are read of a larger body."""
_VERSION_META: Final = f"{META_NAMESPACE}protocolVersion"
_COMPARED: Final = (wire_headers.METHOD, wire_headers.NAME)
_NOTHING: Final[dict[str, Any]] = {}
_ENCODED: Final = b"=?"
"""Begins a header whose value is not as it stands."""


class Requests:
    """Turns the requests of this process into calls."""

    def __init__(self, settings: Settings, resolver: Resolver, inflight: InFlight) -> None:
        self._resolver = resolver
        self._inflight = inflight
        self.clients = Clients(settings.trusted_proxies, settings.proxy_header)
        self.contradicted: Counter[str] = Counter({
            name.decode(): 0 for name in (*_COMPARED, wire_headers.PROTOCOL_VERSION)
        })  # fmt: skip
        """Headers that were not believed, by their names."""
        self._bare: Paths[bool] = Paths()
        """Paths of apps that no seam reaches: the HTTP app itself is the handler."""

    def feed(self, exchange: Exchange, held: bytearray | None, body: bytes, *, more: bool) -> bytearray | None:
        """Read a piece of the request body that has been handed to the app, after those that are held; returns both."""
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
            whole = bytes(body) if held is None else held  # Some servers pass a memoryview on.
            if exchange.transport_id in self._inflight.outgoing.waiting:
                self._inflight.outgoing.read(exchange, whole)
            if exchange.at_sdk and exchange.confirmed and whole[:1] == b"{":
                exchange.unparsed_body = whole  # The SDK parses it anyway, and the dispatch seam tells.
            else:
                self._parse(exchange, whole)
                exchange.foreign = not exchange.confirmed and exchange.transport_id is None
        return None

    def read(self, exchange: Exchange) -> None:
        """Parse the request body after all."""
        body, exchange.unparsed_body = exchange.unparsed_body, None
        if body is not None:
            self._parse(exchange, body)

    def call_of(
        self, exchange: Exchange, request_id: JsonId | None, method: str, params: Mapping[str, Any] | None
    ) -> Call | None:
        """Find the call of the message that an SDK hands to its handler.

        Returns:
            ``None`` for a message that never was on the wire: the SDK of 2026-07-28 lists
            tools by itself, under the id of the call that it is about to serve.
        """
        params = params or {}
        target: Any = params.get("name")
        meta: Any = params.get("_meta", _NOTHING)
        is_plain = method == "tools/call" and type(target) is str and len(target) <= MAX_TEXT and target.isascii()
        is_plain = is_plain and type(params.get("_meta", _NOTHING)) is dict
        if not is_plain or type(request_id) is not int or request_id not in PLAIN_IDS:
            request_id, target, meta = parts(method, request_id, params)
            if method not in KNOWN_METHODS:  # A stranger's: only what can be exported of it.
                method = text(method)
        if not exchange.calls:
            named = exchange.headers.get(wire_headers.METHOD)
            if named is not None and named != method.encode():
                if exchange.modern and exchange.at_sdk:
                    return None  # The SDK has compared the header with the body.
                self.read(exchange)
        if exchange.calls:
            return self._slow_call_of(exchange, Call(exchange, method, request_id, target, params, meta))
        # The SDK has read the body, which holds this one message.
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
        # The body was too large to be read on its way.
        call.id, call.id_unknown, call.target = message.id, False, message.target or call.target
        if message.params:
            call.params, call.meta = message.params, message.meta
        return call

    def _too_large(self, exchange: Exchange, head: bytes | bytearray) -> None:
        """Recognise a body beyond the bound by its beginning, or else by its headers, where the revision has them."""
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
            return  # Not JSON: the server will say so, and there is no message to speak of.
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
        elif initial or self._is_of_session(exchange, call):
            self.contradicted[wire_headers.PROTOCOL_VERSION.decode()] += 1
            version = None
        # A client may ask for anything: it is of the old world until the server has agreed to something else.
        exchange.protocol_version = None if initial and version is not None and version >= MODERN else version

    def _is_of_session(self, exchange: Exchange, call: Call) -> bool:
        """Return whether a message has nothing of a revision without sessions, and names a session that there is."""
        if exchange.transport_id is None or any(key.startswith(META_NAMESPACE) for key in call.meta):
            return False
        return self._resolver.is_begun(exchange.transport_id)

    def is_bare(self, exchange: Exchange) -> bool:
        """Return whether nobody but us will open a span for the calls of this exchange."""
        if exchange.at_sdk or not exchange.confirmed or self._inflight.handed_over.paths.use(exchange.path):
            return False
        if exchange.routed:
            return True
        return self._bare.use(exchange.path) is True and exchange.transport_id == exchange.wire_session_id

    def learn_bare(self, exchange: Exchange) -> None:
        """Note, at the end of a request, that its app itself is the handler: no seam has seen the calls answered."""
        if exchange.status is None or not 200 <= exchange.status < 300:
            return
        # What cannot be read is an answer as well, unless it only says that one will come.
        unread = exchange.status == 200 and exchange.reading is Reading.NOTHING
        if any(call.id is not None and not call.dispatched and (call.finished or unread) for call in exchange.calls):
            self._bare.learn(exchange.path, True)
