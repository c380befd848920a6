"""Keyed hashes, and the session ids that we make.

One key serves all replicas, so that they compute the same hash for the same
client and recognise each other's ids. No hash of ours can be reversed or
forged without it.
"""

from __future__ import annotations

import re
import secrets
from base64 import urlsafe_b64encode
from collections.abc import Awaitable, Callable
from hashlib import blake2b
from hmac import compare_digest
from typing import Final

OURS: Final = "om1."
"""Begins every id that we gave to a client."""
_TAG_BYTES: Final = 9
_SAFE: Final = re.compile(r"[A-Za-z0-9._~:/+=@-]{1,128}\Z")


class Keys:
    """The key of this deployment, once it is known, and what is made with it."""

    def __init__(self, fetch: Callable[[], Awaitable[bytes]]) -> None:
        self._fetch = fetch
        self._key: bytes | None = None

    @property
    def ready(self) -> bool:
        return self._key is not None

    async def prepare(self) -> None:
        """Learn the key; at once except for the first call of the process."""
        if self._key is None:
            self._key = blake2b(await self._fetch(), digest_size=32).digest()

    def digest(self, *parts: str, size: int = 16) -> str:
        """Keyed hash of the parts in hexadecimal, `size` bytes long; the parts cannot run into each other."""
        return self._hash(*parts, size=size).hex()

    def _hash(self, *parts: str, size: int) -> bytes:
        if self._key is None:
            raise RuntimeError("the hash key is not known yet")
        hashed = blake2b(key=self._key, digest_size=size)
        for part in parts:
            encoded = part.encode("utf-8", "surrogatepass")
            hashed.update(len(encoded).to_bytes(8, "big"))
            hashed.update(encoded)
        return hashed.digest()

    def digest_bytes(self, data: bytes) -> str:
        """Keyed hash of 64 bits: enough to tell repeats apart within a session."""
        return blake2b(data, key=self._key or b"", digest_size=8).hexdigest()

    def mint(self) -> str:
        """A new id for a client: 128 random bits and a tag that only this deployment can make."""
        random = secrets.token_urlsafe(16)
        return f"{OURS}{random}.{self._tag(random)}"

    def is_ours(self, session_id: str) -> bool:
        """Whether this deployment made that id."""
        random, _, tag = session_id.removeprefix(OURS).partition(".")
        return session_id.startswith(OURS) and compare_digest(tag.encode(), self._tag(random).encode())

    def _tag(self, random: str) -> str:
        return urlsafe_b64encode(self._hash("om1", random, size=_TAG_BYTES)).decode()

    def storable(self, session_id: str, *, hashed: bool) -> str:
        """The id under which a transport session is kept: itself, or a hash where it could do harm."""
        if hashed or not _SAFE.match(session_id):
            return f"h_{self.digest('id', session_id)}"
        return session_id


def new_id() -> str:
    """128 random bits, for a session that no client was told of."""
    return secrets.token_hex(16)
