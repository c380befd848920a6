"""Keyed hashes, and the session ids that we make.

One key serves all replicas, so that they compute the same hash for the same
client and recognise each other's ids. No hash of ours can be reversed or
forged without it.
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
"""Begins every id that we gave to a client."""
NAMED: Final = "c_"
"""Begins the id of every session that a host, a header of one or a cookie names."""
_SKEW: Final = 3600.0
"""Seconds by which the clock of another replica may be ahead."""
_LONG_AGO: Final = 366 * 86_400.0
"""Seconds after which no client uses an id any more."""
_EARLIER: Final = 8
"""Keys whose ids are still known."""
_MADE_BYTES: Final = 21
"""Of random bits and the time; what follows marks the user."""
_MARK_BYTES: Final = 6
_TAG_BYTES: Final = 9
_MAX_DIGESTED: Final = 64 * 1024
"""Bytes of JSON of which a digest is kept."""
_SAFE: Final = re.compile(r"[A-Za-z0-9._~:/+=@-]{1,128}\Z")


class KeyedHashes:
    """Hashes and ids made with the key of this deployment."""

    def __init__(self, clock: Callable[[], float] = time) -> None:
        """Begin without a key; `clock` tells Unix seconds."""
        self._clock = clock
        self._keys: list[bytes] = []
        """The key, and the last ones before it: ids that were given out meanwhile stay ours."""
        self.ready = False
        """There is a key, agreed or not."""
        self.is_agreed = False
        """All replicas have it; else an id of theirs may look forged."""
        self.generation = 0
        """Grows when what was hashed before may be hashed, or judged, differently."""

    def learn(self, secret: bytes, *, agreed: bool = True) -> None:
        """Use the key made of `secret` from now on."""
        key = blake2b(secret, digest_size=32).digest()
        if not self._keys or self._keys[0] != key:
            self._keys = [key, *self._keys][: _EARLIER + 1]
            self.generation += 1
        elif agreed and not self.is_agreed:
            self.generation += 1
        self.ready, self.is_agreed = True, agreed

    def digest(self, *parts: str, size: int = 16) -> str:
        """Hash the parts with the key, to hexadecimal of `size` bytes; the parts cannot run into each other."""
        return _hash(self._key(), *parts, size=size).hex()

    def digest_json(self, value: object) -> str | None:
        """Hash the JSON of arguments to 64 bits, enough to recognise repeats within a session.

        ``None`` where they are too large, or cannot be written again: half a surrogate pair, or too deep.
        """
        try:
            encoded = to_json(value)
        except ValueError:
            return None
        if len(encoded) > _MAX_DIGESTED:
            return None
        return blake2b(encoded, key=self._keys[0] if self._keys else b"", digest_size=8).hexdigest()

    def mint(self, user: str | None = None) -> str:
        """Make an id for a client: 128 random bits, the time, a mark of its user, and a tag that is ours alone.

        By the mark every replica knows the user from the first message on, before anything is written.
        """
        made = secrets.token_bytes(16) + int(self._clock()).to_bytes(5, "big")
        body = urlsafe_b64encode(made + self._mark(made, user)).decode()
        return f"{OURS}{body}.{_tag(body, self._key())}"

    def whose(self, session_id: str, user: str | None) -> Whose | None:
        """Return whose an id of ours is, seen from `user`; ``None`` for one that is foreign, or of an earlier key."""
        if not session_id.startswith(OURS) or not self._is_tagged(session_id, [self._key()]):
            return None
        decoded = urlsafe_b64decode(_body(session_id))
        made, mark = decoded[:_MADE_BYTES], decoded[_MADE_BYTES:]
        if mark == self._mark(made, None):
            return "nobody"
        return "caller" if user is not None and mark == self._mark(made, user) else "another"

    def is_ours(self, session_id: str) -> bool:
        """Return whether this deployment made that id."""
        return session_id.startswith(OURS) and self._is_tagged(session_id, self._keys)

    def is_shaped(self, session_id: str) -> bool:
        """Return whether it looks like an id that some deployment of ours has made, and that may still be in use."""
        return -_SKEW < self._clock() - minted_at(session_id) < _LONG_AGO

    def storable(self, session_id: str, *, hashed: bool) -> str:
        """Return the id under which a transport session is kept: itself, or a hash where it could do harm."""
        return f"h_{self.digest('id', session_id)}" if hashed or not _SAFE.match(session_id) else session_id

    def _mark(self, made: bytes, user: str | None) -> bytes:
        return _hash(self._key(), "whose", made.hex(), user or "", size=_MARK_BYTES)

    def _is_tagged(self, session_id: str, keys: list[bytes]) -> bool:
        body, tag = _body(session_id), session_id.removeprefix(OURS).partition(".")[2].encode()
        return any(compare_digest(tag, _tag(body, key).encode()) for key in keys)

    def _key(self) -> bytes:
        if not self._keys:
            raise RuntimeError("the hash key is not known yet")
        return self._keys[0]


def minted_at(session_id: str) -> float:
    """Return when an id of ours was made, in Unix seconds; infinitely long ago for any other."""
    try:
        made = urlsafe_b64decode(_body(session_id))
    except ValueError:
        return -inf
    is_shaped = len(made) == _MADE_BYTES + _MARK_BYTES and session_id.startswith(OURS)
    return float(int.from_bytes(made[16:_MADE_BYTES], "big")) if is_shaped else -inf


def new_id() -> str:
    """Make an id of 128 random bits, for a session whose id no client has."""
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
