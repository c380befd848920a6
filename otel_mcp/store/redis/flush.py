"""A batch of flushes as one pipeline: deadlines first, then one script call per session."""

from __future__ import annotations

import contextlib
import time
from collections import OrderedDict
from collections.abc import Collection, Sequence
from operator import itemgetter
from typing import Any, Final
from weakref import WeakKeyDictionary

from redis.exceptions import DataError

from otel_mcp.bounded import remember
from otel_mcp.guard import guarded, report
from otel_mcp.model.delta import EndedSession, Flush, WriteResult
from otel_mcp.store.base import StoreDown
from otel_mcp.store.document import Joined, join
from otel_mcp.store.redis import codec, replies
from otel_mcp.store.redis.client import RedisLink, Run
from otel_mcp.store.redis.codec import Keys, agreed_id, mark
from otel_mcp.store.redis.errors import is_foreign, is_ours, outage

_AGAIN: Final = ("expired", "clock", "look", "fresh")
"""Values of `WriteResult.retry` with which the same flush can be written at once."""
_TRIES: Final = 3
"""Maximum number of attempts."""
_CALLS_AGAIN: Final = 10.0
"""Seconds after which the visits of a visitor who still calls tools are forgotten again: less than two visits take."""
_CALLERS: Final = 10_000
_RUN: Final = itemgetter(2)


