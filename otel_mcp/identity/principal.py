"""Who is calling: the user that the app authenticated, else what the credential says.

Used to group and to bind sessions, never to let anybody in. Only keyed hashes
leave this module.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast
from uuid import UUID

from pydantic_core import from_json

from otel_mcp.hashing import Keys
from otel_mcp.wire.headers import HeaderMap

if TYPE_CHECKING:
    from otel_mcp.model.call import Exchange

CREDENTIALS: Final = (b"authorization", b"x-api-key", b"api-key")
_MAX_JWT: Final = 16_384
_NAMES: Final = ("identity", "username", "display_name")
"""Attributes that name an authenticated user, the most certain one first."""


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller, as a keyed hash."""

    digest: str
    binds: bool
    """It names a user, so a session may be bound to it; a bare token may rotate."""


def caller(exchange: Exchange, keys: Keys) -> Principal | None:
    """The caller of a request, as far as the app has authenticated it by now."""
    user, known = exchange.see_user(), exchange.caller
    if known is not None and known[0] is user and known[1] == keys.generation:
        return known[2]
    found = principal(user, exchange.headers, keys)
    exchange.caller = user, keys.generation, found
    return found


def principal(user: object, headers: HeaderMap, keys: Keys) -> Principal | None:
    """The caller of a request; ``None`` = nobody said who they are."""
    if user is not None and (authenticated := _by_token(user) or _by_name(user)) is not None:
        return Principal(keys.digest("user", *authenticated), binds=True)
    for name in CREDENTIALS:
        if credential := headers.get(name):
            claims = _claims(credential)
            if claims is not None:
                return Principal(keys.digest("jwt", *claims), binds=True)
            return Principal(keys.digest("credential", credential.decode("latin-1")), binds=False)
    return None


def _by_token(user: object) -> tuple[str, ...] | None:
    """Client, issuer and subject, as the middlewares of the SDK and of FastMCP have verified them."""
    token: object = getattr(user, "access_token", None)
    if token is None:
        return None
    client = getattr(token, "client_id", None)
    claims: object = getattr(token, "claims", None)
    issuer = cast(Mapping[str, object], claims).get("iss") if isinstance(claims, Mapping) else None
    subject = getattr(token, "subject", None)
    if subject is None and isinstance(claims, Mapping):
        subject = cast(Mapping[str, object], claims).get("sub")
    return (str(client), str(issuer), str(subject)) if client or subject else None


def _by_name(user: object) -> tuple[str, ...] | None:
    """The name of a user like Starlette's and Django's; nobody where they do not say that it is authenticated."""
    if _said(user, "is_authenticated") is not True:
        return None
    for attribute in _NAMES:
        name = _said(user, attribute)
        if isinstance(name, (str, int, UUID)) and str(name):
            return ("name", str(name))
    return None


def _said(user: object, attribute: str) -> object:
    """An attribute of a user's class, which may raise anything: Starlette's own say ``NotImplementedError``."""
    try:
        return getattr(user, attribute, None)
    except Exception:
        return None


def _claims(credential: bytes) -> tuple[str, str] | None:
    """Issuer and subject of a JWT, unverified: good enough to group by, and for nothing else."""
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
