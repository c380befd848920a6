"""Read sessions straight from Redis, opened as the server opens it, with few commands, taking part in nothing."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager
from fnmatch import fnmatchcase
from importlib.util import find_spec
from typing import Any, Final, NamedTuple, TypeVar, cast
from urllib.parse import urlsplit

from otel_mcp.cli.document import Document, Open, open_calls, parse
from otel_mcp.cli.terminal import Code, Failure, say
from otel_mcp.settings import PREFIX, Settings, load
from otel_mcp.store.base import StoreDown
from otel_mcp.store.redis.client import connect, is_foreign, translated
from otel_mcp.store.redis.codec import Keys

T = TypeVar("T")
CALLER: Final = 8
"""Digits of the keyed hash of a user that are shown."""
_URLS: Final = "redis://, rediss://, unix://, redis+sentinel://host:26379/mymaster or redis+cluster://host:6379"
_UNNAMED: Final = "unknown_service"
"""The name of a service where nobody gave one."""
_SCANNED: Final = 10_000
"""Keys that one SCAN looks at: some ms of the server."""
_AT_ONCE: Final = 2_000
"""Documents that one MGET brings: a list is one."""
_BATCH: Final = 500
"""The same while all keys are looked at."""
_PATIENCE: Final = {"socket_timeout": 5.0, "socket_connect_timeout": 3.0}
"""Seconds; a person waits longer than a server may."""
_CALLERS: Final = """
local found = {}
for at, key in ipairs(KEYS) do
  local user = redis.pcall('HGET', key, 'u')
  found[at] = type(user) == 'string' and user
end
return found
"""


class Member(NamedTuple):
    """A session in the index of its service."""

    session_id: str
    score: float
    """Unix seconds at which its time is over; negative where it waits to be taken out."""


class Connection:
    """One client of Redis, Sentinel or Cluster, used by one loop."""

    def __init__(self, settings: Settings, **options: Any) -> None:
        """Connect to nothing yet; `ValueError` = the URL cannot be used."""
        # Without its name, which takes redis-py two commands.
        nameless = {"driver_info": None} if find_spec("redis.driver_info") else {"lib_name": None, "lib_version": None}
        self.client: Any = connect(settings.redis_url or "", **{**nameless, **options})
        self.is_cluster = urlsplit(settings.redis_url or "").scheme.endswith("+cluster")
        """Keys lie on several nodes: no command is about keys of several slots."""

    async def send(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Run all in one round trip to each node; return the results, with an error in the place of its result."""
        with translated():
            if self.is_cluster:
                return await self.client.run_all(commands)
            pipeline = self.client.pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command)
            return await pipeline.execute(raise_on_error=False)

    async def run_all(self, *commands: tuple[Any, ...]) -> list[Any]:
        """Run all; return the results, with an error only where a key holds what is not ours."""
        results = await self.send(commands)
        with translated():
            for result in results:
                if isinstance(result, Exception) and not is_foreign(result):
                    raise result
        return results

    async def scan(self, pattern: str, kind: str) -> AsyncIterator[str]:
        """Yield every key that is like `pattern` and holds a `kind`; looks at all keys there are."""
        with translated():
            if self.is_cluster:
                await self.client.initialize()
            async for key in self.client.scan_iter(match=pattern, count=_SCANNED, _type=kind):
                yield key.decode("utf-8", "replace")


