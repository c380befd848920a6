"""Who is calling: the authenticated user, a token's subject, or a bare credential, as keyed hashes only; the tenant."""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from starlette.authentication import BaseUser, SimpleUser, UnauthenticatedUser

from otel_mcp.hashing import KeyedHashes
from otel_mcp.identity.principal import LONGEST_TENANT, principal, tenant_reader, token_claim
from otel_mcp.model.call import Exchange
from otel_mcp.model.session import NOBODY, Principal


def keys(secret: bytes = b"secret") -> KeyedHashes:
    made = KeyedHashes()
    made.learn(secret)
    return made


def jwt(payload: object, *, padded: bool = False) -> str:
    """An unsigned token with this payload."""

    def part(value: object) -> str:
        raw = value if isinstance(value, bytes) else json.dumps(value).encode()
        encoded = urlsafe_b64encode(raw).decode()
        return encoded if padded else encoded.rstrip("=")

    return f"{part({'alg': 'RS256'})}.{part(payload)}.c2lnbmF0dXJl"


def bearer(token: str) -> dict[bytes, bytes]:
    return {b"authorization": f"Bearer {token}".encode()}


@dataclass
class Token:
    """What authentication middleware of the SDK and of FastMCP puts into the scope."""

    client_id: str | None = "client"
    subject: str | None = None
    claims: dict[str, Any] | None = field(default_factory=dict[str, Any])


@dataclass
class User:
    access_token: Any


def test_without_user_and_credential_there_is_nobody() -> None:
    assert principal(None, {}, keys()) == NOBODY


def test_an_authenticated_user_wins_over_the_credential_and_binds() -> None:
    made = keys()
    user = User(Token("client", None, {"iss": "https://issuer", "sub": "ann"}))

    found = principal(user, bearer(jwt({"iss": "https://issuer", "sub": "bob"})), made)

    assert found == principal(user, {}, made)
    assert found.user == found.digest


def test_users_differ_by_client_issuer_and_subject() -> None:
    made = keys()
    users = [
        User(Token("client", "ann")),
        User(Token("client", "bob")),
        User(Token("other", "ann")),
        User(Token("client", None, {"iss": "one", "sub": "ann"})),
        User(Token("client", None, {"iss": "two", "sub": "ann"})),
        User(Token("client", None, {})),
    ]

    assert len({principal(user, {}, made).digest for user in users}) == len(users)


@pytest.mark.parametrize("user", [object(), User(None), User(Token(None, None, None)), "ann", {"name": "ann"}])
def test_a_user_without_a_token_is_nobody_and_the_credential_tells(user: object) -> None:
    made = keys()

    assert principal(user, {}, made) == NOBODY
    assert principal(user, {b"x-api-key": b"k"}, made) == principal(None, {b"x-api-key": b"k"}, made)


def test_a_token_is_known_by_issuer_and_subject_through_its_renewals() -> None:
    made = keys()
    first = principal(None, bearer(jwt({"iss": "i", "sub": "ann", "exp": 1, "jti": "a"})), made)
    later = principal(None, bearer(jwt({"iss": "i", "sub": "ann", "exp": 2, "jti": "b"}, padded=True)), made)

    assert first.user == first.digest
    assert first == later


def test_tokens_of_other_issuers_and_subjects_are_other_callers() -> None:
    made = keys()
    payloads = [{"iss": "i", "sub": "ann"}, {"iss": "i", "sub": "bob"}, {"iss": "j", "sub": "ann"}, {"sub": "ann"}]

    assert len({principal(None, bearer(jwt(payload)), made) for payload in payloads}) == 4


def test_the_scheme_is_read_without_regard_to_case() -> None:
    made = keys()
    token = jwt({"iss": "i", "sub": "ann"})

    assert principal(None, {b"authorization": f"bearer  {token}".encode()}, made) == principal(
        None, bearer(token), made
    )


@pytest.mark.parametrize(
    "credential",
    [
        "Bearer opaque",
        "Bearer a.b",
        "Bearer a.b.c.d.e",
        "Bearer ..",
        "Bearer " + jwt({"iss": "i"}),
        "Bearer " + jwt({"sub": ""}),
        "Bearer " + jwt({"sub": 7}),
        "Bearer " + jwt(["sub"]),
        "Bearer " + jwt(b"not json"),
        "Bearer " + jwt(b"\xff\xfe"),
        "Bearer " + jwt(b"[" * 9000),
        "Bearer " + jwt({"sub": "ann", "padding": "x" * 20_000}),
        "Bearer a.\u00ff\u00ff.c",
        "Basic " + jwt({"iss": "i", "sub": "ann"}),
        "Basic YW5uOnNlY3JldA==",
        "Digest username=ann",
        "opaque",
    ],
)
def test_any_other_credential_groups_and_does_not_bind(credential: str) -> None:
    made = keys()
    header = {b"authorization": credential.encode("latin-1")}

    found = principal(None, header, made)

    assert found == Principal(made.digest("credential", credential))
    assert found == principal(None, header, made)


