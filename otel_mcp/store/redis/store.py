"""Sessions in Redis or Valkey: two keys per session, one script call per flush.

The rules are in the scripts (``lua/``), which run in the slot of the session.
Keys in other slots (deadlines, agreed values) are written separately, in an
order that makes a crash in between harmless.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from pydantic import ValidationError
from redis.exceptions import ResponseError

from otel_mcp.model.delta import EndedSession, Flush, Known, SessionFacts, WriteResult
from otel_mcp.model.session import Interruption, Refusal, Return
from otel_mcp.model.state import SessionState
from otel_mcp.settings import Settings
from otel_mcp.store import document as text
from otel_mcp.store.base import VISITS, VISITS_KEPT, Change, ProducerId, StoreDown
from otel_mcp.store.redis import codec, replies
from otel_mcp.store.redis.client import Client, RedisLink, Run, connect, put_recent, recent
from otel_mcp.store.redis.codec import Keys, Script, agreed_id, mark
from otel_mcp.store.redis.errors import is_foreign
from otel_mcp.store.redis.flush import FlushWriter
from otel_mcp.store.redis.reports import Interruptions, Sweep

_UNWRITTEN: Final = 120_000
"""Milliseconds until the note of a handshake expires unless written: more than the longest flush interval."""


class RedisStore:
    """A `SessionStore` (its methods are described there) on one Redis, Sentinel or Cluster.

    `client` makes the client of a loop; by default from the URL in the settings.

    A document of another writer is not changed, unless it parses as a session
    of the same id and service: then its stats were lost (evicted), or the user
    put it there, and it is taken over.
    """

    def __init__(
        self, settings: Settings, process: ProducerId | None = None, *, client: Callable[[], Client] | None = None
    ) -> None:
        url = settings.redis_url or ""
        self._process = process = process or ProducerId()
        self._ttl = min(settings.session_ttl, codec.LONGEST)
        self._keys = Keys(settings.redis_prefix, settings.service_name)
        self._link = RedisLink(client or (lambda: connect(url)))
        self._writer = codec.Writer(settings.service_name, self._ttl, settings.max_tool_calls, process)
        self._flushes = FlushWriter(self._link, self._keys, self._writer)
        self._interruptions = Interruptions(self._link, self._keys, self._writer, process)
        self._sweep = Sweep(self._link, self._keys, self._writer, process, settings.sweep_interval, self._ttl)

    @property
    def ahead(self) -> float:
        return self._writer.ahead

    async def apply(self, deltas: Sequence[Flush]) -> list[WriteResult]:
        answers = await self._flushes.write(deltas) if deltas else []
        for at, answer in enumerate(answers):
            if answer.refused == "foreign":
                answers[at] = await self._adopted(deltas[at], answer)
        return answers

    async def _adopted(self, flush: Flush, refused: WriteResult) -> WriteResult:
        """Take over the document that made the flush fail, if it is a session of ours; return the new answer."""
        answer = refused
        try:
            held, digest = await self._replaceable(refused.session_id)
            if held is not None and await self._save(held, digest, ended=True) is not None:
                (answer,) = await self._flushes.write([flush])
        except StoreDown as down:
            answer = WriteResult(refused.session_id, retry=down.reason)
        answer.expired = answer.expired or refused.expired
        return answer

    async def load(self, session_id: str) -> SessionState | None:
        return _parse(await self._raw(session_id), session_id)

    async def save(self, state: SessionState, *, only_new: bool = False) -> WriteResult:
        session_id = state.session_id
        created = await self._save(state, "", only_new=only_new)
        if created is None:
            held, digest = await self._replaceable(session_id)
            if held is not None:
                created = False if only_new else await self._save(state, digest)
        if created is None:
            await self._look_at_next(session_id)
            return WriteResult(session_id, refused="foreign")
        return WriteResult(session_id, created=created)

    async def delete(self, session_id: str, *, reported: bool = True) -> bool:
        """Remove a session at once; if its end is not `reported`, the next sweep reports it."""
        status, existed = await self._delete(session_id, "", reported)
        if status == "foreign":
            held, digest = await self._replaceable(session_id)
            if held is None:
                return False
            _, existed = await self._delete(session_id, digest, reported)
        await self._look_at_next(session_id)
        return bool(existed)

    async def end(self, session_id: str) -> bool:
        """Remove a session at once; a serving process reports its end with its next sweep."""
        return await self.delete(session_id, reported=False)

    async def describe(self, session_id: str) -> Known:
        keys = (*self._keys.session(session_id), self._keys.successor(session_id))
        reply = await self._unless_foreign(codec.DESCRIBE, keys, self._writer.owner)
        return Known(exists=False) if reply is None else replies.known(session_id, reply)

    async def bind(self, facts: SessionFacts) -> None:
        keys, shown = self._keys.session(facts.session_id), text.known(facts)
        client = shown.get("client_name", ""), shown.get("client_version", "")
        await self._unless_foreign(codec.BIND, keys, facts.principal or "", self._writer.owner, _UNWRITTEN, *client)

    async def get(self, key: str) -> str | None:
        return agreed_id(await self._link.run(Run("GET", (self._keys.agreement(key),))))

    async def get_or_set(self, key: str, candidate: str, ttl: float) -> str:
        kept = max(round(min(ttl, codec.LONGEST) * 1000), 1) if ttl else 0
        value = await self._link.run(Run(codec.GET_OR_SET, (self._keys.agreement(key),), (candidate, kept)))
        # The value kept forever is the hash key, which an operator may have set: it is no id.
        return (agreed_id(value) or candidate) if kept else value.decode("utf-8", "replace")

    async def set_value(self, key: str, value: str, ttl: float) -> None:
        await self._link.run(Run("SET", (self._keys.agreement(key),), (value, "PX", max(round(ttl * 1000), 1))))

    async def get_or_set_successor(self, old_id: str, candidate: str, user: str | None = None) -> str:
        keys = (self._keys.successor(old_id), self._keys.session(old_id)[1])
        value = await self._link.run(Run(codec.GET_OR_SET, keys, (candidate, self._writer.ttl, 0, user or "")))
        return agreed_id(value) or candidate

    async def entries(self, table: str, names: Sequence[str] | None = None) -> dict[str, str]:
        key = (self._keys.agreement(table),)
        if names is None:
            held: Any = await self._unless_foreign("HGETALL", key) or {}
            return {_text(name): _text(value) for name, value in held.items()}
        values: Any = await self._unless_foreign("HMGET", key, *map(_raw, names)) or ()
        return {name: _text(value) for name, value in zip(names, values, strict=False) if value is not None}

    async def swap(self, table: str, changes: Mapping[str, Change], most: int, kept: float) -> set[str]:
        of = ((name, former, new, *(place or ("", ""))) for name, (former, new, place) in changes.items())
        parts = [_raw(part or "") for change in of for part in change]
        arguments = (most, round(kept * 1000), *parts)
        missed = await self._unless_foreign(codec.SWAP, (self._keys.agreement(table),), *arguments)
        return set(changes) if missed is None else set(map(_text, missed))

    async def claim_expired(self, now: float, limit: int) -> list[EndedSession]:
        self._link.forget_closed()
        return await self._sweep.claim_expired(now - time.time(), limit)

    async def claim_held(self, session_ids: Sequence[str], now: float) -> list[EndedSession]:
        return await self._sweep.claim_held(session_ids, now - time.time())

    async def ack_ends(self, ended: Sequence[EndedSession]) -> None:
        await self._sweep.ack_ends(ended)

    async def visits(self, ended: Sequence[EndedSession]) -> list[list[float]]:
        found: list[list[float]] = [[] for _ in ended]
        runs, places = list[Run](), dict[int, int]()
        for at, end in enumerate(ended):
            if end.facts.visitor is None:
                continue
            key, began = self._keys.visits(end.facts.visitor), text.micros(end.facts.created_at)
            if end.tool_call_count:
                runs.append(Run("DEL", (key,)))
            else:
                runs += (*put_recent(key, began, began, VISITS, VISITS_KEPT), recent(key, began, VISITS_KEPT))
                places[len(runs) - 1] = at
        for at, starts in enumerate(await self._link.run_all(runs) if runs else ()):
            if at in places and not isinstance(starts, Exception):
                found[places[at]] = [int(start) / 1e6 for start in starts]
        return found

    async def callers(self, day: str, hashes: Sequence[str]) -> int:
        key = (self._keys.callers(day),)
        kept = [Run("PFADD", key, tuple(hashes)), Run("PEXPIRE", key, (codec.CALLERS_KEPT,))] if hashes else []
        *_, number = await self._link.answers([*kept, Run("PFCOUNT", key)])
        return int(number or 0)

    async def mark(self, session_id: str, finding: str) -> bool:
        run = Run(codec.MARK, self._keys.session(session_id), (self._writer.owner, finding))
        return bool(await self._link.run(run))

    async def cut(self, refusals: Sequence[Refusal], gone: Sequence[str] = ()) -> list[Interruption]:
        return await self._interruptions.cut(refusals, gone)

    async def back(self, visitor: str, at: float, session_id: str) -> Return | None:
        return await self._interruptions.back(visitor, at, session_id)

    async def active(self) -> int:
        now = self._writer.instant(time.time()) / 1e6
        return int(await self._link.run(Run("ZCOUNT", (self._keys.deadlines,), (f"{now:.6f}", "+inf"))))

    async def aclose(self) -> None:
        await self._link.aclose()

    async def _unless_foreign(self, script: Script | str, keys: tuple[str, ...], *args: Any) -> Any:
        """Run a script or command; `None` if a key holds a value of another type."""
        try:
            return await self._link.run(Run(script, keys, args))
        except ResponseError as error:
            if is_foreign(error):
                return None
            raise

    async def _raw(self, session_id: str) -> bytes | None:
        return await self._unless_foreign("GET", self._keys.session(session_id)[:1])

    async def _replaceable(self, session_id: str) -> tuple[SessionState | None, str]:
        """Return a document of another writer and its digest, if it is a session of ours."""
        raw = await self._raw(session_id)
        held = _parse(raw, session_id)
        if raw is None or held is None or not self._writer.is_of(held):
            return None, ""
        return held, hashlib.sha1(raw, usedforsecurity=False).hexdigest()

    async def _save(
        self, state: SessionState, replaces: str, *, ended: bool = False, only_new: bool = False
    ) -> bool | None:
        """Write a document; return whether this began the session, `None` if the key holds something else."""
        for _ in range(2):
            deadline = round(self._writer.instant(time.time()) / 1e6 + self._ttl, 6)
            arguments = self._writer.save(state, self._ttl, replaces, ended=ended, only_new=only_new)
            results = await self._link.answers(
                [
                    # An existing session keeps its deadline, by its own limit.
                    Run("ZADD", (self._keys.deadlines,), ("NX", deadline, state.session_id)),
                    Run(codec.SAVE, self._keys.session(state.session_id), arguments),
                ]
            )
            if None in results:
                return None
            status, created = results[1]
            if status.decode() != "clock":
                break
            self._writer.learn_clock(int(created), refused=True)
        else:
            raise StoreDown("clock")
        if created and status.decode() == "written":
            # An older entry was another session's, and may be removed at any time, or came from a wrong clock.
            with contextlib.suppress(StoreDown):
                await self._link.run(Run("ZADD", (self._keys.deadlines,), (deadline, state.session_id)))
        return bool(created) if status.decode() == "written" else None

    async def _delete(self, session_id: str, replaces: str, reported: bool) -> tuple[str, int]:
        arguments = (self._writer.owner, replaces, int(not reported))
        reply = await self._unless_foreign(codec.DELETE, self._keys.session(session_id), *arguments)
        return ("foreign", 0) if reply is None else (reply[0].decode(), reply[1])

    async def _look_at_next(self, session_id: str) -> None:
        # The next sweep removes it from the deadlines, unless another session has begun under the id.
        await self._link.run(Run("ZADD", (self._keys.deadlines,), ("XX", mark(), session_id)))


def _text(raw: bytes) -> str:
    """Decode text of any writer, so that `_raw` restores the same bytes."""
    return raw.decode("utf-8", "surrogateescape")


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _parse(raw: bytes | None, session_id: str) -> SessionState | None:
    if raw is None:
        return None
    try:
        state = SessionState.model_validate_json(raw)
    except ValidationError:
        return None
    return state if state.session_id == session_id else None