class Reader:
    """Reads the sessions of one service, or of those whose names match a pattern with ``*``."""

    def __init__(self, settings: Settings, service: str | None = None) -> None:
        """Connect to nothing yet.

        Raises:
            Failure: the URL cannot be used.
        """
        self._service = service or settings.service_name
        self._prefix = settings.redis_prefix
        self._keys = Keys(self._prefix, self._service)
        self._indexes: list[str] | None = None if "*" in self._service else [self._keys.deadlines]
        try:
            self._redis = Connection(settings, **_PATIENCE)
        except (ValueError, TypeError, OverflowError):
            raise Failure(Code.USAGE, "the Redis URL cannot be used", _URLS) from None  # Its text may hold passwords.

    @classmethod
    @asynccontextmanager
    async def find(cls, settings: Settings, service: str | None) -> AsyncGenerator[Reader]:
        """Read the service that is asked for, else that of this environment, else all that there are."""
        async with aclosing(cls(settings, service)) as reader:
            if service is None and settings.service_name == _UNNAMED and not (await reader.index(1))[0]:
                reader._service, reader._indexes = "*", None
            yield reader

    @property
    def is_of_all(self) -> bool:
        """Whether several services may be meant."""
        return "*" in self._service

    async def aclose(self) -> None:
        """Close the connection."""
        await self._redis.client.aclose()

    async def index(self, count: int) -> tuple[list[Member], int]:
        """Return the newest live sessions, newest first, and how many live ones there are in all."""
        commands, now = list[tuple[Any, ...]](), f"{time.time():.3f}"
        for key in await self._find_indexes():
            commands.append(("ZREVRANGEBYSCORE", key, "+inf", now, "WITHSCORES", "LIMIT", 0, count))
            commands.append(("ZCOUNT", key, now, "+inf"))
        found = await self._redis.run_all(*commands)
        members = sorted(_members(found[::2]), key=lambda member: member.score, reverse=True)
        return members[:count], sum(map(int, found[1::2]))

    async def active(self, spans: Sequence[tuple[float, float]], count: int) -> list[Member]:
        """Return sessions whose time is over within one of the spans, `count` of each at most, the latest first."""
        commands = [
            ("ZREVRANGEBYSCORE", key, f"{high:.6f}", f"{low:.6f}", "WITHSCORES", "LIMIT", 0, count)
            for key in await self._find_indexes()
            for low, high in spans
        ]
        return _members(await self._redis.run_all(*commands))

    async def sample(self, count: int) -> list[Member]:
        """Return some sessions of the index at random."""
        indexes = await self._find_indexes()
        return _members(await self._redis.run_all(*(("ZRANDMEMBER", key, count, "WITHSCORES") for key in indexes)))

    async def in_flight(self) -> list[Open]:
        """Return the calls that have been in flight for long, the oldest first, as far as this account may ask."""
        found = [call for value in await self.values("in_flight") for call in open_calls(value)]
        return sorted(found, key=lambda call: call.started)

    async def values(self, key: str) -> list[bytes]:
        """Return all values of a hash that each service has, as far as this account may ask."""
        names = [index.removesuffix("deadlines") + key for index in await self._find_indexes()]
        found = await self._if_allowed(*(("HVALS", name) for name in names))
        return [value for part in found or () if isinstance(part, list) for value in cast("list[bytes]", part)]

    async def _if_allowed(self, *commands: tuple[Any, ...]) -> list[Any] | None:
        """Run all; ``None`` where this account may not."""
        try:
            return await self._redis.run_all(*commands)
        except StoreDown as down:
            if not down.denied:
                raise
            return None

    async def documents(self, session_ids: Iterable[str]) -> list[Document]:
        """Return the documents of these sessions, without those that are gone or cannot be read."""
        names, found = [self._keys.session(session_id)[0] for session_id in session_ids], list[Document]()
        for first in range(0, len(names), _AT_ONCE):
            found += await self._documents(names[first : first + _AT_ONCE])
        return found

    async def _documents(self, names: Sequence[str]) -> list[Document]:
        if self._redis.is_cluster or len(names) < 2:
            values = await self._redis.run_all(*(("GET", name) for name in names))
        else:
            (values,) = await self._redis.run_all(("MGET", *names))
        return [found for raw in values if (found := parse(raw)) is not None]

    async def add_callers(self, documents: Sequence[Document]) -> None:
        """Fill in whose sessions these are, as far as this account may ask."""
        keys = [self._keys.session(document.session_id)[1] for document in documents]
        if not keys:
            return
        alone: list[tuple[Any, ...]] = [("HGET", key, "u") for key in keys]
        commands = alone if self._redis.is_cluster else [("EVAL", _CALLERS, len(keys), *keys)]
        if found := await self._if_allowed(*commands):
            for document, user in zip(documents, found if self._redis.is_cluster else found[0], strict=True):
                document.caller = user.decode("utf-8", "replace")[:CALLER] if isinstance(user, bytes) else None

    async def scan(self, prefix: str, limit: int, *, is_of_any: bool) -> list[Document]:
        """Find sessions whose ids begin so, ended ones too, of our service or of any, by a scan; `limit` at most."""
        found, names = list[Document](), list[str]()

        async def add() -> None:
            found.extend(
                each for each in await self._documents(names) if is_of_any or self._matches(each.service or "")
            )
            names.clear()

        async for name in self._redis.scan(_literal(self._keys.session(prefix)[0]) + "*", "string"):
            names.append(name)
            if len(names) >= _BATCH:
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
            found = [name async for name in self._redis.scan(f"{_literal(before)}*{after}", "zset")]
            self._indexes = sorted(name for name in found if self._matches(name[len(before) : -len(after)]))
        return self._indexes


def _literal(text: str) -> str:
    return "".join(f"\\{character}" if character in "*?[]\\" else character for character in text)


def _members(found: Sequence[Any]) -> list[Member]:
    """Read members and scores of several answers: in pairs or in a row, as the version of the protocol has it."""
    items = [item for part in found if isinstance(part, list) for item in cast("list[Any]", part)]
    flat = [each for item in items for each in (cast("list[Any]", item) if isinstance(item, list) else [item])]
    return [Member(flat[at].decode("utf-8", "replace"), float(flat[at + 1])) for at in range(0, len(flat), 2)]


def configured(redis_url: str | None) -> Settings:
    """Read the settings of this environment.

    Raises:
        Failure: they name no Redis.
    """
    settings = load(redis_url=redis_url)
    if not settings.redis_url:
        raise Failure(Code.USAGE, "no Redis", f"set {PREFIX}REDIS_URL as the server has it, or give --redis-url")
    return settings


def run(work: Coroutine[Any, Any, T], settings: Settings) -> T:
    """Run what talks to Redis."""
    try:
        return asyncio.run(work)
    except StoreDown as down:
        raise away(down, settings) from None
    except KeyboardInterrupt:
        raise Failure(Code.INTERRUPTED) from None


async def repeat(look: Callable[[], Awaitable[T]], pause: float, settings: Settings) -> AsyncIterator[T]:
    """Yield what `look` finds, every `pause` seconds; wait while a Redis that could be used at first is away.

    Raises:
        StoreDown: it cannot be used at first, or refuses access later on.
    """
    gc.enable()  # `main` has switched it off for what ends soon.
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
    """Say what is wrong with a Redis that cannot be used."""
    where, variable = address(settings.redis_url or ""), f"{PREFIX}REDIS_URL"
    if down.denied:
        hint = f"check user, password and permissions in {variable} (SECURITY.md lists what an account needs)"
        return Failure(Code.STORE, f"Redis at {where} does not let us in ({down.reason})", hint)
    hint = f"is it running, and is it the one of {variable}?"
    return Failure(Code.STORE, f"Redis at {where} cannot be used ({down.reason})", hint)


def address(url: str) -> str:
    """Return where a URL points to, without user, password and options."""
    parts = urlsplit(url)
    return parts.netloc.rpartition("@")[2] or parts.path
