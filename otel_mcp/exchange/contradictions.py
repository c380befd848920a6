"""The body says what a message is; a header that says otherwise is counted and not believed.

Headers repeat parts of the body for proxies, since the revision of 2026-07-28,
whose servers refuse a request where the two differ. Earlier ones ignore them.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from otel_mcp.identity.resolver import Resolver
from otel_mcp.model.call import MODERN, Call, Exchange
from otel_mcp.wire import headers as wire_headers
from otel_mcp.wire.jsonrpc import META_NAMESPACE, text

_VERSION_META: Final = f"{META_NAMESPACE}protocolVersion"
_COMPARED: Final = (wire_headers.METHOD, wire_headers.NAME)
_ENCODED: Final = b"=?"
"""Begins a header whose value is not as it stands."""


class Contradictions:
    """Compares what was read of a message with the headers of its request."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver
        self.counts: Counter[str] = Counter({
            name.decode(): 0 for name in (*_COMPARED, wire_headers.PROTOCOL_VERSION)
        })  # fmt: skip
        """Headers that were not believed, by their names."""

    def compare(self, exchange: Exchange, call: Call) -> None:
        """Take up a message of the body: learn its revision, and count the headers that say otherwise."""
        self._learn_revision(exchange, call)
        headers = exchange.headers
        for name, said in zip(_COMPARED, (call.method, call.target), strict=True):
            value = headers.get(name)
            if value is None or said is None or value.startswith(_ENCODED) or not said.isascii():
                continue
            if value[:256].decode("latin-1") != said:
                self.counts[name.decode()] += 1

    def _learn_revision(self, exchange: Exchange, call: Call) -> None:
        version, initial = exchange.protocol_version, call.method == "initialize"
        if version is not None and version < MODERN:
            return
        if version is None:
            said = call.params.get("protocolVersion") if initial else call.meta.get(_VERSION_META)
            version = text(said, 32) if isinstance(said, str) else None
        elif initial or self._is_of_session(exchange, call):
            self.counts[wire_headers.PROTOCOL_VERSION.decode()] += 1
            version = None
        # A client may ask for anything: it is of the old world until the server has agreed to something else.
        exchange.protocol_version = None if initial and version is not None and version >= MODERN else version

    def _is_of_session(self, exchange: Exchange, call: Call) -> bool:
        """Whether a message has nothing of a revision without sessions, and names a session that there is."""
        if exchange.transport_id is None or any(key.startswith(META_NAMESPACE) for key in call.meta):
            return False
        return self._resolver.is_begun(exchange.transport_id)
