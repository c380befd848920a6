"""Keyed hashes, and the session ids that we make.

One key serves all replicas, so that they compute the same hash for the same
client and recognise each other's ids. No hash of ours can be reversed or
forged without it.
"""

from __future__ import annotations

import re
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Awaitable, Callable
from hashlib import blake2b
from hmac import compare_digest
from math import inf
from time import time
from typing import Final, Literal

from otel_mcp.types import Asker

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
"""KeyedHashes whose ids are still known."""
_MADE_BYTES: Final = 21
_MARK_BYTES: Final = 6
_BODY_BYTES: Final = (_MADE_BYTES, _MADE_BYTES + _MARK_BYTES)
"""Earlier versions said nothing of the user."""
_TAG_BYTES: Final = 9
_SAFE: Final = re.compile(r"[A-Za-z0-9._~:/+=@-]{1,128}\Z")


class KeyedHashes:
    """The key of this deployment, once it is known, and what is made with it."""

    def __init__(
        self,
        fetch: Callable[[Asker | None], Awaitable[bytes]],
        is_agreed: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time,
    ) -> None:
        """Begin without a key.

        Args:
            fetch: asks for a key, perhaps on behalf of a request; good for now, also where the replicas have still to
                agree.
            is_agreed: whether all replicas have it; else an id of theirs may look forged.
            clock: Unix seconds.
        """
        self._fetch = fetch
        self.is_agreed = is_agreed
        self._clock = clock
        self._key: bytes | None = None
        self._earlier: list[bytes] = []
        self.ready = False
        """There is a key, agreed or not."""
        self.generation = 0
        """Grows when claims are to be made again: what was hashed before may be hashed otherwise now."""

    async def prepare(self, asker: Asker | None = None) -> None:
        """Learn a key; at once, except for the first call of the process."""
        if not self.ready:
            secret = await self._fetch(asker)
            if not self.ready:
                self.learn(secret)

    def learn(self, secret: bytes) -> None:
        """From now on this is the key."""
        key = blake2b(secret, digest_size=32).digest()
        if self._key is not None and self._key != key:
            # Ids that were given out meanwhile stay ours.
            self._earlier = [self._key, *self._earlier][:_EARLIER]
        if self._key != key:
            self._key = key
            self.renew_claims()
        self.ready = True

    def renew_claims(self) -> None:
        """What claims have led to holds no longer."""
        self.generation += 1

    def digest(self, *parts: str, size: int = 16) -> str:
        """Keyed hash of the parts in hexadecimal, `size` bytes long; the parts cannot run into each other."""
        return _hash(self._known(), *parts, size=size).hex()

    def digest_bytes(self, data: bytes) -> str:
        """Keyed hash of 64 bits: enough to tell repeats apart within a session."""
        return blake2b(data, key=self._key or b"", digest_size=8).hexdigest()

    def mint(self, user: str | None = None) -> str:
        """A new id for a client: 128 random bits, the time, whose it is, and a tag that only this deployment can make.

        Whose it is every replica can tell so from the first message on, before anything is written.
        """
        made = secrets.token_bytes(16) + int(self._clock()).to_bytes(5, "big")
        body = urlsafe_b64encode(made + self._mark(made, user)).decode()
        return f"{OURS}{body}.{self._tag(body, self._known())}"

    def whose(self, session_id: str, user: str | None) -> Whose | None:
        """Whose an id of ours is, seen from `user`; ``None`` = it does not say."""
        body, _, tag = session_id.removeprefix(OURS).partition(".")
        if not session_id.startswith(OURS) or not compare_digest(tag.encode(), self._tag(body, self._known()).encode()):
            return None  # A foreign one, or made with an earlier key, when users had other hashes.
        decoded = urlsafe_b64decode(body)
        made, mark = decoded[:_MADE_BYTES], decoded[_MADE_BYTES:]
        if not mark:
            return None
        if mark == self._mark(made, None):
            return "nobody"
        return "caller" if user is not None and mark == self._mark(made, user) else "another"

    def _mark(self, made: bytes, user: str | None) -> bytes:
        return _hash(self._known(), "whose", made.hex(), user or "", size=_MARK_BYTES)

    def is_ours(self, session_id: str) -> bool:
        """Whether this deployment made that id."""
        body, _, tag = session_id.removeprefix(OURS).partition(".")
        if not session_id.startswith(OURS):
            return False
        return any(
            compare_digest(tag.encode(), self._tag(body, key).encode()) for key in (self._known(), *self._earlier)
        )

    def is_shaped(self, session_id: str) -> bool:
        """Whether it looks like an id that some deployment of ours has made, and that may still be in use."""
        return -_SKEW < self.age(session_id) < _LONG_AGO

    def age(self, session_id: str) -> float:
        """Seconds since an id of ours was made; infinite for what is none."""
        body = session_id.removeprefix(OURS).partition(".")[0]
        try:
            made = urlsafe_b64decode(body)
        except ValueError:
            return inf
        if len(made) not in _BODY_BYTES or not session_id.startswith(OURS):
            return inf
        return self._clock() - int.from_bytes(made[16:_MADE_BYTES], "big")

    def _tag(self, body: str, key: bytes) -> str:
        return urlsafe_b64encode(_hash(key, "om1", body, size=_TAG_BYTES)).decode()

    def _known(self) -> bytes:
        if self._key is None:
            raise RuntimeError("the hash key is not known yet")
        return self._key

    def storable(self, session_id: str, *, hashed: bool) -> str:
        """The id under which a transport session is kept: itself, or a hash where it could do harm."""
        if hashed or not _SAFE.match(session_id):
            return f"h_{self.digest('id', session_id)}"
        return session_id


def _hash(key: bytes, *parts: str, size: int) -> bytes:
    hashed = blake2b(key=key, digest_size=size)
    for part in parts:
        encoded = part.encode("utf-8", "surrogatepass")
        hashed.update(len(encoded).to_bytes(8, "big"))
        hashed.update(encoded)
    return hashed.digest()


def new_id() -> str:
    """128 random bits, for a session whose id no client has."""
    return secrets.token_hex(16)
