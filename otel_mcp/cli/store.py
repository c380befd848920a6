"""Read sessions from Redis, connected as the server connects, with few commands and without writing anything."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager
from fnmatch import fnmatchcase
from importlib.util import find_spec
from random import sample
from typing import Any, Final, NamedTuple, TypeVar, cast
from urllib.parse import urlsplit

from otel_mcp.cli.document import Document, Open, open_calls, parse
from otel_mcp.cli.terminal import Code, Failure, say
from otel_mcp.sessions.tables import IN_FLIGHT_KEPT
from otel_mcp.settings import PREFIX, Settings, load
from otel_mcp.store.base import StoreDown
from otel_mcp.store.redis.client import connect, run_all, translated
from otel_mcp.store.redis.codec import Keys
from otel_mcp.store.redis.errors import is_foreign

T = TypeVar("T")
CALLER_DIGITS: Final = 8
"""Digits of the keyed hash of a user that are shown: enough to tell users apart."""
_URLS: Final = "redis://, rediss://, unix://, redis+sentinel://host:26379/mymaster or redis+cluster://host:6379"

_KEYS_PER_SCAN: Final = 10_000
"""Keys that one SCAN visits, which takes the server a few milliseconds."""
_DOCUMENTS_PER_MGET: Final = 2_000
_DOCUMENTS_PER_SCAN: Final = 500
"""Documents that one MGET reads while all keys are scanned."""
_TIMEOUTS: Final = {"socket_timeout": 5.0, "socket_connect_timeout": 3.0}
"""Seconds; longer than a server's, since a person can wait."""
_CALLERS_SCRIPT: Final = """local found = {}
for index, key in ipairs(KEYS) do
  local user = redis.pcall('HGET', key, 'u')
  found[index] = type(user) == 'string' and user
end
return found"""
"""Lua: the user of each session."""


class Member(NamedTuple):
    """A session in the index of its service."""

    session_id: str
    score: float
    """Deadline in Unix seconds; negative = closed, and waiting for its end to be reported."""


