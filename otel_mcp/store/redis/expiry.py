"""Finding sessions whose time is over, and giving each end to one process.

A lease keeps replicas from doing the same work at once. That each end is
reported once rests on the claim script alone: a claim is settled after the
report, and falls to another process if it never is.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Any, Final, cast

from otel_mcp.model.delta import EndedSession
from otel_mcp.store.base import ABANDONED, ProducerId, StoreDown
from otel_mcp.store.redis import codec as redis_wire
from otel_mcp.store.redis import scripts
from otel_mcp.store.redis.client import RedisLink, Run
from otel_mcp.store.redis.errors import is_foreign, outage
from otel_mcp.store.redis.keys import Keys

_SWEEPER: Final = (1.0, 10.0)
"""Seconds, at least and at most, that one process sweeps alone: two sweeps long."""
_CLAIM: Final = (2.0, 60.0)
"""Seconds, at least and at most, after which an end that nobody settled is another's to report: six sweeps long."""


_TURN: Final = 1.0
"""Seconds after which the search for an end is left to the next sweep."""


class Sweep:
    """The ends of sessions of one service."""

    def __init__(
        self, link: RedisLink, keys: Keys, process: ProducerId, interval: float, ttl: float, owner: str
    ) -> None:
        self._link = link
        self._owner = owner
        self._keys = keys
        self._process = process
        self._sweeper = round(_within(2 * interval, _SWEEPER) * 1000)
        """Milliseconds."""
        self._lease = round(_within(6 * interval, _CLAIM) * 1_000_000)
        """Microseconds."""
        self._kept = round((ttl + ABANDONED) * 1000)
        """Milliseconds."""
        self._reported: dict[str, int] = {}
        """Reported but not settled yet: the claim is known, the store was away."""

    async def claim_expired(self, now: int, limit: int) -> list[EndedSession]:
        """Claim up to `limit` ends; `now` in microseconds of the server."""
        token = self._process.token
        if self._reported:
            await self.ack_ends(list(self._reported))
        sweeper = await self._link.run(Run(scripts.AGREE, (self._keys.sweeper,), (token, self._sweeper)))
        if sweeper.decode("utf-8", "replace") != token:
            return []
        until = time.monotonic() + _TURN
        while True:
            scores = await self._scores(now, limit)
            ended, all_moved = await self._claim(scores, now) if scores else ([], True)
            # Of what has ended otherwise there may be very much.
            if ended or len(scores) < limit or not all_moved or time.monotonic() > until:
                return ended

    async def _scores(self, now: int, limit: int) -> dict[str, float]:
        """Sessions whose time is over, with their deadlines."""
        *_, found = _checked(
            await self._link.run_all(
                [
                    Run("PEXPIRE", (self._keys.sweeper,), (self._sweeper,)),
                    Run("PEXPIRE", (self._keys.deadlines,), (self._kept,)),
                    Run(
                        "ZRANGEBYSCORE",
                        (self._keys.deadlines, "-inf", f"{now / 1e6:.6f}"),
                        ("WITHSCORES", "LIMIT", 0, limit),
                    ),
                ]
            )
        )
        return _scores(found)

    async def _claim(self, scores: dict[str, float], now: int) -> tuple[list[EndedSession], bool]:
        """The ends that are ours to report, and whether none of these sessions is due any longer."""
        # The claim stands for its time from now on, whatever `now` was asked for.
        lease = max(now, round(time.time() * 1e6)) + self._lease
        runs = [
            Run(scripts.CLAIM, self._keys.session(session_id), (now, self._process.token, lease, self._owner))
            for session_id in scores
        ]
        ended: list[EndedSession] = []
        gone: list[Any] = []
        later: list[Any] = []
        for (session_id, score), reply in zip(scores.items(), await self._link.run_all(runs), strict=True):
            if isinstance(reply, Exception):
                if is_foreign(reply):
                    gone += (session_id, score)
            elif reply[0] == 0:
                gone += (session_id, score)
            elif reply[0] == 2:
                later += (lease / 1e6, session_id)
                if session_id not in self._reported:
                    ended.append(redis_wire.ended_session(session_id, reply[1]))
                self._reported[session_id] = lease
            else:
                later += (int(reply[1]) / 1e6, session_id)
        with contextlib.suppress(StoreDown):
            # Left undone, the same members are due again, and the claims stand.
            await self._move(gone, later)
            return ended, len(gone) + len(later) == 2 * len(scores)
        return ended, False

    async def _move(self, gone: list[Any], later: list[Any]) -> None:
        runs: list[Run] = []
        if gone:
            runs.append(Run(scripts.FORGET, (self._keys.deadlines,), tuple(gone)))
        if later:
            runs.append(Run("ZADD", (self._keys.deadlines,), ("XX", *later)))
        if runs:
            _checked(await self._link.run_all(runs))

    async def ack_ends(self, session_ids: Sequence[str]) -> None:
        """The ends of these sessions have been reported."""
        if not session_ids:
            return
        gone: list[Any] = []
        runs: list[Run] = []
        for session_id in session_ids:
            runs.append(Run(scripts.SETTLE, self._keys.session(session_id)))
            gone += (session_id, self._reported.get(session_id, 0) / 1e6)
        # Before the look at the sessions: one that begins later brings its own deadline.
        await self._link.run(Run(scripts.FORGET, (self._keys.deadlines,), tuple(gone)))
        settled: list[str] = []
        begun: list[Any] = []
        for session_id, deadline in zip(session_ids, await self._link.run_all(runs), strict=True):
            if not isinstance(deadline, Exception) or is_foreign(deadline):
                settled.append(session_id)
            if isinstance(deadline, bytes) and deadline != b"0":
                begun += (int(deadline) / 1e6, session_id)
        if begun:
            # Their own may have been earlier than the claim, which had taken its place.
            await self._link.run(Run("ZADD", (self._keys.deadlines,), ("GT", *begun)))
        for session_id in settled:
            self._reported.pop(session_id, None)


def _within(value: float, bounds: tuple[float, float]) -> float:
    return min(max(value, bounds[0]), bounds[1])


def _scores(found: list[Any]) -> dict[str, float]:
    """Members and scores: in pairs or in a row, as the version of the protocol has it."""
    flat: list[Any] = [
        part for item in found for part in (cast("list[Any]", item) if isinstance(item, list) else [item])
    ]
    return {flat[at].decode(): float(flat[at + 1]) for at in range(0, len(flat), 2)}


def _checked(results: Any) -> list[Any]:
    """The results, unless one is an error."""
    kept = list(results)
    for result in kept:
        if isinstance(result, Exception):
            raise outage(result) or result
    return kept
