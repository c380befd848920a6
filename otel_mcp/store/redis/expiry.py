"""Finding sessions whose time is over, and giving each end to one process.

A lease keeps replicas from doing the same work at once. That each end is
reported once rests on the claim script alone: a claim is acknowledged after the
report, and falls to another process if it never is.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Any, Final

from otel_mcp.model.delta import EndedSession
from otel_mcp.store.base import ABANDONED, ProducerId, StoreDown
from otel_mcp.store.redis import codec
from otel_mcp.store.redis.client import RedisLink, Run, is_foreign, outage
from otel_mcp.store.redis.codec import Keys, Writer

_SWEEPER: Final = (1.0, 10.0)
"""Seconds, at least and at most, that one process sweeps alone: two sweeps long."""
_CLAIM: Final = (2.0, codec.LEASE)
"""Seconds, at least and at most, after which an end that nobody acknowledged is another's: six sweeps long."""
_TURN: Final = 1.0
"""Seconds after which the search for an end is left to the next sweep."""


class Sweep:
    """The ends of sessions of one service."""

    def __init__(
        self, link: RedisLink, keys: Keys, writer: Writer, process: ProducerId, interval: float, ttl: float
    ) -> None:
        self._link = link
        self._keys = keys
        self._writer = writer
        self._process = process
        self._sweeper = round(_within(2 * interval, _SWEEPER) * 1000)
        """Milliseconds."""
        self._lease = round(_within(6 * interval, _CLAIM) * 1_000_000)
        """Microseconds."""
        self._kept = round((ttl + ABANDONED) * 1000)
        """Milliseconds."""
        self._reported: dict[str, int] = {}
        """Reported but not acknowledged yet: the claim is known, the store was away."""

    async def claim_expired(self, ahead: float, limit: int) -> list[EndedSession]:
        """Claim up to `limit` ends of sessions whose time is over in `ahead` seconds."""
        token = self._process.token
        if self._reported:
            await self.ack_ends(list(self._reported))
        sweeper = await self._link.run(Run(codec.GET_OR_SET, (self._keys.sweeper,), (token, self._sweeper, 1)))
        if sweeper.decode("utf-8", "replace") != token:
            return []
        until = time.monotonic() + _TURN
        due = Run(codec.DUE, (self._keys.deadlines,), (f"{ahead:.6f}", limit, self._kept))
        while True:
            now, found = await self._link.run(due)
            self._writer.learn_clock(int(now))
            scores = {found[at].decode(): float(found[at + 1]) for at in range(0, len(found), 2)}
            ended, all_moved = await self._claim(scores, int(now), ahead) if scores else ([], True)
            # Of what has ended otherwise there may be very much.
            if ended or len(scores) < limit or not all_moved or time.monotonic() > until:
                return ended

    async def _claim(self, scores: dict[str, float], now: int, ahead: float) -> tuple[list[EndedSession], bool]:
        """Claim ends; return those that are ours to report, and whether none of these sessions is due any longer."""
        by = now + round(ahead * 1_000_000)
        # The claim stands for its time from now on, whatever it was asked for.
        lease = max(now, by) + self._lease
        arguments = (by, self._process.token, lease, self._writer.owner)
        runs = [Run(codec.CLAIM, self._keys.session(session_id), arguments) for session_id in scores]
        ended: list[EndedSession] = []
        gone: list[Any] = []
        later: list[Any] = []
        for (session_id, score), reply in zip(scores.items(), await self._link.run_all(runs), strict=True):
            if isinstance(reply, Exception):
                if is_foreign(reply):
                    gone += (session_id, score)
            elif reply[0].decode() == "nothing":
                gone += (session_id, score)
            elif reply[0].decode() == "later":
                later += (int(reply[1]) / 1e6, session_id)
            else:
                later += (lease / 1e6, session_id)
                if session_id not in self._reported:
                    ended.append(codec.ended_session(session_id, reply[1]))
                self._reported[session_id] = lease
        with contextlib.suppress(StoreDown):
            # Left undone, the same members are due again, and the claims stand.
            await self._move(gone, later)
            return ended, len(gone) + len(later) == 2 * len(scores)
        return ended, False

    async def _move(self, gone: list[Any], later: list[Any]) -> None:
        runs: list[Run] = []
        if gone:
            runs.append(Run(codec.FORGET, (self._keys.deadlines,), tuple(gone)))
        if later:
            runs.append(Run("ZADD", (self._keys.deadlines,), ("XX", *later)))
        for result in await self._link.run_all(runs):
            if isinstance(result, Exception):
                raise outage(result) or result

    async def ack_ends(self, session_ids: Sequence[str]) -> None:
        """Acknowledge that the ends of these sessions have been reported."""
        if not session_ids:
            return
        gone: list[Any] = []
        for session_id in session_ids:
            gone += (session_id, self._reported.get(session_id, 0) / 1e6)
        # Before the look at the sessions: one that begins later brings its own deadline.
        await self._link.run(Run(codec.FORGET, (self._keys.deadlines,), tuple(gone)))
        runs = [Run(codec.ACK, self._keys.session(session_id)) for session_id in session_ids]
        acknowledged: list[str] = []
        begun: list[Any] = []
        for session_id, deadline in zip(session_ids, await self._link.run_all(runs), strict=True):
            if not isinstance(deadline, Exception) or is_foreign(deadline):
                acknowledged.append(session_id)
            if isinstance(deadline, bytes) and deadline != b"0":
                begun += (int(deadline) / 1e6, session_id)
        if begun:
            # Their own may have been earlier than the claim, which had taken its place.
            await self._link.run(Run("ZADD", (self._keys.deadlines,), ("GT", *begun)))
        for session_id in acknowledged:
            self._reported.pop(session_id, None)


def _within(value: float, bounds: tuple[float, float]) -> float:
    return min(max(value, bounds[0]), bounds[1])
