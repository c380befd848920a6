"""Who is calling: the user that the app authenticated, else what the credential says.

Used to group and to bind sessions, never to let anybody in. Only keyed hashes
leave this module.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, cast

from pydantic_core import from_json

from otel_mcp.identity.keys import Keys
from otel_mcp.wire.headers import HeaderMap

CREDENTIALS: Final = (b"authorization", b"x-api-key", b"api-key")
_MAX_JWT: Final = 16_384


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller, as a keyed hash."""

    digest: str
    binds: bool
    """It names a user, so a session may be bound to it; a bare token may rotate."""


def principal(user: object, headers: HeaderMap, keys: Keys) -> Principal | None:
    """The caller of a request; ``None`` = nobody said who they are."""
    if user is not None and (authenticated := _authenticated(user)) is not None:
        return Principal(keys.digest("user", *authenticated), binds=True)
    for name in CREDENTIALS:
        if credential := headers.get(name):
            claims = _claims(credential)
            if claims is not None:
                return Principal(keys.digest("jwt", *claims), binds=True)
            return Principal(keys.digest("credential", credential.decode("latin-1")), binds=False)
    return None


def _authenticated(user: object) -> tuple[str, str, str] | None:
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
