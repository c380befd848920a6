"""The ordered list of sources: which session a request claims to belong to.

Pure: looks at one request, asks nobody, creates nothing. `tracker` turns the
claim into a session.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from http.cookies import CookieError, SimpleCookie
from importlib.metadata import entry_points
from typing import Any, Final

from otel_mcp.guard import guarded
from otel_mcp.hashing import NAMED, KeyedHashes
from otel_mcp.identity.hosts import HOST_KEYS, HostKey, conversation, from_baggage
from otel_mcp.identity.principal import CREDENTIALS, caller, id_for, user_of
from otel_mcp.model.call import CLIENT_INFO, Call, Exchange, client_info
from otel_mcp.model.session import Claim, Principal
from otel_mcp.settings import Settings
from otel_mcp.wire import headers as wire_headers

CONVERSATION_KEYS: Final = "otel_mcp_conversation_keys"
"""Entry point group of further `HostKey` tuples."""
_OUR_HEADER: Final = b"x-session-id"
_MAX_KNOWN: Final = 1024
_MAX_SAID: Final = 8192
"""Characters of what a claim is remembered by."""
_HEADERS: Final = (b"x-claude-code-session-id", b"x-hermes-session-id", b"mcp-client-session-id")


@dataclass(frozen=True, slots=True)
class Rules:
    """Settings in the form that the sources need."""

    settings: Settings
    host_keys: tuple[HostKey, ...]


def rules_from(settings: Settings) -> Rules:
    """Rules of these settings; hosts' keys of the user's come first."""
    keys = [HostKey(key) for key in settings.conversation_keys]
    for entry in entry_points(group=CONVERSATION_KEYS):
        with guarded(f"conversation keys {entry.name}"):
            keys.extend(entry.load())
    return Rules(settings, (*keys, *HOST_KEYS))


class Claims:
    """What requests claim; recent claims are remembered, since a client says the same every time."""

    def __init__(self, rules: Rules, keys: KeyedHashes) -> None:
        self._rules = rules
        self._keys = keys
        self._meta = frozenset({"baggage", *(entry.key for entry in rules.host_keys)})
        self._headers = frozenset({
            b"baggage", _OUR_HEADER, *_further(rules.settings),
            *((b"cookie",) if "cookie" in rules.settings.session_sources else ()),
        })  # fmt: skip
        self._telling = self._headers.union(CREDENTIALS)
        self._known: dict[tuple[object, ...], Claim | None] = {}
        self._generation = keys.generation

    def of(self, exchange: Exchange, call: Call) -> Claim | None:
        """The first source that says something; ``None`` = nothing can be known."""
        if self._generation != self._keys.generation:
            self._known.clear()
            self._generation = self._keys.generation
        headers, meta = exchange.headers, call.meta
        info: Any = meta.get(CLIENT_INFO) if meta else None
        fields = info
        said = (
            exchange.transport_id if exchange.transport_id and not exchange.modern else None,
            exchange.client,
            (fields.get("name"), fields.get("version")) if isinstance(info, dict) else None,
            exchange.client_is_shared,
            headers.get(b"user-agent"),
            # Most requests say no more.
            None
            if exchange.see_user() is None and headers.keys().isdisjoint(self._telling) and call.method != "initialize"
            else self._more(exchange, call),
            self._asides(exchange, call) if meta else None,
        )
        try:
            return self._known[said]
        except KeyError:
            found = claim_of(exchange, call, self._rules, self._keys)
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            if len(repr(said)) <= _MAX_SAID:
                self._known[said] = found
            return found
        except TypeError:  # Something in `_meta` cannot be a key.
            return claim_of(exchange, call, self._rules, self._keys)

    def _more(self, exchange: Exchange, call: Call) -> tuple[object, ...]:
        headers = exchange.headers
        return (
            call.method == "initialize" and client_info(call),
            caller(exchange, self._keys),
            None if headers.keys().isdisjoint(self._headers) else tuple(map(headers.get, self._headers)),
        )

    def _asides(self, exchange: Exchange, call: Call) -> tuple[object, ...] | None:
        """What hosts put into ``_meta``, and whose they are by the transport they come on."""
        if call.meta.keys().isdisjoint(self._meta):
            return None
        session = exchange.transport_session
        return session.facts.client_name if session is not None else None, tuple(map(call.meta.get, self._meta))


def _further(settings: Settings) -> tuple[bytes, ...]:
    return (*_HEADERS, *(name.encode("latin-1") for name in settings.session_headers))


def claim_of(exchange: Exchange, call: Call, rules: Rules, keys: KeyedHashes) -> Claim | None:
    """The first source that says something; ``None`` = nothing can be known."""
    who = caller(exchange, keys)
    said = _conversation(exchange, call, rules)
    conversation_id = said[1] if said else None
    for source in rules.settings.session_sources:
        found: Claim | None = None
        if source == "conversation" and said is not None:
            key = keys.digest("conversation", rules.settings.service_name, *said)
            found = Claim("conversation", f"{NAMED}{key}", derived=True)
        elif source == "header":
            found = _header(exchange, rules, keys, who)
        elif source == "cookie":
            found = _cookie(exchange, rules, keys)
        elif source == "inferred" and call.method != "initialize":
            # The answer to `initialize` brings the id, so nothing is inferred for it.
            found = _inferred(exchange, call, rules, keys, who)
        if found is not None:
            return replace(found, conversation_id=conversation_id, principal=who)
    return None


def _conversation(exchange: Exchange, call: Call, rules: Rules) -> tuple[str, str] | None:
    if call.meta:
        if found := conversation(call.meta, rules.host_keys, _client_text(exchange, call)):
            return found
        if isinstance(said := call.meta.get("baggage"), str) and (found := from_baggage(said)):
            return found
    if header := exchange.headers.get(b"baggage"):
        return from_baggage(header.decode("latin-1"))
    return None


def _client_text(exchange: Exchange, call: Call) -> str:
    agent = wire_headers.text(exchange.headers, b"user-agent") or ""
    name = client_info(call)[0]
    if name is None and exchange.transport_session is not None:
        name = exchange.transport_session.facts.client_name
    return f"{name or ''} {agent}".lower()


def _header(exchange: Exchange, rules: Rules, keys: KeyedHashes, who: Principal | None) -> Claim | None:
    hashed = rules.settings.session_id == "hashed"
    if exchange.transport_id and not exchange.modern:
        key = keys.storable(exchange.transport_id, hashed=hashed)
        return _of(Claim("header", key, transport=True), exchange.transport_id, keys, who)
    if value := exchange.headers.get(_OUR_HEADER):
        # We send this one out ourselves, so a client may bring back the id of a session.
        said = value.decode("latin-1")
        return _of(Claim("header", keys.storable(said, hashed=False)), said, keys, who)
    for name in _further(rules.settings):
        if value := exchange.headers.get(name):
            # A stranger's word, perhaps the same at several servers: never an id of ours as it stands.
            key = keys.digest("header", rules.settings.service_name, name.decode(), value.decode("latin-1"))
            return Claim("header", f"{NAMED}{key}", derived=True)
    return None


def _of(found: Claim, said: str, keys: KeyedHashes, who: Principal | None) -> Claim:
    """The claim to an id, which may say that it is another user's: then it means a session of the caller's own."""
    if (whose := keys.whose(said, user_of(who))) == "another":
        return Claim("header", id_for(keys, found.key, who), derived=True, whose=whose)
    return found if whose is None else replace(found, whose=whose)


def _cookie(exchange: Exchange, rules: Rules, keys: KeyedHashes) -> Claim | None:
    header = exchange.headers.get(b"cookie")
    if header is None:
        return None
    try:
        morsel: Any = SimpleCookie(header.decode("latin-1")).get(rules.settings.session_cookie)
    except CookieError:
        return None
    if morsel is None or not morsel.value:
        return None
    key = keys.digest("cookie", rules.settings.service_name, morsel.value)
    return Claim("cookie", f"{NAMED}{key}", derived=True)


def _inferred(exchange: Exchange, call: Call, rules: Rules, keys: KeyedHashes, who: Principal | None) -> Claim | None:
    address = None if exchange.client_is_shared else exchange.client
    if who is None and address is None:
        return None
    name, version = client_info(call)
    agent = wire_headers.text(exchange.headers, b"user-agent") or ""
    fingerprint = keys.digest(
        "client",
        rules.settings.service_name,
        who.digest if who else "",
        address or "",
        agent,
        name or "",
        version or "",
    )
    return Claim("inferred" if who else "inferred_weak", fingerprint)
