"""Whole documents of the user's: reading, replacing the head, removing.

A document that the stats do not describe is not ours, unless it parses as a
session of that very id: then its stats were lost (evicted), or the user put it
there, and it is taken over. Anything else is left as it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from typing import Any

from pydantic import ValidationError
from redis.exceptions import ResponseError

from otel_mcp.model.delta import WriteResult
from otel_mcp.model.state import SessionState
from otel_mcp.store import document as text
from otel_mcp.store.base import StoreDown
from otel_mcp.store.redis import codec as redis_wire
from otel_mcp.store.redis import scripts
from otel_mcp.store.redis.client import RedisLink, Run
from otel_mcp.store.redis.errors import is_foreign, outage
from otel_mcp.store.redis.keys import Keys, mark


class Documents:
    """The documents under one prefix."""

    def __init__(self, link: RedisLink, keys: Keys, writer: redis_wire.Writer, ttl: float, service: str) -> None:
        self._link = link
        self._keys = keys
        self._writer = writer
        self._ttl = ttl
        self._service = service

    async def load(self, session_id: str) -> SessionState | None:
        """The document, if it is one of ours."""
        return _parse(await self._raw(session_id), session_id)

    async def adopt(self, session_id: str) -> bool:
        """Take over a document of ours that the stats do not describe."""
        raw = await self._raw(session_id)
        state = _parse(raw, session_id)
        if raw is None or state is None or not redis_wire.is_of(state, self._service):
            return False
        return await self._save(state, _digest(raw)) is not None

    async def save(self, state: SessionState) -> WriteResult:
        """Write a document of the user's."""
        created = await self._save(state, "")
        if created is None:
            raw = await self._raw(state.session_id)
            held = _parse(raw, state.session_id)
            if raw is not None and held is not None and redis_wire.is_of(held, self._service):
                created = await self._save(state, _digest(raw))
        if created is None:
            await self._let_go(state.session_id)
            return WriteResult(state.session_id, refused="foreign")
        return WriteResult(state.session_id, created=created)

    async def delete(self, session_id: str, *, reported: bool = True) -> bool:
        """Remove a session at once; where its end is not `reported`, it is left to who sweeps next."""
        status, existed = await self._delete(session_id, "", reported)
        if status == redis_wire.FOREIGN:
            raw = await self._raw(session_id)
            held = _parse(raw, session_id)
            if raw is None or held is None or not redis_wire.is_of(held, self._service):
                return False
            _, existed = await self._delete(session_id, _digest(raw), reported)
        await self._let_go(session_id)
        return bool(existed)

    async def _let_go(self, session_id: str) -> None:
        # The next sweep takes it out of the deadlines, unless another session has begun under the id.
        await self._link.run(Run("ZADD", (self._keys.deadlines,), ("XX", mark(), session_id)))

    async def _raw(self, session_id: str) -> bytes | None:
        try:
            return await self._link.run(Run("GET", self._keys.session(session_id)[:1]))
        except ResponseError as error:
            if is_foreign(error):
                return None
            raise

    async def _save(self, state: SessionState, replaces: str) -> bool | None:
        """Whether this began the session; `None` where the key holds something else."""
        now = time.time()
        deadline = round(self._writer.instant(now) / 1e6 + self._ttl, 6)
        arguments = self._writer.save(state, now, self._ttl)
        results = await self._link.run_all(
            [
                # A session that exists has one, by its own limit.
                Run("ZADD", (self._keys.deadlines,), ("NX", deadline, state.session_id)),
                Run(scripts.SAVE, self._keys.session(state.session_id), (*arguments, replaces)),
            ]
        )
        for result in reversed(results):
            if isinstance(result, Exception):
                if is_foreign(result):
                    return None
                raise outage(result) or result
        status, created = results[1]
        if created:
            # Whatever stood there was of another one, and may be taken out at any time.
            with contextlib.suppress(StoreDown):
                await self._link.run(Run("ZADD", (self._keys.deadlines,), ("GT", deadline, state.session_id)))
        return None if status == redis_wire.FOREIGN else bool(created)

    async def _delete(self, session_id: str, replaces: str, reported: bool) -> tuple[Any, ...]:
        now = self._writer.instant(time.time())
        left = int(not reported)
        arguments = (now, text.iso(now), replaces, text.owner(self._service), self._writer.owner, left)
        run = Run(scripts.DELETE, self._keys.session(session_id), arguments)
        try:
            return tuple(await self._link.run(run))
        except ResponseError as error:
            if is_foreign(error):
                return (redis_wire.FOREIGN, 0)
            raise


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
