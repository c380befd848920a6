"""Whether an id that somebody names may be a session under itself. No I/O."""

from __future__ import annotations

from typing import Final

from otel_mcp.hashing import OURS, KeyedHashes
from otel_mcp.model.delta import Known
from otel_mcp.model.session import Claim

_FRESH: Final = 30.0
"""Seconds in which an id of ours may be unknown to the store: another replica has still to write it."""


class Standing:
    """The rules for ids of which the store was asked."""

    def __init__(self, keys: KeyedHashes, flush_interval: float) -> None:
        """`flush_interval` in seconds: so long may a session be unwritten."""
        self._keys = keys
        self._fresh = _FRESH + flush_interval

    def stands(self, claim: Claim, known: Known | None, owned: bool | None) -> bool:
        """Whether an id that the store knows no live session of may begin one under itself."""
        if claim.derived or (owned and claim.transport):
            return True
        if self._is_forged(claim):
            return False
        if known is None or self._is_fresh(claim, known):
            # Nobody can be asked now, or nobody has written it yet: the id itself is the best there is.
            return True
        # Perhaps the server's own, met first by this replica; it has accepted it.
        return owned is None and claim.transport and not known.ended

    def continued_as(self, claim: Claim, known: Known | None, owned: bool | None) -> str | None:
        """The session that replicas have agreed to continue an id with, also where one has begun under the id."""
        if known is None or claim.derived or (owned and claim.transport):
            return None
        return known.successor

    def _is_forged(self, claim: Claim) -> bool:
        """It looks like an id that we gave out, and is none."""
        return claim.key.startswith(OURS) and self._keys.is_agreed() and not self._keys.is_ours(claim.key)

    def _is_fresh(self, claim: Claim, known: Known) -> bool:
        unknown = not known.exists and not known.ended and known.successor is None
        return unknown and self._keys.age(claim.key) < self._fresh
