"""Reports that only one process makes of a session: its end, that a server cut it, and that its client is back.

A lease keeps replicas from doing the same work at once. That each end is
reported once rests on the claim script alone: a claim is acknowledged after the
report, and falls to another process if it never is. The mark of a cut lies with
the session, so each cut, and each way back, is given to one process too. Apart
from it there is a short list of each visitor: its sessions that were cut.
"""

from __future__ import annotations

import contextlib
import time
import zlib
from collections.abc import Sequence
from typing import Any, Final

from otel_mcp.model.delta import EndedSession
from otel_mcp.model.session import LOST, Interruption, Refusal, Return
from otel_mcp.store.base import ABANDONED, ProducerId, StoreDown
from otel_mcp.store.document import utf8
from otel_mcp.store.redis import codec, replies
from otel_mcp.store.redis.client import RedisLink, Run, put_recent, recent
from otel_mcp.store.redis.codec import Keys, Writer, script, text_of
from otel_mcp.store.redis.errors import is_foreign, is_ours

_SWEEPER: Final = (1.0, 10.0)
"""Minimum and maximum seconds for which one process sweeps alone: two intervals."""
_CLAIM: Final = (2.0, codec.LEASE)
"""Minimum and maximum seconds after which others may claim an end that is not acknowledged: six intervals."""
_LATE: Final = 60.0
"""Seconds for which the document of an expired session is kept, since its end is reported later and reads it."""
_MOST_KEPT: Final = 2_000
"""Maximum number of such documents per sweep: some ms of the server."""
_TURN: Final = 1.0
"""Seconds after which the search for ends stops until the next sweep."""
_KEEP: Final = script("keep", of_session=False)
_CUT: Final = script("cut")
_BACK: Final = script("back")
_MOST_CUT: Final = 1000
"""Maximum number of sessions of one visitor: a gateway may have very many."""


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
        self._soon = 3 * interval
        """Seconds before its deadline in which at least one sweep surely sees a session."""
        self._claimed: dict[str, tuple[EndedSession, float]] = {}
        """Ends not acknowledged yet, with their claims' scores; with an outcome = reported, but the store was away."""

    async def claim_expired(self, ahead: float, limit: int) -> list[EndedSession]:
        """Claim up to `limit` ends of sessions that expire within `ahead` seconds."""
        token = self._process.token
        await self._ack_reported()
        sweeper = await self._link.run(Run(codec.GET_OR_SET, (self._keys.sweeper,), (token, self._sweeper, 1)))
        if sweeper.decode("utf-8", "replace") != token:
            return []
        await self._keep_documents()
        until = time.monotonic() + _TURN
        due = Run(codec.DUE, (self._keys.deadlines,), (f"{ahead:.6f}", limit, self._kept, codec.CLAIMS))
        while True:
            now, over, left = await self._link.run(due)
            self._writer.learn_clock(int(now))
            found = [*over, *left]
            scores = {found[at]: float(found[at + 1]) for at in range(0, len(found), 2)}
            ended, all_moved = await self._claim(scores, int(now), ahead) if scores else ([], True)
            # Very many sessions may have ended in other ways.
            if ended or len(scores) < limit or not all_moved or time.monotonic() > until:
                return ended

    async def _keep_documents(self) -> None:
        """Keep the documents of sessions that will expire before the next sweeps until their ends are reported."""
        now = self._writer.instant(time.time()) / 1e6
        bounds = (f"{now:.6f}", f"{now + self._soon:.6f}", "LIMIT", 0, _MOST_KEPT)
        near = await self._link.run(Run("ZRANGEBYSCORE", (self._keys.deadlines,), bounds))
        kept = (round((self._soon + _LATE) * 1000),)
        await self._link.run_all([Run(_KEEP, self._keys.session(_id(each))[:1], kept) for each in near])

    async def claim_held(self, session_ids: Sequence[str], ahead: float) -> list[EndedSession]:
        """Claim ends that this process holds, after acknowledging those it has reported."""
        await self._ack_reported()
        if not session_ids:
            return []
        now = self._writer.instant(time.time())
        return (await self._claim(dict.fromkeys(map(utf8, session_ids), 0.0), now, ahead, held=True))[0]

    async def _claim(
        self, scores: dict[bytes, float], now: int, ahead: float, *, held: bool = False
    ) -> tuple[list[EndedSession], bool]:
        """Claim ends; return those that are ours to report, and whether none of these sessions is due any longer."""
        by = now + round(ahead * 1_000_000)
        # The claim stands for its time from now on, whatever it was asked for.
        lease = max(now, by) + self._lease
        arguments = (by, self._process.token, lease, self._writer.owner, int(held))
        runs = [Run(codec.CLAIM, self._keys.session(_id(member)), arguments) for member in scores]
        ended: list[EndedSession] = []
        gone: list[Any] = []
        later: list[Any] = []
        for (member, score), reply in zip(scores.items(), await self._link.run_all(runs), strict=True):
            if isinstance(reply, Exception):
                if is_foreign(reply) or is_ours(reply):
                    gone += (member, score)
            elif reply[0] == b"later":
                later += (int(reply[1]) / 1e6, member)
            elif reply[0] == b"claimed":
                later += (codec.claimed(int(reply[1])), member)
            elif reply[0] == b"nothing":
                gone += (member, score)
            else:
                try:
                    end = replies.ended_session(session_id := _id(member), reply[1])
                except (TypeError, ValueError):  # Another writer has changed the numbers.
                    gone += (member, score)
                    continue
                later += (codec.claimed(lease), member)
                known, _ = self._claimed.get(session_id, (end, 0.0))
                if known.outcome is None:
                    ended.append(known := end)
                self._claimed[session_id] = known, codec.claimed(lease)
        with contextlib.suppress(StoreDown):
            # If this fails, the same members are due again, and the claims remain.
            await self._move(gone, later)
            return ended, len(gone) + len(later) == 2 * len(scores)
        return ended, False

    async def _move(self, gone: list[Any], later: list[Any]) -> None:
        runs: list[Run] = []
        if gone:
            runs.append(Run(codec.FORGET, (self._keys.deadlines,), tuple(gone)))
        if later:
            runs.append(Run("ZADD", (self._keys.deadlines,), ("XX", *later)))
        await self._link.answers(runs)

    async def _ack_reported(self) -> None:
        """Acknowledge ends that were reported while the store was away, or by a task that was cancelled."""
        await self.ack_ends([end for end, _ in self._claimed.values() if end.outcome is not None])

    async def ack_ends(self, ended: Sequence[EndedSession]) -> None:
        """Acknowledge that these ends have been reported."""
        if not ended:
            return
        gone: list[Any] = []
        for end in ended:
            gone += (end.session_id, self._claimed.get(end.session_id, (end, 0.0))[1])
        # Before the sessions are read: one that begins later writes its own deadline.
        await self._link.run(Run(codec.FORGET, (self._keys.deadlines,), tuple(gone)))
        token = self._process.token
        runs = [Run(codec.ACK, self._keys.session(end.session_id), (token, end.outcome or "")) for end in ended]
        acknowledged: list[str] = []
        begun: list[Any] = []
        for end, deadline in zip(ended, await self._link.run_all(runs), strict=True):
            if not isinstance(deadline, Exception) or is_foreign(deadline):
                acknowledged.append(end.session_id)
            if isinstance(deadline, bytes) and deadline != b"0":
                begun += (int(deadline) / 1e6, end.session_id)
        if begun:
            # The claim may have replaced their own deadlines.
            await self._link.run(Run("ZADD", (self._keys.deadlines,), tuple(begun)))
        for session_id in acknowledged:
            self._claimed.pop(session_id, None)