@pytest.mark.parametrize("name", [b"x-api-key", b"api-key"])
def test_a_key_in_a_header_is_a_credential(name: bytes) -> None:
    made = keys()
    one, two = principal(None, {name: b"one"}, made), principal(None, {name: b"two"}, made)

    assert one.user is None
    assert one != two


def test_nothing_of_a_credential_can_be_read_from_what_is_kept() -> None:
    found = principal(None, bearer("s3cret"), keys())
    elsewhere = principal(None, bearer("s3cret"), keys(b"other"))

    assert "s3cret" not in repr(found)
    assert found != elsewhere


class Lazy:
    """A user whose properties raise, as Starlette's own base class and detached rows of a database do."""

    is_authenticated = True
    display_name = "Ann Example"

    @property
    def identity(self) -> str:
        raise NotImplementedError

    @property
    def username(self) -> str:
        raise RuntimeError("detached")


@pytest.mark.parametrize(
    "user",
    [
        SimpleUser("ann"),
        SimpleNamespace(is_authenticated=True, identity="ann"),
        SimpleNamespace(is_authenticated=True, identity="", username="ann"),
        SimpleNamespace(is_authenticated=True, identity=None, display_name="ann"),
        SimpleNamespace(is_authenticated=True, identity=object(), username="ann"),
    ],
)
def test_a_user_of_starlette_or_django_binds_by_name(user: object) -> None:
    made = keys()

    found = principal(user, bearer("opaque"), made)

    assert found.user == found.digest
    assert found == principal(SimpleUser("ann"), {}, made) != principal(SimpleUser("bob"), {}, made)


def test_a_name_whose_other_attributes_raise_is_read_all_the_same() -> None:
    made = keys()

    assert principal(Lazy(), {}, made) == principal(SimpleUser("Ann Example"), {}, made)


def test_a_user_may_be_known_by_a_number_or_a_uuid() -> None:
    made = keys()
    names: list[object] = [7, UUID(int=7), "seven"]
    users = [SimpleNamespace(is_authenticated=True, identity=name) for name in names]

    assert len({principal(user, {}, made).digest for user in users}) == 3


@pytest.mark.parametrize(
    "user",
    [
        UnauthenticatedUser(),
        SimpleNamespace(is_authenticated=False, identity="ann"),
        SimpleNamespace(is_authenticated=lambda: True, identity="ann"),
        SimpleNamespace(is_authenticated=True, identity="", username=""),
        SimpleNamespace(identity="ann", username="ann"),
        BaseUser(),
    ],
)
def test_a_user_who_is_not_authenticated_or_has_no_name_is_nobody(user: object) -> None:
    assert principal(user, {}, keys()) == NOBODY


def test_a_user_and_a_token_of_the_same_name_are_two_callers() -> None:
    made = keys()
    token = principal(None, bearer(jwt({"iss": "name", "sub": "ann"})), made)

    assert principal(SimpleUser("ann"), {}, made) != token


@dataclass
class TenantUser:
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
    read = tenant_reader(source)
    assert read is not None
    named = {name.replace("_", "-").encode(): value.encode("latin-1") for name, value in headers.items()}
    return read(Exchange("POST", path, named, scope={"user": user}))


def test_nobody_asks_for_tenants_by_default() -> None:
    assert tenant_reader(None) is None


@pytest.mark.parametrize(
    ("user", "name", "found"),
    [
        (authenticated(org="acme"), "org", "acme"),
        (authenticated(**{"https://shop.example/org": 7}), "https://shop.example/org", "7"),
        (authenticated(), "client_id", "app"),
        (authenticated(), "sub", "ann"),
        (authenticated(sub="bob"), "sub", "bob"),
        (TenantUser(), "org", "acme"),
        (authenticated(), "org", None),
        (authenticated(org=["acme", "other"]), "org", None),
        (authenticated(org=True), "org", None),
        (authenticated(org=""), "org", None),
        (TenantUser(is_authenticated=False), "org", None),
        (TenantUser(is_authenticated=lambda: True), "org", None),
        (TenantUser(claims="org"), "org", None),
        (TenantUser(claims=None, access_token=object()), "sub", None),
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
    read = tenant_reader("claim:org")
    assert read is not None

    assert read(Exchange("POST", "/mcp", forged, scope={})) is None
    assert read(Exchange("POST", "/mcp", forged, scope={"user": UnauthenticatedUser()})) is None


def test_the_user_is_known_after_the_request_too() -> None:
    read = tenant_reader("claim:org")
    assert read is not None

    assert read(Exchange("POST", "/mcp", {}, user=authenticated(org="acme"))) == "acme"


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("acme", "acme"),
        ("Größe", "Größe"),
        ("x" * LONGEST_TENANT, "x" * LONGEST_TENANT),
        ("x" * (LONGEST_TENANT + 1), "_OTHER"),
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
