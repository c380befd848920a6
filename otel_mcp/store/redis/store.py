"""Sessions in Redis or Valkey: two keys a session, one script call a flush.

The rules are in the scripts (``lua/``), which run in the slot of the session.
What lies in other slots (deadlines, agreed values) is written apart from them, in
an order that a crash in between does no harm to.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from redis.exceptions import ResponseError

from otel_mcp.model.delta import EndedSession, Flush, Known, WriteResult
from otel_mcp.model.state import SessionState
from otel_mcp.settings import Settings
from otel_mcp.store.base import ProducerId, StoreDown
from otel_mcp.store.redis import codec as redis_wire
from otel_mcp.store.redis import scripts
from otel_mcp.store.redis.client import RedisLink, Run
from otel_mcp.store.redis.clock import ServerClock
from otel_mcp.store.redis.connect import Client, connect
from otel_mcp.store.redis.documents import Documents
from otel_mcp.store.redis.errors import is_foreign
from otel_mcp.store.redis.expiry import Sweep
from otel_mcp.store.redis.flush import FlushWriter
from otel_mcp.store.redis.keys import Keys, agreed_id

_UNWRITTEN: Final = 120_000
"""Milliseconds after which a handshake is written that will be: more than the longest flush interval."""


class RedisStore:
    """A `SessionStore` on one Redis, Sentinel or Cluster.

    `client` makes the client of a loop; left out, the URL of the settings does.
    """

    def __init__(
        self, settings: Settings, process: ProducerId | None = None, *, client: Callable[[], Client] | None = None
    ) -> None:
        url = settings.redis_url or ""
        process = process or ProducerId()
        self._ttl = min(settings.session_ttl, redis_wire.LONGEST)
        self._service = settings.service_name
        self._keys = Keys(settings.redis_prefix, settings.service_name)
        self._link = RedisLink(client or (lambda: connect(url)))
        self._writer = redis_wire.Writer(settings.service_name, self._ttl, settings.max_tool_calls, process)
        self._clock = ServerClock(self._link, self._keys, self._writer)
        self._flushes = FlushWriter(self._link, self._keys, self._writer, self._ttl)
        self._documents = Documents(self._link, self._keys, self._writer, self._ttl, self._service)
        self._sweep = Sweep(self._link, self._keys, process, settings.sweep_interval, self._ttl, self._writer.owner)

    async def apply(self, deltas: Sequence[Flush]) -> list[WriteResult]:
        """Write each flush once."""
        if not deltas:
            return []
        await self._clock.compare()
        answers = await self._flushes.write(deltas)
        for at, answer in enumerate(answers):
            if answer.refused == "foreign":
                answers[at] = await self._adopted(deltas[at], answer)
        return answers

    async def _adopted(self, flush: Flush, refused: WriteResult) -> WriteResult:
        """The answer once the document that stood in its way has been taken over, if it is one of ours."""
        answer = refused
        try:
            if await self._documents.adopt(refused.session_id):
                (answer,) = await self._flushes.write([flush])
        except StoreDown as down:
            answer = WriteResult(refused.session_id, retry=down.reason)
        answer.expired = answer.expired or refused.expired
        return answer

    async def load(self, session_id: str) -> SessionState | None:
        """The document."""
        return await self._documents.load(session_id)

    async def save(self, state: SessionState) -> WriteResult:
        """Write a document of the user's."""
        await self._clock.compare()
        return await self._documents.save(state)

    async def delete(self, session_id: str) -> bool:
        """Remove a session at once."""
        return await self._documents.delete(session_id)

    async def end(self, session_id: str) -> bool:
        """Remove a session at once, and leave it to a process that serves to report its end, with its next sweep."""
        return await self._documents.delete(session_id, reported=False)

    async def describe(self, session_id: str) -> Known:
        """What is known of an id."""
        keys = (*self._keys.session(session_id), self._keys.successor(session_id))
        now = self._writer.instant(time.time())
        try:
            reply = await self._link.run(Run(scripts.RECALL, keys, (now,)))
        except ResponseError as error:
            if is_foreign(error):
                return Known(exists=False)
            raise
        return redis_wire.known(session_id, reply, self._service)

    async def bind(self, session_id: str, user: str | None) -> None:
        """Note whose a session is that is written later."""
        arguments = (user or "", self._writer.owner, _UNWRITTEN)
        try:
            await self._link.run(Run(scripts.BIND, self._keys.session(session_id), arguments))
        except ResponseError as error:
            if not is_foreign(error):
                raise

    async def get(self, key: str) -> str | None:
        """The value that was agreed on under `key`."""
        return agreed_id(await self._link.run(Run("GET", (self._keys.agreement(key),))))

    async def get_or_set(self, key: str, candidate: str, ttl: float) -> str:
        """The value that all replicas have under `key`."""
        kept = max(round(min(ttl, redis_wire.LONGEST) * 1000), 1) if ttl else 0
        value = await self._link.run(Run(scripts.AGREE, (self._keys.agreement(key),), (candidate, kept)))
        # What stays for good is the hash key, which an operator may have put there: it is no id.
        return (agreed_id(value) or candidate) if kept else value.decode("utf-8", "replace")

    async def get_or_set_successor(self, old_id: str, candidate: str, user: str | None = None) -> str:
        """The id of the one session that continues `old_id`."""
        keys = (self._keys.successor(old_id), self._keys.session(old_id)[1])
        kept = max(round(self._ttl * 1000), 1)
        value = await self._link.run(Run(scripts.SUCCEED, keys, (candidate, kept, user or "", 0)))
        return agreed_id(value) or candidate

    async def claim_expired(self, now: float, limit: int) -> list[EndedSession]:
        """Sessions whose time was over at `now`, claimed for the caller."""
        await self._clock.compare()
        self._link.forget_closed()
        return await self._sweep.claim_expired(self._writer.instant(now), limit)

    async def ack_ends(self, ended: Sequence[EndedSession]) -> None:
        """These ends have been reported."""
        await self._sweep.ack_ends([end.session_id for end in ended])

    async def active(self) -> int:
        """Live sessions of the service."""
        now = self._writer.instant(time.time()) / 1e6
        return int(await self._link.run(Run("ZCOUNT", (self._keys.deadlines,), (f"{now:.6f}", "+inf"))))

    async def aclose(self) -> None:
        """Close the client of the running loop."""
        await self._link.aclose()
