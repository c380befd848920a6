"""Read sessions straight from Redis, with few commands, without taking part in anything."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final, cast

from otel_mcp.cli.document import Document, parse
from otel_mcp.cli.store import Command, Connection
from otel_mcp.settings import Settings
from otel_mcp.store.base import StoreDown
from otel_mcp.store.redis.keys import Keys

UNNAMED: Final = "unknown_service"
"""The name of a service where nobody gave one."""
_AT_ONCE: Final = 500
"""Documents that one MGET brings while all keys are looked at."""
_CALLERS: Final = """
local found = {}
for at, key in ipairs(KEYS) do
  local user = redis.pcall('HGET', key, 'u')
  found[at] = type(user) == 'string' and user
end
return found
"""


@dataclass(slots=True)
class Member:
    """A session in the index of its service."""

    session_id: str
    score: float
    """Unix seconds at which its time is over; negative where it waits to be taken out."""


class Reader:
    """Reads the sessions of one service, or of those whose names match a pattern with ``*``."""

    def __init__(self, settings: Settings, service: str | None = None) -> None:
        self._service = service or settings.service_name
        self._prefix = settings.redis_prefix
        self._keys = Keys(self._prefix, self._service)
        self._redis = Connection(settings)
        self._indexes: list[str] | None = None if "*" in self._service else [self._keys.deadlines]

    @classmethod
    async def find(cls, settings: Settings, service: str | None) -> Reader:
        """A reader of the service that is asked for, else of this environment's, else of all that there are."""
        reader = cls(settings, service)
        if service is None and settings.service_name == UNNAMED and not (await reader.index(1))[0]:
            reader._service, reader._indexes = "*", None
        return reader

    @property
    def is_of_all(self) -> bool:
        """Whether several services may be meant."""
        return "*" in self._service

    async def aclose(self) -> None:
        """Close the connection."""
        await self._redis.aclose()

    async def index(self, count: int) -> tuple[list[Member], int]:
        """The newest sessions of the index, newest first, and how many live ones there are in all."""
        commands: list[Command] = []
        for key in await self._find_indexes():
            commands.append(("ZREVRANGE", key, 0, count - 1, "WITHSCORES"))
            commands.append(("ZCOUNT", key, f"{time.time():.3f}", "+inf"))
        found = await self._redis.run_all(commands)
        members = [member for part in found[::2] for member in _members(part)]
        members.sort(key=lambda member: member.score, reverse=True)
        return members[:count], sum(int(live) for live in found[1::2])

    async def active(self, spans: Sequence[tuple[float, float]], count: int) -> list[Member]:
        """Sessions whose time is over within one of the spans, `count` of each at most, the latest first."""
        found = await self._redis.run_all(
            [
                ("ZREVRANGEBYSCORE", key, f"{high:.6f}", f"{low:.6f}", "WITHSCORES", "LIMIT", 0, count)
                for key in await self._find_indexes()
                for low, high in spans
            ]
        )
        return [member for part in found for member in _members(part)]

    async def sample(self, count: int) -> list[Member]:
        """Some sessions of the index at random."""
        keys = await self._find_indexes()
        found = await self._redis.run_all([("ZRANDMEMBER", key, count, "WITHSCORES") for key in keys])
        return [member for part in found for member in _members(part)]

    async def documents(self, session_ids: Iterable[str]) -> list[Document]:
        """The documents of these sessions, without those that are gone or cannot be read."""
        return await self._documents([self._keys.session(session_id)[0] for session_id in session_ids])

    async def add_callers(self, documents: Sequence[Document]) -> None:
        """Fill in whose sessions these are, as far as this account may ask."""
        keys = [self._keys.session(document.session_id)[1] for document in documents]
        if not keys:
            return
        try:
            if self._redis.is_cluster:
                found = await self._redis.run_all([("HGET", key, "u") for key in keys])
            else:
                (found,) = await self._redis.run_all([("EVAL", _CALLERS, len(keys), *keys)])
        except StoreDown as down:
            if not down.denied:
                raise
            return
        for document, user in zip(documents, found, strict=True):
            document.caller = user.decode("utf-8", "replace") if isinstance(user, bytes) else None

    async def one(self, session_id: str) -> Document | None:
        """The session of exactly this id."""
        found = await self.documents([session_id])
        return found[0] if found else None

    async def beginning(self, prefix: str, limit: int) -> list[Document]:
        """Sessions of any service, ended ones too, whose ids begin so: found by a scan, `limit` at most."""
        found: list[Document] = []
        async for document in self._scan(prefix):
            found.append(document)
            if len(found) >= limit:
                break
        return found

    async def everything(self, limit: int) -> list[Document]:
        """Sessions, ended ones too, found by a scan: `limit` at most."""
        found: list[Document] = []
        async for document in self._scan(""):
            if self._is_asked_for(document.service or ""):
                found.append(document)
                if len(found) >= limit:
                    break
        return found

    async def services(self) -> list[str]:
        """The services that have sessions, found by a scan."""
        before, after = Keys(self._prefix, "").service[:-1], ":deadlines"
        names: set[str] = set()
        async for key in self._redis.scan(f"{_literal(before)}*{after}", "zset"):
            names.add(key.decode("utf-8", "replace")[len(before) : -len(after)])
        return sorted(names)

    def _is_asked_for(self, service: str) -> bool:
        return fnmatchcase(service, self._service) if "*" in self._service else service == self._service

    async def _find_indexes(self) -> list[str]:
        if self._indexes is None:
            found = [name for name in await self.services() if self._is_asked_for(name)]
            self._indexes = [Keys(self._prefix, name).deadlines for name in found]
        return self._indexes

    async def _scan(self, id_prefix: str) -> AsyncIterator[Document]:
        names: list[str] = []
        async for key in self._redis.scan(_literal(self._keys.session(id_prefix)[0]) + "*", "string"):
            names.append(key.decode("utf-8", "replace"))
            if len(names) >= _AT_ONCE:
                for document in await self._documents(names):
                    yield document
                names = []
        for document in await self._documents(names):
            yield document

    async def _documents(self, names: Sequence[str]) -> list[Document]:
        if not names:
            return []
        if self._redis.is_cluster or len(names) == 1:
            values = await self._redis.run_all([("GET", name) for name in names])
        else:
            (values,) = await self._redis.run_all([("MGET", *names)])
        return [found for raw in values if (found := parse(raw)) is not None]


def _literal(text: str) -> str:
    return "".join(f"\\{character}" if character in "*?[]\\" else character for character in text)


def _members(found: object) -> list[Member]:
    """Members and scores: in pairs or in a row, as the version of the protocol has it."""
    flat: list[Any] = []
    for item in cast("list[Any]", found) if isinstance(found, list) else []:
        flat.extend(cast("list[Any]", item) if isinstance(item, list) else [item])
    return [Member(flat[at].decode("utf-8", "replace"), float(flat[at + 1])) for at in range(0, len(flat), 2)]
