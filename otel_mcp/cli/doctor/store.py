"""Whether Redis is there, lets us in, lets us do what we do, and keeps what it is given. Nothing is written."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, Final
from urllib.parse import urlsplit

from redis import exceptions as redis

from otel_mcp.cli.doctor.finding import Finding, export, fail, ok, skip, warn
from otel_mcp.cli.doctor.outage import URL, named, place, template
from otel_mcp.settings import Settings
from otel_mcp.store.redis.cluster import Cluster
from otel_mcp.store.redis.connect import Client, connect
from otel_mcp.store.redis.keys import Keys

PROBE: Final = "otel-mcp-doctor"
"""A session that nobody has."""
SESSION_COMMANDS: Final = (
    "GET k", "GETRANGE k 0 0", "EXISTS k", "DEL k", "HDEL k f", "HGETALL k", "HLEN k", "HMGET k f", "PEXPIRE k 1",
    "TIME", "SET k v", "SETRANGE k 0 v", "HSET k f v", "EVAL x 1 k", "EVALSHA x 1 k",
)  # fmt: skip
"""What is run on the keys of a session."""
INDEX_COMMANDS: Final = (
    "ZADD k XX 0 m", "ZREM k m", "ZSCORE k m", "ZCOUNT k 0 0", "ZRANGEBYSCORE k 0 0", "PEXPIRE k 1", "EVAL x 1 k",
)  # fmt: skip
"""What is run on the index of all sessions."""
_MIB: Final = 1024 * 1024
_SLOW: Final = 0.05
"""Seconds after which a request goes on without an answer of Redis."""
_ALLOWED: Final = """
local refused = {}
local touched = redis.pcall('ZADD', KEYS[2] or KEYS[1], 'XX', 0, ARGV[1])
if type(touched) == 'table' and touched.err and not string.find(touched.err, 'WRONGTYPE', 1, true) then
  refused[1] = touched.err
