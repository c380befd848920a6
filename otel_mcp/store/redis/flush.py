"""A batch of flushes as one pipeline: deadlines first, then one script call a session."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from redis.exceptions import DataError

from otel_mcp.guard import guarded, report
from otel_mcp.model.delta import EndedSession, Flush, WriteResult
from otel_mcp.store.base import StoreDown
from otel_mcp.store.redis import codec as redis_wire
from otel_mcp.store.redis import scripts
from otel_mcp.store.redis.client import RedisLink, Run
from otel_mcp.store.redis.errors import is_foreign, is_ours, outage
from otel_mcp.store.redis.keys import Keys, agreed_id, mark


class _Touch(NamedTuple):
    """One agreement to keep alive."""

    at: int
    """Place of its flush."""
    tells: Literal["agreed_session", "agreed_successor"]
    """What of `WriteResult` it decides."""
    run: Run


class _Told(NamedTuple):
    """What a flush was answered that is yet to be written."""

    flush: tuple[str, int]
    """Token and sequence."""
    ended: EndedSession | None
    """The end of an earlier session under the id, until somebody has it."""


class FlushWriter:
    """Writes flushes; a failure of one session stands in its own answer."""

    def __init__(self, link: RedisLink, keys: Keys, writer: redis_wire.Writer, ttl: float) -> None:
        self._link = link
        self._keys = keys
        self._writer = writer
        self._ttl = max(round(ttl * 1000), 1)
        self._told: dict[str, _Told] = {}
        """Sessions whose flush was answered with the end of an earlier one, and is not written yet."""

    async def write(self, flushes: Sequence[Flush]) -> list[WriteResult]:
        """Send `flushes`; one that cannot be sent, or whose answer cannot be understood, does not keep the others."""
        try:
            return await self._write(flushes)
        except (DataError, AttributeError, LookupError, TypeError, ValueError) as error:
            if len(flushes) == 1:
                report("session encoding", error)
                return [WriteResult(flushes[0].delta.facts.session_id, refused="error")]
        return [answer for flush in flushes for answer in await self.write([flush])]

    async def _write(self, flushes: Sequence[Flush]) -> list[WriteResult]:
        """Send them, and once more those that had to end an earlier session first."""
        answers = await self._send(flushes)
        again = [at for at, answer in enumerate(answers) if answer.retry and answer.expired is not None]
        if again:
            try:
                for at, second in zip(again, await self._send([flushes[at] for at in again]), strict=True):
                    answers[at] = second
            except StoreDown as down:
                for at in again:
                    answers[at].retry = down.reason
        return self._handed_over(flushes, answers)

    def _handed_over(self, flushes: Sequence[Flush], answers: list[WriteResult]) -> list[WriteResult]:
        """The answers, each earlier end in one of them: also one whose caller was cancelled before it had it."""
        for flush, answer in zip(flushes, answers, strict=True):
            told = self._told.get(answer.session_id)
            if told is None or told.flush != (flush.token, flush.sequence):
                continue
            answer.expired = told.ended
            if answer.retry:
                self._told[answer.session_id] = told._replace(ended=None)
            else:
                del self._told[answer.session_id]
        return answers

    async def _send(self, flushes: Sequence[Flush]) -> list[WriteResult]:
        deadlines, touches = self._deadlines(flushes), self._touches(flushes)
        beside = [*deadlines, *(touch.run for touch in touches)]
        now = time.time()
        runs = [self._run(flush, now) for flush in flushes]
        results = await self._link.run_all([*beside, *(run for run in runs if run is not None)])
        written = iter(results[len(beside) :])
        replies: list[Any] = [None if run is None else next(written) for run in runs]
        answers = [_answer(flush, reply) for flush, reply in zip(flushes, replies, strict=True)]
        _without_deadline(answers, results[: len(deadlines)])
        _overruled(answers, touches, results[len(deadlines) : len(beside)])
        for flush, answer in zip(flushes, answers, strict=True):
            if answer.expired is not None:
                self._told[answer.session_id] = _Told((flush.token, flush.sequence), answer.expired)
        failed = next((result for result in results if isinstance(result, Exception)), None)
        if failed is not None and all(answer.retry and answer.expired is None for answer in answers):
            raise outage(failed) or StoreDown(type(failed).__name__) from failed
        scores: list[Any] = []
        for answer, reply in zip(answers, replies, strict=True):
            if answer.owner is not None and reply[3] != b"0":
                # Its deadline is where its own user has left it.
                scores += (int(reply[3]) / 1e6, answer.session_id)
            elif (
                answer.ended is not None
                or answer.after_end
                or answer.owner is not None
                or (answer.refused and _is_nothing(reply))
            ):
                # Have the next sweep look at it, and count it no longer until then. It takes it out of the deadlines,
                # unless another session has begun under the id meanwhile.
                scores += (mark(), answer.session_id)
        if scores:
            # The next use of the store reports the outage, and the sweep comes upon them at their deadlines.
            with guarded("redis deadlines"), contextlib.suppress(StoreDown):
                await self._link.run(Run("ZADD", (self._keys.deadlines,), ("XX", *scores)))
        return answers

    def _run(self, flush: Flush, now: float) -> Run | None:
        with guarded("session encoding"):
            keys = self._keys.session(flush.delta.facts.session_id)
            told = self._told.get(flush.delta.facts.session_id)
            is_told = told is not None and told.flush == (flush.token, flush.sequence)
            return Run(scripts.FLUSH, keys, self._writer.flush(flush, now, told=is_told))
        return None

    def _deadlines(self, flushes: Sequence[Flush]) -> list[Run]:
        # Before the sessions: a deadline without one is found out and dropped,
        # a session without a deadline would never end.
        members: list[Any] = []
        for flush in flushes:
            if flush.delta.ended is None:
                members += (self._writer.deadline(flush), flush.delta.facts.session_id)
        return [Run("ZADD", (self._keys.deadlines,), ("GT", *members))] if members else []

    def _touches(self, flushes: Sequence[Flush]) -> list[_Touch]:
        """Keep alive what was agreed about these sessions."""
        touches: list[_Touch] = []
        for at, flush in enumerate(flushes):
            delta, session_id = flush.delta, flush.delta.facts.session_id
            if delta.touch_key is not None:
                name, kept = delta.touch_key
                ttl = max(round(kept * 1000), 1)
                run = Run(scripts.TOUCH, (self._keys.agreement(name),), (session_id, ttl))
                touches.append(_Touch(at, "agreed_session", run))
            if delta.facts.previous_id:
                previous = delta.facts.previous_id
                keys = (self._keys.successor(previous), self._keys.session(previous)[1])
                run = Run(scripts.SUCCEED, keys, (session_id, self._ttl, delta.facts.principal or "", 1))
                touches.append(_Touch(at, "agreed_successor", run))
        return touches


def _answer(flush: Flush, result: Any) -> WriteResult:
    session_id = flush.delta.facts.session_id
    if result is None:
        return WriteResult(session_id, refused="error")
    if not isinstance(result, Exception):
        if result[0] == redis_wire.EXPIRED:
            return WriteResult(session_id, retry="expired", expired=redis_wire.ended_session(session_id, result[3]))
        return redis_wire.applied(flush, result)
    if is_foreign(result):
        return WriteResult(session_id, refused="foreign")
    if is_ours(result):
        report("redis script", result)
        return WriteResult(session_id, refused="error")
    down = outage(result)
    return WriteResult(session_id, retry=type(result).__name__ if down is None else down.reason)


def _is_nothing(reply: Any) -> bool:
    """Whether the refused flush has no session to which it belongs."""
    return reply is None or (not isinstance(reply, Exception) and reply[0] == redis_wire.FOREIGN)


def _overruled(answers: list[WriteResult], touches: Sequence[_Touch], results: list[Any]) -> None:
    """Note where another session stands than the one that was to be kept alive."""
    for touch, result in zip(touches, results, strict=True):
        if isinstance(result, bytes) and (standing := agreed_id(result)) not in (None, answers[touch.at].session_id):
            setattr(answers[touch.at], touch.tells, standing)


def _without_deadline(answers: list[WriteResult], results: list[Any]) -> None:
    """Have all sent again if their deadlines did not get through."""
    for error in results:
        if not isinstance(error, Exception):
            continue
        down = outage(error)
        if down is None or down.denied:
            report("redis deadlines", error)
            continue
        for answer in answers:
            answer.retry = answer.retry or down.reason
