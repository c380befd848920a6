"""Keyed hashes and ids: the same on every replica, unguessable, unforgeable."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from math import inf

import pytest

from otel_mcp.hashing import KeyedHashes, minted_at, new_id


def keys(secret: bytes = b"secret") -> KeyedHashes:
    made = KeyedHashes()
    made.learn(secret)
    return made


def test_replicas_with_one_key_make_the_same_hash_and_others_another() -> None:
    one, two, other = keys(), keys(), keys(b"other")

    assert one.digest("a", "b") == two.digest("a", "b")
    assert one.digest("a", "b") != other.digest("a", "b")
    assert re.fullmatch(r"[0-9a-f]{32}", one.digest("a"))
    assert re.fullmatch(r"[0-9a-f]{16}", one.digest("a", size=8))


def test_the_parts_of_a_hash_cannot_run_into_each_other() -> None:
    made = keys()
    parts = [("ab", "c"), ("a", "bc"), ("abc",), ("abc", ""), ("", "abc"), ("a", "b", "c")]

    assert len({made.digest(*part) for part in parts}) == len(parts)


def test_any_text_can_be_hashed() -> None:
    made = keys()

    assert len({made.digest(text) for text in ("", "\x00", "\ud800", "\U0001f600", "x" * 100_000)}) == 5


def test_a_key_is_known_to_be_agreed_or_not() -> None:
    made = KeyedHashes()
    assert not made.ready

    made.learn(b"alone", agreed=False)
    assert (made.ready, made.is_agreed) == (True, False)
    made.learn(b"shared")
    assert made.is_agreed


def test_ids_that_were_minted_before_the_replicas_agreed_stay_ours() -> None:
    made = keys(b"alone")
    early = made.mint()
    made.learn(b"shared")
    late = made.mint()

    assert made.is_ours(early)
    assert made.is_ours(late)
    assert keys(b"shared").is_ours(late)
    assert not keys(b"shared").is_ours(early)


def test_the_generation_changes_with_the_key_and_when_it_is_agreed() -> None:
    made = KeyedHashes()
    made.learn(b"alone", agreed=False)
    generations = [made.generation]

    for secret, agreed in ((b"alone", False), (b"alone", True), (b"alone", True), (b"shared", True)):
        made.learn(secret, agreed=agreed)
        generations.append(made.generation)

    assert [later - earlier for earlier, later in itertools.pairwise(generations)] == [0, 1, 0, 1]
    assert made.digest("a") == keys(b"shared").digest("a")


def test_the_ids_of_the_last_keys_stay_ours_and_no_others() -> None:
    made = keys(b"0")
    minted = [made.mint()]
    for number in range(1, 10):
        made.learn(str(number).encode())
        minted.append(made.mint())

    assert [made.is_ours(session_id) for session_id in minted] == [False, *[True] * 9]


def test_only_an_id_of_ours_shows_when_it_was_made() -> None:
    made = KeyedHashes(clock=lambda: 1_000_000.0)
    made.learn(b"secret")
    minted = made.mint()

    assert minted_at(minted) == 1_000_000.0
    for other in ("", "om1.", "om1.x", "om1.\u00e9.y", "3a7bd3e2360a3d29eea436fcfb7e44c7", minted.removeprefix("om1.")):
        assert minted_at(other) == -inf


def test_before_the_key_is_known_nothing_is_hashed() -> None:
    with pytest.raises(RuntimeError, match="no hash key"):
        KeyedHashes().digest("a")


def test_a_minted_id_is_known_to_every_replica_and_to_nobody_else() -> None:
    one, two, other = keys(), keys(), keys(b"other")
    minted = one.mint()

    assert two.is_ours(minted)
    assert not other.is_ours(minted)
    assert re.fullmatch(r"om1\.[A-Za-z0-9_-]{22,}\.[A-Za-z0-9_-]{12,}", minted)
    assert made_of_visible_ascii(minted)


def made_of_visible_ascii(text: str) -> bool:
    """What the specification asks of a session id."""
    return all("!" <= character <= "~" for character in text)


def test_minted_ids_and_new_ids_differ_in_all_of_their_bits() -> None:
    made = keys()

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
def test_a_changed_id_is_not_ours(forge: Callable[[str], str]) -> None:
    made = keys()

    assert not made.is_ours(forge(made.mint()))


@pytest.mark.parametrize("session_id", ["x", "a.b_c~d:e/f+g=h@i-0", "0" * 128, "3a7bd3e2360a3d29eea436fcfb7e44c7"])
def test_a_transport_id_of_harmless_characters_is_kept_as_it_is(session_id: str) -> None:
    assert keys().storable(session_id, hashed=False) == session_id


@pytest.mark.parametrize(
    "session_id",
    ["", "x" * 129, "a b", "a{b}", "a\nb", "a\n", "a*", "a\u00e9", "a\x00", "a[b", "a'b", 'a"b', "a?b", "a,b", "<b>"],
)
def test_a_transport_id_that_could_do_harm_is_hashed(session_id: str) -> None:
    made = keys()
    stored = made.storable(session_id, hashed=False)

    assert re.fullmatch(r"h_[0-9a-f]{32}", stored)
    assert stored != made.storable(session_id + "x", hashed=False)


def test_hashes_are_stored_where_ids_must_not_be() -> None:
    made, other = keys(), keys(b"other")

    assert re.fullmatch(r"h_[0-9a-f]{32}", made.storable("harmless", hashed=True))
    assert made.storable("harmless", hashed=True) != other.storable("harmless", hashed=True)


def test_the_digest_of_arguments_is_short_and_keyed() -> None:
    one, other = keys(), keys(b"other")

    assert re.fullmatch(r"[0-9a-f]{16}", one.digest_json({}) or "")
    assert one.digest_json({}) == one.digest_json({})
    assert one.digest_json({}) != one.digest_json({"a": 1})
    assert one.digest_json({}) != other.digest_json({})