end
for at = 2, #ARGV do
  local words = {}
  for word in string.gmatch(ARGV[at], '%S+') do words[#words + 1] = word == 'k' and KEYS[1] or word end
  if redis.acl_check_cmd and not redis.acl_check_cmd(unpack(words)) then refused[#refused + 1] = words[1] end
end
return refused
"""
"""Asks the server what this user may do. Adds a member that is not there to no set, which shows a full or read-only
server."""


async def check(settings: Settings) -> list[Finding]:
    """Look at the Redis that the settings name."""
    url = settings.redis_url
    if url is None:
        return [warn("redis", "not configured: sessions live in the memory of each process, and end with it",
                     export(URL, "redis://localhost:6379/0"))]  # fmt: skip
    try:
        client = connect(url)
    except (ValueError, TypeError):
        return [fail("redis", f"{URL} cannot be used: it is no URL of Redis", export(URL, "redis://HOST:6379/0"))]
    try:
        return await _check(client, url, settings)
    except (redis.RedisError, redis.RedisClusterException, OSError, EOFError, asyncio.TimeoutError) as error:
        return [await named(url, error)]
    finally:
        with suppress(Exception):
            await client.aclose()


async def _check(client: Client, url: str, settings: Settings) -> list[Finding]:
    if isinstance(client, Cluster):
        await client.initialize()
        times = [await _timed(client, "GET", PROBE)]
    else:
        await _timed(client, "PING")  # Opens the connection.
        times = [await _timed(client, "PING") for _ in range(3)]
    info = await _info(client)
    server = info.get("valkey_version") or info.get("redis_version")
    name = "Valkey" if "valkey_version" in info else "Redis"
    found = f"{place(url)} answers in {min(times) * 1000:.1f} ms" + (f", {name} {server}" if server else "")
    findings: list[Finding] = []
    if min(times) > _SLOW:
        findings.append(warn("redis", f"{found}: requests do not wait longer than {_SLOW * 1000:.0f} ms"))
    if not isinstance(client, Cluster) and str(info.get("cluster_enabled", "0")) == "1":
        host = place(url).partition("://")[2].partition("/")[0]
        mend = export(URL, template(f"{url.partition('://')[0]}+cluster://{host}"))
        return [fail("redis", f"{place(url)} is a node of a Cluster, and the URL does not say so", mend)]
    if info.get("role") == "slave" and not isinstance(client, Cluster):
        primary = f"redis://{info.get('master_host')}:{info.get('master_port')}/0"
        return [fail("redis", f"{place(url)} is a replica: it takes no writes", export(URL, primary))]
    findings = findings or [ok("redis", found)]
    findings += await _permissions(client, url, settings)
    findings += _memory(info)
    return findings


async def _timed(client: Client, *command: str) -> float:
    loop = asyncio.get_running_loop()
    began = loop.time()
    # A user that may not PING is connected all the same.
    with suppress(redis.NoPermissionError):
        await client.execute_command(*command)
    return loop.time() - began


async def _info(client: Client) -> dict[str, Any]:
    """What the server says of itself, as far as it may be asked."""
    anyone: Any = client
    try:
        if isinstance(client, Cluster):
            found: dict[str, Any] = await anyone.execute_command("INFO", target_nodes="primaries")
            # Of several nodes the fullest; the only one says it without its name.
            return found if "maxmemory" in found else max(found.values(), key=_fill)
        return await anyone.execute_command("INFO", "everything")
    except redis.ResponseError:
        return {}
    except (redis.RedisError, AttributeError, ValueError, KeyError):
        if isinstance(client, Cluster):
            return {}
        raise


def _fill(info: dict[str, Any]) -> float:
    limit = int(info.get("maxmemory", 0))
    return int(info.get("used_memory", 0)) / limit if limit else 0.0


async def _permissions(client: Client, url: str, settings: Settings) -> list[Finding]:
    keys = Keys(settings.redis_prefix, settings.service_name)
    document, stats = keys.session(PROBE)
    refused: set[str] = set()
    for names, commands in (
        ((document, stats), SESSION_COMMANDS),
        ((keys.successor(PROBE),), SESSION_COMMANDS),
        ((keys.deadlines,), INDEX_COMMANDS),
        ((keys.sweeper,), SESSION_COMMANDS),
        ((keys.agreement("hash-key"),), SESSION_COMMANDS),
    ):
        try:
            results = await _run(client, "EVAL", _ALLOWED, len(names), *names, PROBE, *commands)
        except redis.NoPermissionError as error:
            refused.add("keys" if "key" in str(error) else "EVAL")
            continue
        for text in (result.decode() if isinstance(result, bytes) else str(result) for result in results):
            if (stopped := _takes_no_writes(text, url)) is not None:
                return [stopped]
            if " " not in text:
                refused.add(text)
            elif "OOM" not in text[:8]:  # Of which the next check says more.
                refused.add("keys" if "key" in text else "ZADD")
    if not refused:
        return [ok("permissions", "all commands on all keys of ours are allowed")]
    user = urlsplit(url).username or "default"
    what = ", ".join(sorted(refused - {"keys"}))
    whose = "some keys" if "keys" in refused else ""
    return [fail("permissions", f"the user {user} may not use {' and '.join(filter(None, (what, whose)))}",
                 acl(user, settings.redis_prefix))]  # fmt: skip


def _takes_no_writes(text: str, url: str) -> Finding | None:
    """Recognise a server that answers but keeps nothing."""
    reason = text.split(maxsplit=1)[0].lstrip("-") if text else ""
    if reason == "READONLY":
        return fail("redis", f"{place(url)} is a replica: it takes no writes", export(URL, "redis://PRIMARY:6379/0"))
    if reason == "MISCONF":
        mend = "redis-cli CONFIG SET stop-writes-on-bgsave-error no"
        return fail("redis", f"{place(url)} takes no writes, since it cannot save to disk", mend)
    if reason == "NOREPLICAS":
        mend = "redis-cli CONFIG SET min-replicas-to-write 0"
        return fail("redis", f"{place(url)} takes no writes, since too few replicas follow it", mend)
    return None


def acl(user: str, prefix: str) -> str:
    """The command that gives a user what we need, and no more."""
    commands = sorted({command.split()[0].lower() for command in SESSION_COMMANDS + INDEX_COMMANDS})
    patterns = [f"~{prefix}mcp_session:*", f"~{{{prefix}mcp_session:*", f"~{prefix}otel_mcp:*"]
    words = [*(f"'{pattern}'" for pattern in patterns), *(f"+{command}" for command in (*commands, "ping", "info"))]
    return f"redis-cli ACL SETUSER {user} {' '.join(words)}"


async def _run(client: Client, *command: Any) -> Any:
    if not isinstance(client, Cluster):
        return await client.execute_command(*command)
    (result,) = await client.run_all([command])
    if isinstance(result, Exception):
        raise result
    return result


def _memory(info: dict[str, Any]) -> list[Finding]:
    """A server that evicts loses sessions silently; one that is full refuses to write."""
    if "maxmemory_policy" not in info:
        return [skip("memory", "this user may not ask INFO")]
    policy, limit, used = str(info["maxmemory_policy"]), int(info.get("maxmemory", 0)), int(info.get("used_memory", 0))
    mend = "redis-cli CONFIG SET maxmemory-policy noeviction"
    said = f"{policy}, {used / _MIB:.0f} MiB used"
    if limit:
        said = f"{policy}, {used / _MIB:.0f} of {limit / _MIB:.0f} MiB used"
    if policy.startswith("allkeys-"):
        what = (
            "sessions and the key of hashes are evicted" if limit else "they will be evicted once there is a maxmemory"
        )
        return [(fail if limit else warn)("memory", f"{said}: {what}", mend)]
    if limit and policy == "noeviction" and used >= limit * 0.9:
        more = f"redis-cli CONFIG SET maxmemory {max(limit * 2 // _MIB, 64)}mb"
        if used >= limit:
            return [fail("memory", f"{said}: there is no room, nothing can be written", more)]
        return [warn("memory", f"{said}: there is hardly any room left", more)]
    if limit and policy.startswith("volatile-"):
        return [warn("memory", f"{said}: sessions are evicted when memory is full", mend)]
    return [ok("memory", said)]
