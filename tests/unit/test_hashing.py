"""Keyed hashes and ids: the same on every replica, unguessable, unforgeable."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from otel_mcp.hashing import KeyedHashes, new_id

pytestmark = pytest.mark.anyio


async def keys(secret: bytes = b"secret") -> KeyedHashes:
    async def fetch(_: object = None) -> bytes:
        return secret

    made = KeyedHashes(fetch)
    await made.prepare()
    return made


async def test_replicas_with_one_key_make_the_same_hash_and_others_another() -> None:
    one, two, other = await keys(), await keys(), await keys(b"other")

    assert one.digest("a", "b") == two.digest("a", "b")
    assert one.digest("a", "b") != other.digest("a", "b")
    assert re.fullmatch(r"[0-9a-f]{32}", one.digest("a"))
    assert re.fullmatch(r"[0-9a-f]{16}", one.digest("a", size=8))


async def test_the_parts_of_a_hash_cannot_run_into_each_other() -> None:
    made = await keys()
    parts = [("ab", "c"), ("a", "bc"), ("abc",), ("abc", ""), ("", "abc"), ("a", "b", "c")]

    assert len({made.digest(*part) for part in parts}) == len(parts)


async def test_any_text_can_be_hashed() -> None:
    made = await keys()

    assert len({made.digest(text) for text in ("", "\x00", "\ud800", "\U0001f600", "x" * 100_000)}) == 5


async def test_the_key_is_asked_for_once() -> None:
    asked = 0

    async def fetch(_: object = None) -> bytes:
        nonlocal asked
        asked += 1
        return b"secret"

    made = KeyedHashes(fetch)
    assert not made.ready
    for _ in range(3):
        await made.prepare()

    assert made.ready
    assert asked == 1


async def test_ids_that_were_minted_before_the_replicas_agreed_stay_ours() -> None:
    made = await keys(b"alone")
    early = made.mint()
    made.learn(b"shared")
    late = made.mint()

    assert made.is_ours(early)
    assert made.is_ours(late)
    assert (await keys(b"shared")).is_ours(late)
    assert not (await keys(b"shared")).is_ours(early)


async def test_what_was_hashed_before_is_hashed_otherwise_only_if_the_key_is_another() -> None:
    made = await keys(b"alone")
    before = made.generation

    made.learn(b"alone")
    assert made.generation == before
    made.learn(b"shared")
    assert made.generation == before + 1
    assert made.digest("a") == (await keys(b"shared")).digest("a")


async def test_the_ids_of_the_last_keys_stay_ours_and_no_others() -> None:
    made = await keys(b"0")
    minted = [made.mint()]
    for number in range(1, 10):
        made.learn(str(number).encode())
        minted.append(made.mint())

    assert [made.is_ours(session_id) for session_id in minted] == [False, *[True] * 9]


async def test_a_key_that_was_agreed_meanwhile_is_not_replaced_by_the_answer_to_a_request() -> None:
    async def fetch(_: object = None) -> bytes:
        made.learn(b"shared")
        return b"alone"

    made = KeyedHashes(fetch)
    await made.prepare()

    assert made.digest("a") == (await keys(b"shared")).digest("a")


async def test_an_id_of_ours_tells_its_age_and_another_none() -> None:
    now = 1_000_000.0

    async def fetch(_: object = None) -> bytes:
        return b"secret"

    made = KeyedHashes(fetch, clock=lambda: now)
    await made.prepare()
    minted = made.mint()
    now += 25

    assert 25 <= made.age(minted) < 26
    for other in ("", "om1.", "om1.x", "om1.\u00e9.y", "3a7bd3e2360a3d29eea436fcfb7e44c7", minted.removeprefix("om1.")):
        assert made.age(other) > 1_000


async def test_before_the_key_is_known_nothing_is_hashed() -> None:
    async def fetch(_: object = None) -> bytes:
        return b""

    with pytest.raises(RuntimeError, match="not known"):
        KeyedHashes(fetch).digest("a")


async def test_a_minted_id_is_known_to_every_replica_and_to_nobody_else() -> None:
    one, two, other = await keys(), await keys(), await keys(b"other")
    minted = one.mint()

    assert two.is_ours(minted)
    assert not other.is_ours(minted)
    assert re.fullmatch(r"om1\.[A-Za-z0-9_-]{22,}\.[A-Za-z0-9_-]{12,}", minted)
    assert made_of_visible_ascii(minted)


def made_of_visible_ascii(text: str) -> bool:
    """What the specification asks of a session id."""
    return all("!" <= character <= "~" for character in text)


async def test_minted_ids_and_new_ids_differ_in_all_of_their_bits() -> None:
    made = await keys()

    assert len({made.mint() for _ in range(1000)}) == 1000
    assert len({new_id() for _ in range(1000)}) == 1000
    assert re.fullmatch(r"[0-9a-f]{32}", new_id())


@pytest.mark.parametrize(
    "forge",
    [
        lambda minted: minted[:-1],
        lambda minted: minted + "A",
        lambda minted: minted[:-1] + ("A" if minted[-1] != "A" else "B"),
        lambda minted: "om1." + "A" * minted.rindex(".") + minted[minted.rindex(".") :],
        lambda minted: minted[:4] + ("A" if minted[4] != "A" else "B") + minted[5:],
        lambda minted: minted.replace("om1.", "om2."),
        lambda minted: minted.upper(),
        lambda minted: minted.split(".")[0] + "." + minted.split(".")[1],
        lambda minted: minted.split(".")[0] + ".." + minted.split(".")[2],
        lambda minted: "om1.",
        lambda minted: "om1.x.",
        lambda minted: "om1.\u00e9.\u00e9",
        lambda minted: "",
        lambda minted: minted.removeprefix("om1."),
        lambda minted: " " + minted,
        lambda minted: "om1." + minted,
    ],
)
async def test_a_changed_id_is_not_ours(forge: Callable[[str], str]) -> None:
    made = await keys()

    assert not made.is_ours(forge(made.mint()))


@pytest.mark.parametrize("session_id", ["x", "a.b_c~d:e/f+g=h@i-0", "0" * 128, "3a7bd3e2360a3d29eea436fcfb7e44c7"])
async def test_a_transport_id_of_harmless_characters_is_kept_as_it_is(session_id: str) -> None:
    assert (await keys()).storable(session_id, hashed=False) == session_id


@pytest.mark.parametrize(
    "session_id",
    ["", "x" * 129, "a b", "a{b}", "a\nb", "a\n", "a*", "a\u00e9", "a\x00", "a[b", "a'b", 'a"b', "a?b", "a,b", "<b>"],
)
async def test_a_transport_id_that_could_do_harm_is_hashed(session_id: str) -> None:
    made = await keys()
    stored = made.storable(session_id, hashed=False)

    assert re.fullmatch(r"h_[0-9a-f]{32}", stored)
    assert stored != made.storable(session_id + "x", hashed=False)


async def test_whoever_must_not_store_ids_stores_hashes() -> None:
    made, other = await keys(), await keys(b"other")

    assert re.fullmatch(r"h_[0-9a-f]{32}", made.storable("harmless", hashed=True))
    assert made.storable("harmless", hashed=True) != other.storable("harmless", hashed=True)


async def test_the_digest_of_arguments_is_short_and_keyed() -> None:
    one, other = await keys(), await keys(b"other")

    assert re.fullmatch(r"[0-9a-f]{16}", one.digest_bytes(b"{}"))
    assert one.digest_bytes(b"{}") == one.digest_bytes(b"{}")
    assert one.digest_bytes(b"{}") != one.digest_bytes(b"{ }")
    assert one.digest_bytes(b"{}") != other.digest_bytes(b"{}")
