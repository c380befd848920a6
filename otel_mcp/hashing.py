"""Make keyed hashes and public session ids.

All replicas share one key, so that they compute the same hash for the same client
and recognise each other's ids. Without the key, hashes can be neither reversed nor
forged.
"""

from __future__ import annotations

import re
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from hashlib import blake2b
from hmac import compare_digest
from math import inf
from time import time
from typing import Final, Literal

from pydantic_core import to_json

Whose = Literal["nobody", "caller", "another"]

OURS: Final = "om1."
"""Prefix of the ids that we give to clients."""
NAMED: Final = "c_"
"""Prefix of the ids of sessions that a host, a host's header or a cookie names."""
_MAX_CLOCK_SKEW: Final = 3600.0
"""Seconds by which another replica's clock may be ahead."""
_MAX_AGE: Final = 366 * 86_400.0
"""Seconds after which no client uses an id any more."""
_MAX_OLD_KEYS: Final = 8
"""Earlier keys whose ids are still recognised."""
_MADE_BYTES: Final = 21
"""16 random bytes and the time of an id; the mark of its user follows."""
_MARK_BYTES: Final = 6
_TAG_BYTES: Final = 9
_MAX_DIGESTED: Final = 64 * 1024
"""Bytes of JSON up to which arguments are hashed."""
_SAFE_ID: Final = re.compile(r"[A-Za-z0-9._~:/+=@-]{1,128}\Z")


class KeyedHashes:
    """Hashes and ids made with the key of this deployment."""

    def __init__(self, clock: Callable[[], float] = time) -> None:
        """Begin without a key; `clock` returns Unix seconds."""
        self._clock = clock
        self._keys: list[bytes] = []
        """The current key, and earlier ones, newest first, whose ids are still recognised."""
        self.ready = False
        """Whether there is a key, agreed or not."""
        self.is_agreed = False
        """Whether all replicas have the key; otherwise an id of theirs may look forged."""
        self.generation = 0
        """Grows when earlier hashes and decisions about ids may be out of date."""

    def learn(self, secret: bytes, *, agreed: bool = True) -> None:
        """Use the key made of `secret` from now on."""
        key = blake2b(secret, digest_size=32).digest()
        if not self._keys or self._keys[0] != key:
            self._keys = [key, *self._keys][: _MAX_OLD_KEYS + 1]
            self.generation += 1
        elif agreed and not self.is_agreed:
            self.generation += 1
        self.ready, self.is_agreed = True, agreed

    def digest(self, *parts: str, size: int = 16) -> str:
        """Return the keyed hash of the parts, which are kept apart, as hexadecimal of `size` bytes."""
        return _hash(self._key(), *parts, size=size).hex()

    def digest_json(self, value: object, person: bytes = b"") -> str | None:
        """Return a 64-bit keyed hash of arguments, enough to recognise repeats within a session.

        Another `person`, of at most 16 bytes, leads to another hash. ``None`` = too large, too deeply nested, or with
        lone surrogates.
        """
        try:
            encoded = to_json(value)
        except ValueError:
            return None
        if len(encoded) > _MAX_DIGESTED:
            return None
        return blake2b(encoded, key=self._keys[0] if self._keys else b"", digest_size=8, person=person).hexdigest()

    def mint(self, user: str | None = None) -> str:
        """Make an id for a client: 128 random bits, the time, a mark of its user, and a tag that only our key makes.

        The mark shows every replica the user of a session before the session is written to the store.
        """
        made = secrets.token_bytes(16) + int(self._clock()).to_bytes(5, "big")
        body = urlsafe_b64encode(made + self._mark(made, user)).decode()
        return f"{OURS}{body}.{_tag(body, self._key())}"

    def whose(self, session_id: str, user: str | None) -> Whose | None:
        """Return whose an id of ours is, compared with `user`; ``None`` = foreign, or made with an earlier key."""
        if not session_id.startswith(OURS) or not self._is_tagged(session_id, [self._key()]):
            return None
        decoded = urlsafe_b64decode(_body(session_id))
        made, mark = decoded[:_MADE_BYTES], decoded[_MADE_BYTES:]
        if mark == self._mark(made, None):
            return "nobody"
        return "caller" if user is not None and mark == self._mark(made, user) else "another"

    def is_ours(self, session_id: str) -> bool:
        """Return whether this deployment made the id."""
        return session_id.startswith(OURS) and self._is_tagged(session_id, self._keys)

    def is_shaped(self, session_id: str) -> bool:
        """Return whether the id has our format and a plausible time, of any key."""
        return -_MAX_CLOCK_SKEW < self._clock() - minted_at(session_id) < _MAX_AGE

    def storable(self, session_id: str, *, hashed: bool) -> str:
        """Return the id to store for a transport session: its own, or a hash if `hashed` or if it is long or unsafe."""
        return f"h_{self.digest('id', session_id)}" if hashed or not _SAFE_ID.match(session_id) else session_id

    def _mark(self, made: bytes, user: str | None) -> bytes:
        return _hash(self._key(), "whose", made.hex(), user or "", size=_MARK_BYTES)

    def _is_tagged(self, session_id: str, keys: list[bytes]) -> bool:
        body, tag = _body(session_id), session_id.removeprefix(OURS).partition(".")[2].encode()
        return any(compare_digest(tag, _tag(body, key).encode()) for key in keys)

    def _key(self) -> bytes:
        if not self._keys:
            raise RuntimeError("there is no hash key yet")
        return self._keys[0]


def minted_at(session_id: str) -> float:
    """Return the Unix seconds at which an id of ours was made; ``-inf`` = not our format."""
    try:
        made = urlsafe_b64decode(_body(session_id))
    except ValueError:
        return -inf
    is_shaped = len(made) == _MADE_BYTES + _MARK_BYTES and session_id.startswith(OURS)
    return float(int.from_bytes(made[16:_MADE_BYTES], "big")) if is_shaped else -inf


def new_id() -> str:
    """Make an id of 128 random bits, for a session whose id is not given to its client."""
    return secrets.token_hex(16)


def _body(session_id: str) -> str:
    return session_id.removeprefix(OURS).partition(".")[0]


def _tag(body: str, key: bytes) -> str:
    return urlsafe_b64encode(_hash(key, "om1", body, size=_TAG_BYTES)).decode()


def _hash(key: bytes, *parts: str, size: int) -> bytes:
    hashed = blake2b(key=key, digest_size=size)
    for part in parts:
        encoded = part.encode("utf-8", "surrogatepass")
        hashed.update(len(encoded).to_bytes(8, "big"))
        hashed.update(encoded)
    return hashed.digest()