class FlushWriter:
    """Writes flushes; the failure of a session is in its own answer."""

    def __init__(self, link: RedisLink, keys: Keys, writer: codec.Writer) -> None:
        self._link = link
        self._keys = keys
        self._writer = writer
        self._announced: WeakKeyDictionary[Flush, EndedSession | None] = WeakKeyDictionary()
        """Flushes to send again, since the store returned the end of an earlier session under the id first: that end,
        until an answer has carried it. A flush that the sender gives up is gone from here."""
        self._joined: WeakKeyDictionary[Flush, Joined] = WeakKeyDictionary()
        """What has been sent of flushes with rounds: again the same, unless the store refuses that. The answer may have
        been lost, and with the document as it is then, the waits that are over."""
        self._callers: OrderedDict[str, float] = OrderedDict()
        """Visitors who call tools, with the monotonic second from which to forget their visits again."""

    async def write(self, flushes: Sequence[Flush]) -> list[WriteResult]:
        """Send `flushes`; one that cannot be sent, or whose answer cannot be read, does not affect the others."""
        try:
            joined: dict[Flush, Joined] = {}
            for flush in flushes:
                if flush.delta.has_rounds:
                    joined = await self._slow_join(flushes)
                    break
            answers = await self._send(flushes, joined)
            slow = bool(self._announced)
            for answer in answers:
                slow = slow or answer.retry in _AGAIN
            if slow:
                await self._slow_write(flushes, answers)
            return answers
        except (DataError, AttributeError, LookupError, TypeError, ValueError) as error:
            if len(flushes) == 1:
                report("session encoding", error)
                return [WriteResult(flushes[0].delta.facts.session_id, refused="error")]
        return [answer for flush in flushes for answer in await self.write([flush])]

    async def _slow_write(self, flushes: Sequence[Flush], answers: list[WriteResult]) -> None:
        """Send flushes again that first had to end an earlier session or learn the server's time."""
        for attempt in range(_TRIES):
            again = [at for at, answer in enumerate(answers) if answer.retry in _AGAIN]
            if not again:
                break
            try:
                some = [flushes[at] for at in again]
                fresh = {flushes[at] for at in again if answers[at].retry == "fresh"}
                joined = await self._slow_join(some, fresh, is_last=attempt == _TRIES - 1)
                found = await self._send(some, joined)
                for at, answer in zip(again, found, strict=True):
                    answers[at] = answer
            except StoreDown as down:
                for at in again:
                    answers[at].retry = down.reason
        for flush, answer in zip(flushes, answers, strict=True):
            # Each earlier end goes into one answer, also if the caller of the first attempt was cancelled.
            if flush not in self._announced:
                continue
            answer.expired = self._announced[flush]
            if answer.retry:
                self._announced[flush] = None
            else:
                del self._announced[flush]

    async def _send(self, flushes: Sequence[Flush], joined: dict[Flush, Joined]) -> list[WriteResult]:
        deadlines: dict[str, list[Any]] = {}  # By the option of ZADD; CH changes only its reply.
        kept_alive: list[tuple[int, str, Run]] = []
        scripts: list[Run] = []
        now = time.monotonic()
        for at, flush in enumerate(flushes):
            delta = flush.delta
            if delta.ended is None:
                # Flushes come in any order: too early a deadline is harmless, since the sweep corrects it.
                option, score = "CH", self._writer.deadline(delta)
            else:
                option, score = "XX" if delta.is_mere_end else "CH", self._writer.held()
            deadlines.setdefault(option, []).extend((score, delta.facts.session_id))
            visitor = delta.facts.visitor if delta.call_count else None
            if visitor is not None and self._callers.get(visitor, 0.0) <= now:
                # It does not only look, long before this session has ended.
                kept_alive.append((at, "", self._forget_visits(visitor, now)))
            if delta.touch_key is not None or delta.facts.previous_id:
                self._keep_alive(at, flush, kept_alive)
            announced = bool(self._announced) and flush in self._announced
            rounds = joined.get(flush) if joined else None
            arguments = self._writer.flush(flush, rounds, announced=announced)
            scripts.append(Run(codec.FLUSH, self._keys.session(delta.facts.session_id), arguments))
        # Before the sessions: a deadline without a session is found and dropped, but a session without a deadline
        # would never end.
        runs: list[Run] = []
        for option, scores in deadlines.items():
            runs += (Run("ZADD", (self._keys.deadlines,), (option, *scores)),)
        first = len(runs)
        runs += map(_RUN, kept_alive)
        results = await self._link.run_all([*runs, *scripts])
        replies = results[len(runs) :]
        answers = list(map(self._answer, flushes, replies, map(joined.get, flushes)))
        for (at, field, _), result in zip(kept_alive, results[first:], strict=False):
            if isinstance(result, bytes) and (standing := agreed_id(result)) not in (None, answers[at].session_id):
                setattr(answers[at], field, standing)
        for result in results[:first]:
            if isinstance(result, Exception):
                _without_deadline(answers, result)
        for answer in answers:
            if answer.retry or answer.owner or answer.refused or answer.after_end:
                await self._slow_conclude(answers, results)
                break
        return answers

    async def _slow_join(
        self, flushes: Sequence[Flush], fresh: Collection[Flush] = (), *, is_last: bool = False
    ) -> dict[Flush, Joined]:
        """Join rounds with those in their documents, but not where these are of the session before a `fresh` one.

        The last time whatever else there may look like one.
        """
        rounds = [flush for flush in flushes if flush.delta.has_rounds]
        unread = [flush for flush in rounds if flush not in self._joined]
        runs = [Run("GET", self._keys.session(flush.delta.facts.session_id)[:1]) for flush in unread]
        for flush, held in zip(unread, await self._link.run_all(runs) if runs else (), strict=True):
            self._joined[flush] = join(None if flush in fresh else held, flush.delta.calls[-self._writer.cap :])
        joined = {flush: self._joined[flush] for flush in rounds}
        return {flush: each._replace(absent=()) for flush, each in joined.items()} if is_last else joined

    async def _slow_conclude(self, answers: list[WriteResult], results: list[Any]) -> None:
        """Raise the outage if nothing was written, and correct wrong deadlines."""
        failed = next((result for result in results if isinstance(result, Exception)), None)
        if failed is not None and all(answer.retry and answer.retry not in _AGAIN for answer in answers):
            raise outage(failed) or StoreDown(type(failed).__name__) from failed
        scores: list[Any] = []
        for answer, reply in zip(answers, results[-len(answers) :], strict=True):
            if answer.owner is not None and reply[3] != b"0":
                # Restore the deadline that its own user has set.
                scores += (int(reply[3]) / 1e6, answer.session_id)
            elif (answer.after_end and not answer.ended) or answer.owner or (answer.refused and _has_no_session(reply)):
                # The next sweep reads it, and until then it does not count as live. The sweep removes it from the
                # deadlines, unless another session has begun under the id meanwhile.
                scores += (mark(), answer.session_id)
        if scores:
            # The next use of the store reports the outage, and the sweep finds them at their deadlines.
            with guarded("redis deadlines"), contextlib.suppress(StoreDown):
                await self._link.run(Run("ZADD", (self._keys.deadlines,), ("XX", *scores)))

    def _forget_visits(self, visitor: str, now: float) -> Run:
        self._callers.pop(visitor, None)
        remember(self._callers, visitor, now + _CALLS_AGAIN, _CALLERS)
        return Run("DEL", (self._keys.visits(visitor),))

    def _keep_alive(self, at: int, flush: Flush, runs: list[tuple[int, str, Run]]) -> None:
        """Add what was agreed about a session: its place, the field of `WriteResult` that it decides, the script."""
        delta, session_id = flush.delta, flush.delta.facts.session_id
        if delta.touch_key is not None:
            name, kept = delta.touch_key
            arguments = (session_id, max(round(kept * 1000), 1), 1)
            runs.append((at, "agreed_session", Run(codec.GET_OR_SET, (self._keys.agreement(name),), arguments)))
        if previous := delta.facts.previous_id:
            keys = (self._keys.successor(previous), self._keys.session(previous)[1])
            whose = delta.facts.principal or ""
            run = Run(codec.GET_OR_SET, keys, (session_id, self._writer.ttl, 1, whose))
            runs.append((at, "agreed_successor", run))

    def _answer(self, flush: Flush, reply: Any, joined: Joined | None) -> WriteResult:
        session_id = flush.delta.facts.session_id
        if isinstance(reply, Exception):
            return _failed(session_id, reply)
        status = reply[0].decode()
        if status == "clock":
            self._writer.learn_clock(int(reply[1]), refused=True)
            return WriteResult(session_id, retry="clock")
        if status == "expired":
            ended = replies.ended_session(session_id, reply[3])
            self._announced[flush] = ended
            return WriteResult(session_id, retry="expired", expired=ended)
        if status in ("look", "fresh"):
            self._joined.pop(flush, None)
            return WriteResult(session_id, retry=status)
        return codec.written(flush, joined, reply)


def _failed(session_id: str, error: Exception) -> WriteResult:
    if is_foreign(error):
        return WriteResult(session_id, refused="foreign")
    if is_ours(error):
        report("redis script", error)
        return WriteResult(session_id, refused="error")
    down = outage(error)
    return WriteResult(session_id, retry=type(error).__name__ if down is None else down.reason)


def _has_no_session(reply: Any) -> bool:
    """Return whether the flush was refused because the document is not ours."""
    return not isinstance(reply, Exception) and (reply[0], reply[2]) == (b"foreign", b"")


def _without_deadline(answers: list[WriteResult], error: Exception) -> None:
    """Mark all to be sent again if their deadlines could not be written."""
    down = outage(error)
    if down is None or down.denied:
        report("redis deadlines", error)
        return
    for answer in answers:
        answer.retry = answer.retry or down.reason