class Interruptions:
    """Marks of cuts, and lists of cut sessions, of one service."""

    def __init__(self, link: RedisLink, keys: Keys, writer: Writer, process: ProducerId) -> None:
        self._link = link
        self._keys = keys
        self._writer = writer
        self._process = process

    async def cut(self, refusals: Sequence[Refusal], gone: Sequence[str]) -> list[Interruption]:
        """Mark the sessions that these refusals cut; return those that were not marked yet."""
        start, token, owner = self._writer.instant(self._process.started_at), self._process.token, self._writer.owner
        runs = [
            Run(
                _CUT,
                self._keys.session(each.session_id),
                (
                    self._writer.instant(each.at),
                    start,
                    token,
                    "" if each.served is None else int(each.served),
                    owner,
                    each.user or "",
                    *gone,
                ),
            )
            for each in refusals
        ]
        found: list[Interruption] = []
        listed: list[Run] = []
        for refusal, reply in zip(refusals, await self._link.answers(runs), strict=True):
            if reply is None:
                continue
            cause, visitor, created, limit, calls, *labels = reply
            facts = replies.facts_of(refusal.session_id, created, limit, labels)
            found.append(Interruption(facts, refusal.at, cause.decode("utf-8", "replace"), int(calls) > 0))
            if visitor is not None:
                key = self._keys.agreement(f"cut:{text_of(visitor)}")
                at = self._writer.instant(refusal.at)
                listed += put_recent(key, refusal.session_id, at, _MOST_CUT, LOST)
        if listed:
            await self._link.answers(listed)
        return found

    async def back(self, visitor: str, at: float, session_id: str) -> Return | None:
        """Let `session_id`, begun at `at`, continue the first of the visitor's cut sessions."""
        key = self._keys.agreement(f"cut:{visitor}")
        arguments = (self._writer.instant(at), self._writer.owner, f"{zlib.crc32(session_id.encode()):08x}")
        (found,) = await self._link.answers([recent(key, self._writer.instant(time.time()), LOST)])
        for cut in found or ():
            name = cut.decode("utf-8", "replace")
            (reply,) = await self._link.answers([Run(_BACK, self._keys.session(name), arguments)])
            if reply is None:
                await self._link.run(Run("ZREM", (key,), (cut,)))
            else:  # Stays in the list, since this answer may be lost: the next request removes it.
                since, over, user, created, limit, *labels = reply
                facts = replies.facts_of(name, created, limit, labels)
                facts.principal = text_of(user)
                return Return(facts, int(since) / 1e6, bool(over))
        return None


def _id(member: bytes) -> str:
    """Decode a session's id from the deadlines, to which others may have written too."""
    return member.decode("utf-8", "replace")


def _within(value: float, bounds: tuple[float, float]) -> float:
    return min(max(value, bounds[0]), bounds[1])
