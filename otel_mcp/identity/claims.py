"""Make the claim of a request: by which source it identifies which session.

Without I/O: reads one request and creates no session; `lookup` finds the session of a claim.
"""

from __future__ import annotations

import re
from http.cookies import CookieError, SimpleCookie
from typing import Any, Final

from otel_mcp.hashing import NAMED, OURS, KeyedHashes, minted_at
from otel_mcp.identity.hosts import conversation, from_baggage, host_keys
from otel_mcp.identity.principal import CREDENTIALS, caller, own_id
from otel_mcp.model.call import CLIENT_INFO, MODERN, Call, Exchange, client_info
from otel_mcp.model.session import Claim, Principal
from otel_mcp.settings import Settings
from otel_mcp.wire import headers as wire_headers

_HOST_HEADERS: Final = (b"x-claude-code-session-id", b"x-hermes-session-id", b"mcp-client-session-id")
_FRESH: Final = 30.0
"""Seconds for which the store may not have an id of ours: another replica still has to write it."""
_MAX_KNOWN: Final = 1024
_MAX_KEY: Final = 8192
"""Characters of a cache key."""


class Claims:
    """Makes the claims of requests, and caches them, since requests of a client are alike."""

    def __init__(self, settings: Settings, hashes: KeyedHashes) -> None:
        self._settings = settings
        self._hashes = hashes
        self._fresh = _FRESH + settings.flush_interval
        self._host_keys = host_keys(settings)
        self._host_headers = (*_HOST_HEADERS, *(name.encode("latin-1") for name in settings.session_headers))
        self._meta = frozenset({"baggage", *(entry.key for entry in self._host_keys)})
        named = self._meta if "conversation" in settings.session_sources else ()
        keys = b"|".join(re.escape(key.encode()) for key in named) or b"(?!)"
        self.conversations: Final = re.compile(b'"(?:%b)"' % keys)  # Takes linear time, whatever a stranger sends.
        """Finds the keys by which ``_meta`` may name a conversation, in the bytes of a message with one."""
        cookie = (b"cookie",) if "cookie" in settings.session_sources else ()
        self._headers = frozenset({b"baggage", wire_headers.X_SESSION_ID, *self._host_headers, *cookie})
        self._telling = self._headers.union(CREDENTIALS)
        self._cache: dict[tuple[object, ...], Claim | None] = {}
        self._generation = hashes.generation

    def of(self, call: Call) -> Claim | None:
        """Return the claim of the first source that has one; ``None`` = no source has."""
        if self._generation != self._hashes.generation:
            self._cache.clear()
            self._generation = self._hashes.generation
        exchange, meta = call.exchange, call.meta
        headers = exchange.headers
        user = exchange.user if exchange.scope is None else exchange.scope.get("user")
        info: Any = meta.get(CLIENT_INFO) if meta else None
        if exchange.tenant_of is not None:
            call.tenant = exchange.tenant_of(exchange)
        fields = info
        key = (
            exchange.transport_id if (exchange.protocol_version or "") < MODERN else None,
            exchange.client,
            (fields.get("name"), fields.get("version")) if isinstance(info, dict) else None,
            exchange.client_is_shared,
            headers.get(b"user-agent"),
            call.tenant,
            # Most requests need neither of these.
            None
            if user is None and headers.keys().isdisjoint(self._telling) and call.method != "initialize"
            else self._slow_headers(call),
            None if not meta or meta.keys().isdisjoint(self._meta) else self._slow_meta(call),
        )
        try:
            return self._cache[key]
        except KeyError:
            return self._slow_of(call, key)
        except TypeError:  # A value in `_meta` is not hashable.
            return self.read(call)

    def _slow_of(self, call: Call, key: tuple[object, ...]) -> Claim | None:
        found = self.read(call)
        if len(self._cache) >= _MAX_KNOWN:
            self._cache.clear()
        if len(repr(key)) <= _MAX_KEY:
            self._cache[key] = found
        return found

    def _slow_headers(self, call: Call) -> tuple[object, ...]:
        headers = call.exchange.headers
        return (
            call.method == "initialize" and client_info(call),
            caller(call.exchange, self._hashes),
            None if headers.keys().isdisjoint(self._headers) else tuple(map(headers.get, self._headers)),
        )

    def _slow_meta(self, call: Call) -> tuple[object, ...]:
        """Return the conversation ids in ``_meta``, and the name of the client that opened the transport session."""
        session = call.exchange.transport_session
        return session.facts.client_name if session is not None else None, tuple(map(call.meta.get, self._meta))

    def read(self, call: Call) -> Claim | None:
        """Make the claim of a call, without the cache."""
        exchange = call.exchange
        who, named = caller(exchange, self._hashes), self._conversation(call)
        for source in self._settings.session_sources:
            claim: Claim | None = None
            if source == "conversation" and named is not None:
                claim = self._derived("conversation", *named)
            elif source == "header":
                claim = self._header(exchange, who)
            elif source == "cookie":
                claim = self._cookie(exchange)
            elif source == "inferred" and call.method != "initialize":
                # The answer to `initialize` brings an id, so nothing is inferred for it.
                key = self.visitor(call, who)
                claim = None if key is None else Claim("inferred" if who.digest else "inferred_weak", key)
            if claim is not None:
                claim.principal, claim.conversation_id = who, named[1] if named else None
                return claim
        return None

    def _conversation(self, call: Call) -> tuple[str, str] | None:
        exchange = call.exchange
        if call.meta:
            name = client_info(call)[0]
            if name is None and exchange.transport_session is not None:
                name = exchange.transport_session.facts.client_name
            client = f"{name or ''} {wire_headers.text(exchange.headers, b'user-agent') or ''}".lower()
            if found := conversation(call.meta, self._host_keys, client):
                return found
            if isinstance(baggage := call.meta.get("baggage"), str) and (found := from_baggage(baggage)):
                return found
        header = exchange.headers.get(b"baggage")
        return from_baggage(header.decode("latin-1")) if header else None

    def _header(self, exchange: Exchange, who: Principal) -> Claim | None:
        if exchange.transport_id and not exchange.modern:
            return self._named(exchange.transport_id, who, transport=True)
        if value := exchange.headers.get(wire_headers.X_SESSION_ID):
            # We send this header, so a client may return our session id in it.
            return self._named(value.decode("latin-1"), who)
        for name in self._host_headers:
            if value := exchange.headers.get(name):
                # A client chose the value, perhaps the same for several servers, so hash it.
                return self._derived("header", name.decode(), value.decode("latin-1"))
        return None

    def _named(self, session_id: str, who: Principal, *, transport: bool = False) -> Claim:
        """Make the claim to an id; if it is another user's, the caller gets a separate session."""
        hashes = self._hashes
        key = hashes.storable(session_id, hashed=transport and self._settings.session_id == "hashed")
        whose = hashes.whose(session_id, who.user)
        if whose == "another":
            return Claim("header", own_id(hashes, key, who.digest), derived=True, whose=whose)
        claim = Claim("header", key, transport, whose=whose)
        if key.startswith(OURS):
            claim.forged = hashes.is_agreed and not hashes.is_ours(key)
            claim.fresh_until = minted_at(key) + self._fresh
        return claim

    def _derived(self, source: str, *names: str) -> Claim:
        key = self._hashes.digest(source, self._settings.service_name, *names)
        return Claim(source, f"{NAMED}{key}", derived=True)

    def _cookie(self, exchange: Exchange) -> Claim | None:
        try:
            cookies: SimpleCookie = SimpleCookie(exchange.headers.get(b"cookie", b"").decode("latin-1"))
        except CookieError:
            return None
        morsel = cookies.get(self._settings.session_cookie)
        return self._derived("cookie", morsel.value) if morsel is not None and morsel.value else None

    def visitor(self, call: Call, who: Principal) -> str | None:
        """Return a keyed hash of the client: caller, address, user agent, name, version and tenant.

        ``None`` = neither the caller nor an unshared address is known.
        """
        exchange = call.exchange
        address = "" if exchange.client_is_shared else exchange.client or ""
        if not who.digest and not address:
            return None
        name, version = client_info(call)
        agent = wire_headers.text(exchange.headers, b"user-agent") or ""
        parts = (self._settings.service_name, who.digest, address, agent, name or "", version or "")
        if call.tenant is None and exchange.tenant_of is not None:
            call.tenant = exchange.tenant_of(exchange)
        return self._hashes.digest("client", *parts, *((call.tenant,) if call.tenant is not None else ()))
