"""Identify the caller of a request, by the user that the app authenticated or else by its credential; read its tenant.

The result groups sessions and binds them to users; it never grants access. Only keyed hashes of callers leave this
module, and names of tenants if a setting asks for them. A session belongs to the user who began it: with another user,
the same id is another session. A token that names no user binds nothing, because it may be rotated.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, cast
from uuid import UUID

from pydantic_core import from_json

from otel_mcp import semconv
from otel_mcp.hashing import KeyedHashes
from otel_mcp.model.call import Exchange
from otel_mcp.model.delta import SessionFacts
from otel_mcp.model.session import NOBODY, Principal
from otel_mcp.semconv import OTHER
from otel_mcp.wire.headers import HeaderMap
from otel_mcp.wire.jsonrpc import text

CREDENTIALS: Final = (b"authorization", b"x-api-key", b"api-key")
_MAX_JWT: Final = 16_384
_MAX_CLAIM: Final = 128
_NAMES: Final = ("identity", "username", "display_name")
"""Attributes that name an authenticated user, the most reliable first."""
LONGEST_TENANT: Final = 64
"""Characters; a longer name is ``_OTHER``, since cutting could make two names equal."""
_OF_TOKENS: Final = {"sub": "subject", "client_id": "client_id"}
"""Claims that are attributes of the SDK's access tokens, even of those without `claims`."""

TenantOf = Callable[[Exchange], str | None]


def caller(exchange: Exchange, hashes: KeyedHashes) -> Principal:
    """Return the caller of a request, as authenticated so far."""
    user, known = exchange.see_user(), exchange.caller
    if known is not None and known[0] is user and known[1] == hashes.generation:
        return known[2]
    found = principal(user, exchange.headers, hashes)
    exchange.caller = user, hashes.generation, found
    return found


def principal(user: object, headers: HeaderMap, hashes: KeyedHashes) -> Principal:
    """Return the caller by the app's `user`, or else by a credential in the headers."""
    if user is not None and (authenticated := _by_token(user) or _by_name(user)) is not None:
        return as_user("user", *authenticated, hashes=hashes)
    for name in CREDENTIALS:
        if credential := headers.get(name):
            if (claims := _claims(credential)) is not None:
                return as_user("jwt", *claims, hashes=hashes)
            return Principal(hashes.digest("credential", credential.decode("latin-1")))
    return NOBODY


def on_record(exchange: Exchange, service: str, *, hashes: KeyedHashes, way: str) -> dict[str, str]:
    """Return the caller's attribute for the audit record of a finished request.

    `way` is the setting `AUDIT_CALLER`. If no verified token has the claim that it names, the hash is used. Empty = the
    caller is unknown, or not to be shown.
    """
    if way == "none":
        return {}
    user, known = exchange.see_user(), exchange.caller
    claim = token_claim(user, way.removeprefix("claim:")) if way != "hash" else None
    if isinstance(claim, (str, int)) and claim != "":
        return {semconv.ENDUSER_ID: text(str(claim), _MAX_CLAIM)}
    # Use the cached caller, even of an earlier key: the request may have ended, and its headers are gone.
    who = known[2] if known is not None and known[0] is user else caller(exchange, hashes)
    return {semconv.ENDUSER_PSEUDO_ID: audited(hashes, service, who.digest)} if who.digest else {}


def audited(hashes: KeyedHashes, service: str, digest: str) -> str:
    """Return the hash of a caller on the audit records of one service."""
    return hashes.digest("audit", service, digest)


def as_user(*names: str, hashes: KeyedHashes) -> Principal:
    """Return the principal of a user; the first name says how the others are known."""
    digest = hashes.digest(*names)
    return Principal(digest, digest)


def is_foreign(facts: SessionFacts, principal: Principal) -> bool:
    """Return whether the session is bound to another user."""
    return facts.principal is not None and facts.principal != principal.user


def own_id(hashes: KeyedHashes, session_id: str, caller: str) -> str:
    """Return the id of the separate session that a caller gets instead of another user's session."""
    return f"p_{hashes.digest('bound', session_id, caller)}"