class Connection:
    """One client of Redis, Sentinel or Cluster, used by one event loop."""

    def __init__(self, settings: Settings, **options: Any) -> None:
        """Make a client that connects later; raises `ValueError` for an unusable URL."""
        # Without a client name, which costs two commands.
        nameless = {"driver_info": None} if find_spec("redis.driver_info") else {"lib_name": None, "lib_version": None}
        self.client: Any = connect(settings.redis_url or "", **{**nameless, **options})
        self.is_cluster = urlsplit(settings.redis_url or "").scheme.endswith("+cluster")
        """Whether keys are spread over nodes: then no command may take keys of several slots."""

    async def send(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Run all commands in one round trip to each node; errors stand in place of results."""
        with translated():
            return await run_all(self.client, commands)

    async def run_all(self, *commands: tuple[Any, ...]) -> list[Any]:
        """Run all commands; errors stand in place of results only for keys that hold others' data."""
        results = await self.send(commands)
        with translated():
            for result in results:
                if isinstance(result, Exception) and not is_foreign(result):
                    raise result
        return results

    async def scan(self, pattern: str) -> AsyncIterator[str]:
        """Yield every key that matches `pattern`; visits all keys of the server."""
        with translated():
            if self.is_cluster:
                await self.client.initialize()
            async for key in self.client.scan_iter(match=pattern, count=_KEYS_PER_SCAN):
                yield key.decode("utf-8", "replace")


class Reader:
    """Reads the sessions of one service, or of those whose names match a pattern with ``*``."""

    def __init__(self, settings: Settings, service: str | None = None) -> None:
        """Make a reader that connects later.

        Raises:
            Failure: the URL cannot be used.
        """
        self._service = service or settings.service_name
        self._prefix = settings.redis_prefix
        self._keys = Keys(self._prefix, self._service)
        self._indexes: list[str] | None = None if "*" in self._service else [self._keys.deadlines]
        try:
            self._redis = Connection(settings, **_TIMEOUTS)
        except (ValueError, TypeError, OverflowError):
            # `from None`, since the text of the error may contain a password.
            raise Failure(Code.USAGE, "the Redis URL cannot be used", _URLS) from None

    @classmethod
    @asynccontextmanager
    async def find(cls, settings: Settings, service: str | None) -> AsyncGenerator[Reader]:
        """Read the given service, else the one of this environment, else all services."""
        async with aclosing(cls(settings, service)) as reader:
            if service is None and settings.service_name == "unknown_service" and not (await reader.index(1))[0]:
                reader._service, reader._indexes = "*", None
            yield reader

    @property
    def is_of_all(self) -> bool:
        """Whether this reads several services."""
        return "*" in self._service

    async def aclose(self) -> None:
        """Close the connection."""
        await self._redis.client.aclose()

    async def index(self, count: int) -> tuple[list[Member], int]:
        """Return at most `count` live sessions, newest first, and the number of all live sessions."""
        commands, now = list[tuple[Any, ...]](), f"{time.time():.3f}"
        for key in await self._find_indexes():
            commands.append(("ZREVRANGEBYSCORE", key, "+inf", now, "WITHSCORES", "LIMIT", 0, count))
            commands.append(("ZCOUNT", key, now, "+inf"))
        found = await self._redis.run_all(*commands)
        members = sorted(_members(found[::2]), key=lambda member: member.score, reverse=True)
        return members[:count], sum(each for each in found[1::2] if isinstance(each, int))

    async def active(self, ranges: Sequence[tuple[float, float]], count: int) -> list[Member]:
        """Return the sessions with a score in one of the ranges, at most `count` of each, highest first."""
        commands = [
            ("ZREVRANGEBYSCORE", key, f"{high:.6f}", f"{low:.6f}", "WITHSCORES", "LIMIT", 0, count)
            for key in await self._find_indexes()
            for low, high in ranges
        ]
        return _members(await self._redis.run_all(*commands))

    async def sample(self, count: int) -> list[Member]:
        """Return `count` random sessions of each index, without ZRANDMEMBER, which came with Redis 6.2."""
        indexes = await self._find_indexes()
        sizes = await self._redis.run_all(*(("ZCARD", key) for key in indexes))
        sized = [(key, size) for key, size in zip(indexes, sizes, strict=True) if isinstance(size, int)]
        ranks = [(key, rank) for key, size in sized for rank in sample(range(size), min(count, size))]
        return _members(await self._redis.run_all(*(("ZRANGE", key, at, at, "WITHSCORES") for key, at in ranks)))

    async def in_flight(self) -> list[Open]:
        """Return the calls that have been in flight for long, oldest first; none without permission."""
        found = list(map(open_calls, await self.values("in_flight")))
        # By the clock of the processes: entries of one that has died stay among those of others.
        since = max((at for at, _ in found), default=0.0) - IN_FLIGHT_KEPT
        return sorted((call for at, calls in found if at > since for call in calls), key=lambda call: call.started)

    async def values(self, key: str) -> list[bytes]:
        """Return all values of a hash that each service has; none without permission."""
        names = [index.removesuffix("deadlines") + key for index in await self._find_indexes()]
        found = await self._if_allowed(*(("HVALS", name) for name in names))
        return [value for part in found or () if isinstance(part, list) for value in cast("list[bytes]", part)]

    async def _if_allowed(self, *commands: tuple[Any, ...]) -> list[Any] | None:
        """Run all commands; ``None`` = this account has no permission."""
        try:
            return await self._redis.run_all(*commands)
        except StoreDown as down:
            if not down.denied:
                raise
            return None

    async def documents(self, session_ids: Iterable[str]) -> list[Document]:
        """Return the documents of these sessions, leaving out those that are gone or cannot be read."""
        names, found = [self._keys.session(session_id)[0] for session_id in session_ids], list[Document]()
        for first in range(0, len(names), _DOCUMENTS_PER_MGET):
            found += await self._documents(names[first : first + _DOCUMENTS_PER_MGET])
        return found

    async def _documents(self, names: Sequence[str]) -> list[Document]:
        if self._redis.is_cluster or len(names) < 2:
            values = await self._redis.run_all(*(("GET", name) for name in names))
        else:
            (values,) = await self._redis.run_all(("MGET", *names))
        return [found for raw in values if (found := parse(raw)) is not None]

    async def add_callers(self, documents: Sequence[Document]) -> None:
        """Set `caller` of each document, if this account has permission to read it."""
        keys = [self._keys.session(document.session_id)[1] for document in documents]
        if not keys:
            return
        single: list[tuple[Any, ...]] = [("HGET", key, "u") for key in keys]
        commands = single if self._redis.is_cluster else [("EVAL", _CALLERS_SCRIPT, len(keys), *keys)]
        if found := await self._if_allowed(*commands):
            for document, user in zip(documents, found if self._redis.is_cluster else found[0], strict=True):
                document.caller = user.decode("utf-8", "replace")[:CALLER_DIGITS] if isinstance(user, bytes) else None

    async def scan(self, prefix: str, limit: int, *, is_of_any: bool) -> list[Document]:
        """Scan all keys for sessions, ended ones too, whose ids begin with `prefix`; return at most `limit`."""
        found, names = list[Document](), list[str]()

        async def add() -> None:
            documents = await self._documents(names)
            found.extend(each for each in documents if is_of_any or self._matches(each.service or ""))
            names.clear()

        async for name in self._redis.scan(_literal(self._keys.session(prefix)[0]) + "*"):
            names.append(name)
            if len(names) >= _DOCUMENTS_PER_SCAN:
                await add()
            if len(found) >= limit:
                break
        if names:
            await add()
        return found[:limit]

    def _matches(self, service: str) -> bool:
        return fnmatchcase(service, self._service) if "*" in self._service else service == self._service

    async def _find_indexes(self) -> list[str]:
        if self._indexes is None:
            before, after = Keys(self._prefix, "").service[:-1], ":deadlines"
            found = [name async for name in self._redis.scan(f"{_literal(before)}*{after}")]
            self._indexes = sorted(name for name in found if self._matches(name[len(before) : -len(after)]))
        return self._indexes


def _literal(text: str) -> str:
    return "".join(f"\\{character}" if character in "*?[]\\" else character for character in text)


def _members(found: Sequence[Any]) -> list[Member]:
    """Read members and scores of several replies: nested pairs in RESP3, a flat list in RESP2."""
    items = [item for part in found if isinstance(part, list) for item in cast("list[Any]", part)]
    flat = [each for item in items for each in (cast("list[Any]", item) if isinstance(item, list) else [item])]
    return [Member(name.decode("utf-8", "replace"), float(at)) for name, at in zip(flat[::2], flat[1::2], strict=True)]


def configured(redis_url: str | None) -> Settings:
    """Read the settings of this environment.

    Raises:
        Failure: no Redis URL is set.
    """
    settings = load(redis_url=redis_url)
    if not settings.redis_url:
        raise Failure(Code.USAGE, "no Redis URL", f"set {PREFIX}REDIS_URL to the server's value, or pass --redis-url")
    return settings


def run(work: Coroutine[Any, Any, T], settings: Settings) -> T:
    """Run a coroutine that reads Redis; raise `Failure` if Redis cannot be used."""
    try:
        return asyncio.run(work)
    except StoreDown as down:
        raise away(down, settings) from None
    except KeyboardInterrupt:
        raise Failure(Code.INTERRUPTED) from None


async def repeat(look: Callable[[], Awaitable[T]], pause: float, settings: Settings) -> AsyncIterator[T]:
    """Yield the result of `look` every `pause` seconds; wait for Redis if it goes away after the first result.

    Raises:
        StoreDown: Redis cannot be used at first, or denies access later.
    """
    gc.enable()  # `main` disables it for commands that end soon.
    found, is_away = False, False
    while True:
        try:
            seen = await look()
        except StoreDown as down:
            if down.denied or not found:
                raise
            if not is_away:
                say(f"otel-mcp: {away(down, settings).message}; waiting for it")
            is_away = True
        else:
            if is_away:
                say("otel-mcp: Redis is back")
            found, is_away = True, False
            yield seen
        await asyncio.sleep(pause)


def away(down: StoreDown, settings: Settings) -> Failure:
    """Make the failure that names why Redis cannot be used, with a hint."""
    where, variable = address(settings.redis_url or ""), f"{PREFIX}REDIS_URL"
    if down.denied:
        hint = f"check user, password and permissions in {variable} (SECURITY.md lists what an account needs)"
        return Failure(Code.STORE, f"Redis at {where} denies access ({down.reason})", hint)
    hint = f"is it running, and does {variable} name it?"
    return Failure(Code.STORE, f"Redis at {where} cannot be used ({down.reason})", hint)


def address(url: str) -> str:
    """Return the host and port, or path, of a URL without user, password and options."""
    parts = urlsplit(url)
    return parts.netloc.rpartition("@")[2] or parts.path
