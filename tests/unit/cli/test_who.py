"""Which hashes stand for a person: the same that requests of theirs are put on record with."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from starlette.authentication import SimpleUser

from otel_mcp.hashing import KeyedHashes
from otel_mcp.identity.principal import audited, principal
from tests.unit.cli.conftest import Cli
from tests.unit.identity.test_principal import Token, User, bearer, jwt, keys

ALICE, ISSUER = "alice@example.com", "https://idp.example"


def on_record(hashes: KeyedHashes, user: Any = None, headers: dict[bytes, bytes] | None = None) -> tuple[str, str]:
    """What a request of this user is put on record with, and the CALLER of the session."""
    who = principal(user, headers or {}, hashes)
    return audited(hashes, "shop", who.digest), (who.user or "")[:8]


@pytest.mark.parametrize("claims", [{"iss": ISSUER}, {}], ids=["issuer", "none"])
def test_each_way_to_know_a_person_has_the_hash_of_its_requests(cli: Cli, claims: dict[str, str]) -> None:
    hashes = keys(b"the key")
    named = ("--issuer", ISSUER) if claims else ()

    rows = cli("who", ALICE, "--client-id", "web", *named, OTEL_PYTHON_MCP_HASH_KEY="the key").rows

    expected = [on_record(hashes, SimpleUser(ALICE))]
    if claims:
        expected.append(on_record(hashes, headers=bearer(jwt({**claims, "sub": ALICE}))))
    expected.append(on_record(hashes, User(Token("web", ALICE, dict(claims)))))
    assert [tuple(row[:2]) for row in rows] == expected


JWT = jwt({"iss": "i", "sub": ALICE}).encode()


@pytest.mark.parametrize(
    ("written", "header", "noted"),
    [
        (b"Bearer opaque", b"Bearer opaque", False),
        (b"Bearer " + JWT, b"Bearer " + JWT, False),
        (b"Authorization: Bearer opaque\r", b"Bearer opaque", False),
        (b"Bearer \xe9", b"Bearer \xe9", False),
        (b"x-api-key: k:1", b"k:1", True),
        (JWT, JWT, True),
    ],
    ids=["opaque", "jwt", "with its name", "no utf-8", "key", "no scheme"],
)
def test_a_credential_is_read_from_standard_input(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, written: bytes, header: bytes, noted: bool
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(written + b"\n"), "utf-8"))

    ran = cli("who", "-", "-o", "json", OTEL_PYTHON_MCP_HASH_KEY="the key")

    (found,) = json.loads(ran.out)["callers"]
    pseudo_id, caller = on_record(keys(b"the key"), headers={b"authorization": header})
    assert (found["enduser_pseudo_id"], found["caller"] or "") == (pseudo_id, caller)
    assert (caller != "") is header.startswith(b"Bearer ey")
    assert ("no scheme" in ran.err) is noted


def test_names_with_letters_of_any_language_have_the_hash_of_requests(cli: Cli) -> None:
    name, hashes = "jörg 王 🎈", keys(b"the key")

    rows = cli("who", name, "--issuer", ISSUER, OTEL_PYTHON_MCP_HASH_KEY="the key").rows

    token = bearer(jwt({"iss": ISSUER, "sub": name}))
    assert [tuple(row[:2]) for row in rows] == [
        on_record(hashes, SimpleUser(name)),
        on_record(hashes, headers=token),
    ]


def test_without_its_own_key_it_hashes_with_that_of_the_replicas(cli: Cli, redis: Any) -> None:
    assert cli("who", ALICE).code == 1

    redis.set("otel_mcp:shop:hash-key", "agreed")

    assert cli("who", ALICE, "-o", "name").out == f"{on_record(keys(b'agreed'), SimpleUser(ALICE))[0]}\n"


def test_hashes_differ_from_service_to_service(cli: Cli) -> None:
    of = [cli("who", ALICE, "-o", "name", "-s", name, OTEL_PYTHON_MCP_HASH_KEY="k").out for name in ("shop", "bank")]

    assert of[0] != of[1]


def test_without_any_key_it_names_both_ways_to_one(cli: Cli) -> None:
    refused = cli("who", ALICE, OTEL_PYTHON_MCP_REDIS_URL="")

    assert refused.code == 2
    assert "HASH_KEY or OTEL_PYTHON_MCP_REDIS_URL" in refused.err


@pytest.mark.parametrize("name", ["", "-"])
def test_nobody_has_no_hash(cli: Cli, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\n")))

    assert cli("who", name, OTEL_PYTHON_MCP_HASH_KEY="k").code == 2
