"""The tenant of a request: from a verified token, a header or the path; never from what nobody has verified."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from starlette.authentication import SimpleUser, UnauthenticatedUser

from otel_mcp.model.call import Exchange
from otel_mcp.model.tenant import LONGEST, reader, token_claim
from tests.unit.identity.test_principal import bearer, jwt


@dataclass
class User:
    """What an authentication middleware of the app's own may put into the scope."""

    is_authenticated: object = True
    claims: object = field(default_factory=lambda: {"org": "acme"})
    access_token: Any = None


class Raising:
    @property
    def is_authenticated(self) -> bool:
        raise NotImplementedError


def authenticated(**claims: object) -> AuthenticatedUser:
    """The user of the SDK's own middleware, with a token that a verifier has accepted."""
    return AuthenticatedUser(AccessToken(token="t", client_id="app", scopes=[], subject="ann", claims=claims or None))


def tenant(source: str, user: object = None, path: str = "/mcp", **headers: str) -> str | None:
    read = reader(source)
    assert read is not None
    named = {name.replace("_", "-").encode(): value.encode("latin-1") for name, value in headers.items()}
    return read(Exchange("POST", path, named, scope={"user": user}))


def test_nobody_asks_for_tenants_by_default() -> None:
    assert reader(None) is None


@pytest.mark.parametrize(
    ("user", "name", "found"),
    [
        (authenticated(org="acme"), "org", "acme"),
        (authenticated(**{"https://shop.example/org": 7}), "https://shop.example/org", "7"),
        (authenticated(), "client_id", "app"),
        (authenticated(), "sub", "ann"),
        (authenticated(sub="bob"), "sub", "bob"),
        (User(), "org", "acme"),
        (authenticated(), "org", None),
        (authenticated(org=["acme", "other"]), "org", None),
        (authenticated(org=True), "org", None),
        (authenticated(org=""), "org", None),
        (User(is_authenticated=False), "org", None),
        (User(is_authenticated=lambda: True), "org", None),
        (User(claims="org"), "org", None),
        (User(claims=None, access_token=object()), "sub", None),
        (SimpleUser("acme"), "org", None),
        (UnauthenticatedUser(), "sub", None),
        (Raising(), "org", None),
        (None, "org", None),
    ],
)
def test_a_claim_is_that_of_an_authenticated_user(user: object, name: str, found: str | None) -> None:
    assert tenant(f"claim:{name}", user) == found


def test_a_token_that_nobody_has_verified_names_no_tenant() -> None:
    forged = bearer(jwt({"iss": "https://issuer", "sub": "ann", "org": "acme"}))
    read = reader("claim:org")
    assert read is not None

    assert read(Exchange("POST", "/mcp", forged, scope={})) is None
    assert read(Exchange("POST", "/mcp", forged, scope={"user": UnauthenticatedUser()})) is None


def test_the_user_is_known_after_the_request_too() -> None:
    read = reader("claim:org")
    assert read is not None

    assert read(Exchange("POST", "/mcp", {}, user=authenticated(org="acme"))) == "acme"


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("acme", "acme"),
        ("Größe", "Größe"),
        ("x" * LONGEST, "x" * LONGEST),
        ("x" * (LONGEST + 1), "_OTHER"),
        ("a\tb", "_OTHER"),
        ("a\x00", "_OTHER"),
        ("", None),
        ("  ", None),
    ],
)
def test_a_header_names_the_tenant_as_it_stands_or_not_at_all(value: str, found: str | None) -> None:
    assert tenant("header:x-org", x_org=value) == found
    assert tenant("claim:org", authenticated(org=value)) == found


def test_half_a_surrogate_pair_is_no_name() -> None:
    assert tenant("claim:org", authenticated(org="a\ud800")) == "_OTHER"


def test_a_request_without_the_header_has_no_tenant() -> None:
    assert tenant("header:x-org", x_other="acme") is None


@pytest.mark.parametrize(
    ("path", "number", "found"),
    [
        ("/acme/mcp", 1, "acme"),
        ("/t/acme/mcp", 2, "acme"),
        ("/acme", 1, "acme"),
        ("/acme", 2, None),
        ("//mcp", 1, None),
        ("/", 1, None),
        ("", 1, None),
    ],
)
def test_a_part_of_the_path_names_the_tenant(path: str, number: int, found: str | None) -> None:
    assert tenant(f"path:{number}", path=path) == found


def test_a_claim_is_read_as_it_is() -> None:
    assert token_claim(authenticated(roles=["admin"]), "roles") == ["admin"]
