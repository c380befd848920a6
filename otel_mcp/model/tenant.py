"""Whose customer asks: the tenant that a request names, where the setting `TENANT` says how."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, cast

from otel_mcp.model.call import Exchange
from otel_mcp.semconv import OTHER

LONGEST: Final = 64
"""Characters; what is longer is ``_OTHER``, since two that are cut may become one."""
_OF_TOKENS: Final = {"sub": "subject", "client_id": "client_id"}
"""Claims that the access tokens of the SDK have as attributes, also where they have no claims."""

TenantOf = Callable[[Exchange], str | None]


def reader(source: str | None) -> TenantOf | None:
    """Make the function that reads the tenant of a request from ``claim:NAME``, ``header:NAME`` or ``path:N``.

    Returns:
        ``None`` where no tenants are asked for, so that nothing need be called.
    """
    kind, _, name = (source or "").partition(":")
    if kind == "claim":
        return partial(_of_token, name)
    if kind == "header":
        return partial(_of_header, name.encode("latin-1"))
    return partial(_of_path, int(name)) if kind == "path" else None


def token_claim(user: object, name: str) -> object:
    """Return a claim of the token with which the app itself has authenticated a user; ``None`` = there is none.

    A user is what an authentication middleware has put into the scope: that of the SDK and of FastMCP holds the token,
    another one may have the claims itself. A token that nobody has verified is never looked at.
    """
    try:
        if getattr(user, "is_authenticated", None) is not True:
            return None
        token: object = getattr(user, "access_token", None)
        claims: object = getattr(user if token is None else token, "claims", None)
        if isinstance(claims, Mapping) and name in claims:
            return cast("Mapping[str, object]", claims)[name]
        return getattr(token, _OF_TOKENS[name], None) if name in _OF_TOKENS else None
    except Exception:  # Attributes of a user's class may raise anything.
        return None


def _of_token(name: str, exchange: Exchange) -> str | None:
    user = exchange.user if exchange.scope is None else exchange.scope.get("user")
    value = token_claim(user, name) if user is not None else None
    return _bounded(str(value)) if isinstance(value, (str, int)) and not isinstance(value, bool) else None


def _of_header(name: bytes, exchange: Exchange) -> str | None:
    value = exchange.headers.get(name)
    return _bounded(value[: LONGEST + 1].decode("latin-1")) if value else None


def _of_path(number: int, exchange: Exchange) -> str | None:
    parts = exchange.path.split("/", number + 1)
    return _bounded(parts[number]) if len(parts) > number else None


def _bounded(value: str) -> str | None:
    if not value.strip():
        return None
    return value if len(value) <= LONGEST and value.isprintable() else OTHER