def _by_token(user: object) -> tuple[str, ...] | None:
    """Return client, issuer and subject of a token that a middleware of the SDK or of FastMCP has verified."""
    token: object = getattr(user, "access_token", None)
    if token is None:
        return None
    client = getattr(token, "client_id", None)
    found: object = getattr(token, "claims", None)
    claims: Mapping[str, object] = cast(Mapping[str, object], found) if isinstance(found, Mapping) else {}
    if (subject := getattr(token, "subject", None)) is None:
        subject = claims.get("sub")
    return (str(client), str(claims.get("iss")), str(subject)) if client or subject else None


def _by_name(user: object) -> tuple[str, ...] | None:
    """Return the name of an authenticated user of Starlette or Django."""
    if _attribute(user, "is_authenticated") is not True:
        return None
    for attribute in _NAMES:
        name = _attribute(user, attribute)
        if isinstance(name, (str, int, UUID)) and str(name):
            return ("name", str(name))
    return None


def _attribute(user: object, name: str) -> object:
    """Read an attribute of a user, which may raise: Starlette's raise ``NotImplementedError``."""
    try:
        return getattr(user, name, None)
    except Exception:
        return None


def _claims(credential: bytes) -> tuple[str, str] | None:
    """Read issuer and subject of a JWT without verifying it: enough to group by, and for nothing else."""
    scheme, _, token = credential.partition(b" ")
    parts = token.strip().split(b".")
    if scheme.lower() != b"bearer" or len(parts) != 3 or len(token) > _MAX_JWT:
        return None
    try:
        payload: object = from_json(urlsafe_b64decode(parts[1] + b"=" * (-len(parts[1]) % 4)))
    except ValueError:
        return None
    if not isinstance(payload, dict):
        return None
    claims = cast(dict[str, object], payload)
    subject = claims.get("sub")
    return (str(claims.get("iss", "")), subject) if isinstance(subject, str) and subject else None


def tenant_reader(source: str | None) -> TenantOf | None:
    """Make the function that reads the tenant of a request from ``claim:NAME``, ``header:NAME`` or ``path:N``.

    Returns:
        ``None`` = no tenants are configured.
    """
    kind, _, name = (source or "").partition(":")
    if kind == "claim":
        return partial(_of_token, name)
    if kind == "header":
        return partial(_of_header, name.encode("latin-1"))
    return partial(_of_path, int(name)) if kind == "path" else None


def token_claim(user: object, name: str) -> object:
    """Return a claim of the token with which the app authenticated a user; ``None`` = there is none.

    `user` is the scope's: with the SDK and FastMCP it has the token, with another middleware it may have the claims
    itself. Unverified tokens are never read.
    """
    try:
        if getattr(user, "is_authenticated", None) is not True:
            return None
        token: object = getattr(user, "access_token", None)
        claims: object = getattr(user if token is None else token, "claims", None)
        if isinstance(claims, Mapping) and name in claims:
            return cast("Mapping[str, object]", claims)[name]
        return getattr(token, _OF_TOKENS[name], None) if name in _OF_TOKENS else None
    except Exception:  # The user's class may raise anything.
        return None


def _of_token(name: str, exchange: Exchange) -> str | None:
    user = exchange.user if exchange.scope is None else exchange.scope.get("user")
    value = token_claim(user, name) if user is not None else None
    return _bounded(str(value)) if isinstance(value, (str, int)) and not isinstance(value, bool) else None


def _of_header(name: bytes, exchange: Exchange) -> str | None:
    value = exchange.headers.get(name)
    return _bounded(value[: LONGEST_TENANT + 1].decode("latin-1")) if value else None


def _of_path(number: int, exchange: Exchange) -> str | None:
    parts = exchange.path.split("/", number + 1)
    return _bounded(parts[number]) if len(parts) > number else None


def _bounded(value: str) -> str | None:
    if not value.strip():
        return None
    return value if len(value) <= LONGEST_TENANT and value.isprintable() else OTHER
