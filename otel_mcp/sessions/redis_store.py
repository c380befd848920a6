"""Sessions in Redis or Valkey: two keys a session, one script call a flush.

The rules are in the scripts (``lua/``), which run in the slot of the session;
what lies in other slots (deadlines, agreed values) is written beside them, in
an order that a crash in between does no harm to: a deadline without a session
is found out and dropped, a session without a deadline would never end.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from pydantic import ValidationError

from otel_mcp.guard import guarded, report
from otel_mcp.sessions import redis_wire, scripts
from otel_mcp.sessions.delta import Applied, EndedSession, Flush, Known
from otel_mcp.sessions.keys import Keys
from otel_mcp.sessions.process import Process
from otel_mcp.sessions.redis_client import Client, connect
from otel_mcp.sessions.redis_errors import is_foreign, is_ours, outage
from otel_mcp.sessions.redis_link import RedisLink, Run
from otel_mcp.sessions.redis_sweep import Sweep
from otel_mcp.sessions.state import SessionState
from otel_mcp.sessions.store import StoreDown
from otel_mcp.settings import Settings

_SKEW: Final = 2.0
"""Seconds of difference to the server's clock that are left alone: within what NTP keeps."""
_REMEASURE: Final = 60.0


class RedisStore:
    """A `SessionStore` on one Redis, Sentinel or Cluster."""

    def __init__(
        self, settings: Settings, process: Process | None = None, *, client: Callable[[], Client] | None = None
    ) -> None:
        url = settings.redis_url or ""
        process = process or Process()
        self._settings = settings
        self._keys = Keys(settings.redis_prefix, settings.service_name)
        self._link = RedisLink(client or (lambda: connect(url)))
        self._writer = redis_wire.Writer(settings.service_name, settings.session_ttl, settings.max_tool_calls, process)
        self._sweep = Sweep(self._link, self._keys, process)
        self._measured = -_REMEASURE

    async def apply(self, deltas: Sequence[Flush]) -> list[Applied]:
        """Write each flush once."""
        if not deltas:
            return []
        await self._measure()
        answers = await self._write(deltas)
        again = [at for at, answer in enumerate(answers) if answer.retry and answer.expired is not None]
        if again:
            # An earlier session under the id is ended now; this begins another.
            try:
                seconds = await self._write([deltas[at] for at in again])
            except StoreDown:
                return answers
            for at, second in zip(again, seconds, strict=True):
                second.expired = second.expired or answers[at].expired
                answers[at] = second
        for at, answer in enumerate(answers):
            if answer.refused == "foreign" and await self._adopt(deltas[at].delta.facts.session_id):
                answers[at] = (await self._write([deltas[at]]))[0]
        return answers

    async def _write(self, flushes: Sequence[Flush]) -> list[Applied]:
        before = self._deadlines(flushes) + self._touches(flushes)
        now = time.time()
        runs = [
            Run(scripts.FLUSH, self._keys.session(flush.delta.facts.session_id), self._writer.flush(flush, now))
            for flush in flushes
        ]
        results = await self._link.run_all([*before, *runs])
        answers = [self._answer(flush, result) for flush, result in zip(flushes, results[len(before) :], strict=True)]
        for error in results[: len(before)]:
            if not isinstance(error, Exception):
                continue
            down = outage(error)
            if down is None or down.denied:
                report("redis deadlines", error)
            else:
                # Without a deadline a session would never end.
                for answer in answers:
                    answer.retry = down.reason
        failed = next((result for result in results if isinstance(result, Exception)), None)
        if failed is not None and all(answer.retry and answer.expired is None for answer in answers):
            raise outage(failed) or StoreDown(type(failed).__name__) from failed
        await self._forget(flushes, answers)
        return answers

    def _deadlines(self, flushes: Sequence[Flush]) -> list[Run]:
        members: list[Any] = []
        for flush in flushes:
            if flush.delta.ended is None:
                members += (self._writer.deadline(flush), flush.delta.facts.session_id)
        return [Run("ZADD", (self._keys.deadlines,), ("GT", *members))] if members else []

    def _touches(self, flushes: Sequence[Flush]) -> list[Run]:
        runs: list[Run] = []
        ttl = max(round(self._settings.session_ttl * 1000), 1)
        for flush in flushes:
            delta = flush.delta
            if delta.touch_key is not None:
                name, kept = delta.touch_key
                key = self._keys.agreement(name)
                runs.append(Run(scripts.TOUCH, (key,), (delta.facts.session_id, max(round(kept * 1000), 1))))
            if delta.facts.previous_id:
                key = self._keys.successor(delta.facts.previous_id)
                runs.append(Run(scripts.TOUCH, (key,), (delta.facts.session_id, ttl)))
        return runs

    def _answer(self, flush: Flush, result: Any) -> Applied:
        session_id = flush.delta.facts.session_id
        if not isinstance(result, Exception):
            if result[0] == 3:
                return Applied(session_id, retry="expired", expired=redis_wire.ended_session(session_id, result[3]))
            return redis_wire.applied(flush, result)
        if is_foreign(result):
            return Applied(session_id, refused="foreign")
        if is_ours(result):
            report("redis script", result)
            return Applied(session_id, refused="error")
        down = outage(result)
        return Applied(session_id, retry=type(result).__name__ if down is None else down.reason)

    async def _forget(self, flushes: Sequence[Flush], answers: Sequence[Applied]) -> None:
        """Take ended sessions out of the deadlines, which the gauge counts."""
        gone: list[Any] = []
        for flush, answer in zip(flushes, answers, strict=True):
            if answer.ended is not None or answer.late or answer.refused:
                last = answer.ended.last_activity if answer.ended is not None else 0.0
                gone += (answer.session_id, max(self._writer.deadline(flush), last + flush.delta.facts.limit))
        if gone:
            with guarded("redis deadlines"):
                await self._link.run(Run(scripts.FORGET, (self._keys.deadlines,), tuple(gone)))

    async def _adopt(self, session_id: str) -> bool:
        """Record a document of ours that lost its stats (evicted), or that the user replaced."""
        raw = await self._raw(session_id)
        state = _parse(raw, session_id)
        return raw is not None and state is not None and (await self._save(state, _digest(raw))) is not None

    async def load(self, session_id: str) -> SessionState | None:
        """The document."""
        return _parse(await self._raw(session_id), session_id)

    async def _raw(self, session_id: str) -> bytes | None:
        try:
            return await self._link.run(Run("GET", self._keys.session(session_id)[:1]))
        except Exception as error:
            if is_foreign(error):
                return None
            raise

    async def save(self, state: SessionState) -> Applied:
        """Write a document of the user's."""
        created = await self._save(state, "")
        if created is None:
            raw = await self._raw(state.session_id)
            if raw is not None and _parse(raw, state.session_id) is not None:
                created = await self._save(state, _digest(raw))
        if created is None:
            return Applied(state.session_id, refused="foreign")
        return Applied(state.session_id, created=created)

    async def _save(self, state: SessionState, replaces: str) -> bool | None:
        """Whether this began the session; `None` where the key holds something else."""
        await self._measure()
        now = time.time()
        limit = self._settings.session_ttl
        deadline = round(self._writer.instant(now) / 1e6 + limit, 6)
        arguments = self._writer.save(state, now, limit)
        results = await self._link.run_all(
            [
                Run("ZADD", (self._keys.deadlines,), ("GT", deadline, state.session_id)),
                Run(scripts.SAVE, self._keys.session(state.session_id), (*arguments, replaces)),
            ]
        )
        for result in reversed(results):
            if isinstance(result, Exception):
                if is_foreign(result):
                    return None
                raise outage(result) or result
        status, created = results[1]
        return bool(created) if status == 1 else None

    async def delete(self, session_id: str) -> bool:
        """Remove a session at once."""
        status, existed = await self._delete(session_id, "")
        if status == 5:
            raw = await self._raw(session_id)
            if raw is None or _parse(raw, session_id) is None:
                return False
            status, existed = await self._delete(session_id, _digest(raw))
        await self._link.run(Run("ZREM", (self._keys.deadlines,), (session_id,)))
        return bool(existed)

    async def _delete(self, session_id: str, replaces: str) -> tuple[int, int]:
        now = self._writer.instant(time.time())
        arguments = (now, redis_wire.text.iso(now), replaces)
        return tuple(await self._link.run(Run(scripts.DELETE, self._keys.session(session_id), arguments)))

    async def recall(self, session_id: str) -> Known:
        """What is known of an id."""
        keys = (*self._keys.session(session_id), self._keys.successor(session_id))
        now = self._writer.instant(time.time())
        return redis_wire.known(session_id, await self._link.run(Run(scripts.RECALL, keys, (now,))))

    async def agree(self, key: str, candidate: str, ttl: float) -> str:
        """The value that all replicas have under `key`."""
        return await self._agree(self._keys.agreement(key), candidate, ttl)

    async def succeed(self, old_id: str, candidate: str) -> str:
        """The id of the one session that continues `old_id`."""
        return await self._agree(self._keys.successor(old_id), candidate, self._settings.session_ttl)

    async def _agree(self, key: str, candidate: str, ttl: float) -> str:
        value = await self._link.run(Run(scripts.AGREE, (key,), (candidate, round(ttl * 1000))))
        return value.decode("utf-8", "replace")

    async def due(self, now: float, limit: int) -> list[EndedSession]:
        """Sessions whose time was over at `now`, claimed for the caller."""
        await self._measure()
        self._link.forget_closed()
        return await self._sweep.due(self._writer.instant(now), limit)

    async def settle(self, ended: Sequence[EndedSession]) -> None:
        """These ends have been reported."""
        await self._sweep.settle([end.session_id for end in ended])

    async def active(self) -> int:
        """Live sessions of the service."""
        now = self._writer.instant(time.time()) / 1e6
        return int(await self._link.run(Run("ZCOUNT", (self._keys.deadlines,), (f"{now:.6f}", "+inf"))))

    async def aclose(self) -> None:
        """Close the client of the running loop."""
        await self._link.aclose()

    async def _measure(self) -> None:
        """Learn how far the server's clock is from ours, so that replicas with wrong clocks agree."""
        before = time.monotonic()
        if before - self._measured < _REMEASURE:
            return
        wall = time.time()
        seconds, micros = await self._link.run(Run(scripts.TIME, (self._keys.deadlines,)))
        self._measured = time.monotonic()
        offset = int(seconds) + int(micros) / 1e6 - (wall + (self._measured - before) / 2)
        self._writer.offset = offset if abs(offset) > _SKEW else 0.0


def _parse(raw: bytes | None, session_id: str) -> SessionState | None:
    if raw is None:
        return None
    try:
        state = SessionState.model_validate_json(raw)
    except ValidationError:
        return None
    return state if state.session_id == session_id else None


def _digest(raw: bytes) -> str:
    return hashlib.sha1(raw, usedforsecurity=False).hexdigest()
