"""Whether Redis is there, lets us in, lets us do what we do, and keeps what it is given. Nothing is written."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final
from urllib.parse import urlsplit

from otel_mcp.cli.doctor.report import Finding, export, fail, ok, skip, warn
from otel_mcp.cli.store import Connection
from otel_mcp.settings import PREFIX, Settings
from otel_mcp.store.base import StoreDown
from otel_mcp.store.redis.client import outage
from otel_mcp.store.redis.codec import Keys

URL: Final = f"{PREFIX}REDIS_URL"
_PROBE: Final = "otel-mcp-doctor"
"""A session that nobody has."""
SESSION_COMMANDS: Final = (
    "GET k", "DEL k", "HDEL k f", "HGETALL k", "HLEN k", "HMGET k f", "PEXPIRE k 1",
    "TIME", "SET k v", "HSET k f v", "EVAL x 1 k", "EVALSHA x 1 k",
)  # fmt: skip
"""What is run on the keys of a session."""
INDEX_COMMANDS: Final = (
    "ZADD k XX 0 m", "ZREM k m", "ZSCORE k m", "ZCOUNT k 0 0", "ZRANGEBYSCORE k 0 0", "PEXPIRE k 1", "EVAL x 1 k",
    "PFADD k m", "PFCOUNT k",
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
_NO_WRITES: Final = {
    "READONLY": ("is a replica: it takes no writes", export(URL, "redis://PRIMARY:6379/0")),
    "MISCONF": (
        "takes no writes, since it cannot save to disk",
        "redis-cli CONFIG SET stop-writes-on-bgsave-error no",
    ),
    "NOREPLICAS": (
        "takes no writes, since too few replicas follow it",
        "redis-cli CONFIG SET min-replicas-to-write 0",
    ),
}
"""Errors of servers that answer but keep nothing."""
_DENIED: Final = ("NOAUTH", "WRONGPASS", "Authentication required", "username-password pair")
"""Words of errors whose class a client of a cluster does not pass on."""
_PATIENCE: Final = 1.0
"""Seconds: twice those of a server, so that a busy machine is no outage."""
_TOO_LATE: Final = f"does not answer within {_PATIENCE:g} s"
_REASONS: Final = {
    "LOADING": "is still loading its data",
    "Name or service not known": "names a host that is not known",
    "nodename nor servname": "names a host that is not known",
    "name resolution": "names a host that is not known",
    "refused": "refuses connections: nobody listens there",
    "Connect call failed": "refuses connections: nobody listens there",
    "DB index": "has no database of that number",
    "max number of clients": "has as many clients as it may have",
    "protected mode": "is in protected mode: it lets nobody in over the network",
    "Timeout": _TOO_LATE,
}
"""Words in the text or class of an error, and what they mean."""


async def check(settings: Settings) -> list[Finding]:
    """Look at the Redis that the settings name."""
    url = settings.redis_url
    if url is None:
        found = "not configured: sessions live in the memory of each process, and end with it"
        return [warn(found, export(URL, "redis://localhost:6379/0"))]
    try:
        redis = Connection(settings, socket_timeout=_PATIENCE, socket_connect_timeout=_PATIENCE)
    except (ValueError, TypeError, OverflowError):
        return [fail(f"{URL} cannot be used: it is no URL of Redis", export(URL, "redis://HOST:6379/0"))]
    try:
        return await _check(redis, url, settings)
    except StoreDown as down:
        return [await _named(url, down.__cause__ or down)]
    finally:
        with suppress(Exception):
            await redis.client.aclose()


async def _check(redis: Connection, url: str, settings: Settings) -> list[Finding]:
    loop, times = asyncio.get_running_loop(), list[float]()
    for _ in range(4):  # The first time opens the connection.
        began = loop.time()
        # A user that may not do this is connected all the same.
        await _run(redis, "GET" if redis.is_cluster else "PING", *([_PROBE] if redis.is_cluster else []))
        times.append(loop.time() - began)
    info = await _info(redis)
    if not redis.is_cluster and str(info.get("cluster_enabled", "0")) == "1":
        return [_is_node(url)]
    if not redis.is_cluster and info.get("role") == "slave":
        primary = f"redis://{info.get('master_host')}:{info.get('master_port')}/0"
        return [fail(f"{place(url)} {_NO_WRITES['READONLY'][0]}", export(URL, primary))]
    server = info.get("valkey_version") or info.get("redis_version")
    name = f", {'Valkey' if 'valkey_version' in info else 'Redis'} {server}" if server else ""
    found = f"{place(url)} answers in {min(times) * 1000:.1f} ms{name}"
    slow = warn(f"{found}: requests do not wait longer than {_SLOW * 1000:.0f} ms")
    return [slow if min(times) > _SLOW else ok(found), await _permissions(redis, url, settings), _memory(info)]


async def _run(redis: Connection, *command: Any) -> Any:
    """Run one command; return its result, or the error that only concerns it.

    Raises:
        StoreDown: Redis cannot be used.
    """
    (result,) = await redis.send([command])
    down = outage(result) if isinstance(result, Exception) else None
    if down is not None and down.reason != "NoPermissionError":
        raise down from result
    return result


async def _info(redis: Connection) -> dict[str, Any]:
    """Return the server's own figures, as far as this user may read them."""
    if not redis.is_cluster:
        found = await _run(redis, "INFO", "everything")
        return {} if isinstance(found, Exception) else found
    try:
        info: dict[str, Any] = await redis.client.execute_command("INFO", target_nodes="primaries")
    except Exception:
        return {}
    # Of several nodes the fullest; the only one answers without its name.
    return info if "maxmemory" in info else max(info.values(), key=lambda each: each["used_memory"])


async def _permissions(redis: Connection, url: str, settings: Settings) -> Finding:
    keys, refused = Keys(settings.redis_prefix, settings.service_name), set[str]()
    for names, commands in (
        (keys.session(_PROBE), SESSION_COMMANDS),
        ((keys.successor(_PROBE),), SESSION_COMMANDS),
        ((keys.deadlines,), INDEX_COMMANDS),
        ((keys.sweeper,), SESSION_COMMANDS),
        ((keys.agreement("hash-key"),), SESSION_COMMANDS),
    ):
        results = await _run(redis, "EVAL", _ALLOWED, len(names), *names, _PROBE, *commands)
        if isinstance(results, Exception):
            refused.add("keys" if "key" in str(results) else "EVAL")
            continue
        for text in (result.decode() if isinstance(result, bytes) else str(result) for result in results):
            reason = text.split(maxsplit=1)[0].lstrip("-") if text else ""
            if reason in _NO_WRITES:
                found, mend = _NO_WRITES[reason]
                return replace(fail(f"{place(url)} {found}", mend), check="redis")
            if " " not in text:
                refused.add(text)
            elif "OOM" not in text[:8]:  # The next check is about that.
                refused.add("keys" if "key" in text else "ZADD")
    if not refused:
        return replace(ok("all commands on all keys of ours are allowed"), check="permissions")
    user = urlsplit(url).username or "default"
    parts = (", ".join(sorted(refused - {"keys"})), "some keys" if "keys" in refused else "")
    found = f"the user {user} may not use {' and '.join(filter(None, parts))}"
    return replace(fail(found, acl(user, settings.redis_prefix)), check="permissions")


def acl(user: str, prefix: str) -> str:
    """Write the command that gives a user what we need, and no more."""
    commands = sorted({command.split()[0].lower() for command in SESSION_COMMANDS + INDEX_COMMANDS})
    patterns = [f"~{prefix}mcp_session:*", f"~{{{prefix}mcp_session:*", f"~{prefix}otel_mcp:*"]
    words = [*(f"'{pattern}'" for pattern in patterns), *(f"+{command}" for command in (*commands, "ping", "info"))]
    return f"redis-cli ACL SETUSER {user} {' '.join(words)}"


def _memory(info: dict[str, Any]) -> Finding:
    """Check the memory: a server that evicts loses sessions silently; a full one refuses to write."""
    policy, limit, used = str(info.get("maxmemory_policy")), int(info.get("maxmemory", 0)), info.get("used_memory", 0)
    found = f"{policy}, {used / _MIB:.0f}{f' of {limit / _MIB:.0f}' if limit else ''} MiB used"
    mend = "redis-cli CONFIG SET maxmemory-policy noeviction"
    more = f"redis-cli CONFIG SET maxmemory {max(limit * 2 // _MIB, 64)}mb"
    if "maxmemory_policy" not in info:
        finding = skip("this user may not ask INFO")
    elif policy.startswith("allkeys-") and limit:
        finding = fail(f"{found}: sessions and the key of hashes are evicted", mend)
    elif policy.startswith("allkeys-"):
        finding = warn(f"{found}: they will be evicted once there is a maxmemory", mend)
    elif limit and policy == "noeviction" and used >= limit:
        finding = fail(f"{found}: there is no room, nothing can be written", more)
    elif limit and policy == "noeviction" and used >= limit * 0.9:
        finding = warn(f"{found}: there is hardly any room left", more)
    elif limit and policy.startswith("volatile-"):
        finding = warn(f"{found}: sessions are evicted when memory is full", mend)
    else:
        finding = ok(found)
    return replace(finding, check="memory")


def place(url: str) -> str:
    """Return the URL of a Redis without user, password and query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _template(url: str, scheme: str = "", *, user: str | None = None) -> str:
    """Write the command that sets the URL, with placeholders for user and password."""
    parts = urlsplit(url)
    whose = user if user is not None else "USER:PASSWORD@" if "@" in parts.netloc else ""
    return f"{scheme or parts.scheme}://{whose}{parts.netloc.rpartition('@')[2]}{parts.path}"


def _is_node(url: str) -> Finding:
    scheme = f"{urlsplit(url).scheme}+cluster"
    mend = export(URL, _template(url.partition("?")[0], scheme).removesuffix(urlsplit(url).path))
    return fail(f"{place(url)} is a node of a Cluster, and the URL does not say so", mend)


async def _named(url: str, error: BaseException) -> Finding:
    """Name the reason, in words of our own: the text of an error may repeat the password."""
    text, scheme = f"{error} {type(error).__name__}", urlsplit(url).scheme
    if "AuthenticationError" in text or any(sign in text for sign in _DENIED):
        wants = "does not take this user and password" if "@" in url else "wants a password"
        return fail(f"{place(url)} {wants}", export(URL, _template(url, user="USER:PASSWORD@")))
    if "Cluster mode is not enabled" in text or "cluster support disabled" in text:
        mend = export(URL, _template(url, scheme.partition("+")[0]))
        return fail(f"{place(url)} is no Cluster, and the URL says that it is", mend)
    if "MOVED" in text[:8] or "MovedError" in text:
        return _is_node(url)
    if "No master found" in text:
        return fail("the sentinels know no master of that name", export(URL, "redis+sentinel://HOST:26379/NAME/0"))
    if "CERTIFICATE_VERIFY_FAILED" in text:
        mend = export(URL, f"{_template(url)}?ssl_ca_certs=/path/to/ca.pem")
        return fail(f"the certificate of {place(url)} is not trusted", mend)
    reason = next((reason for words, reason in _REASONS.items() if words in text), None)
    # A server that wants TLS hangs up on a plain client, or waits for more; and the other way round.
    other = {"redis": "rediss", "rediss": "redis"}.get(scheme)
    if reason in {None, _TOO_LATE} and other is not None and await _speaks(url, is_secure=other == "rediss"):
        found = "speaks TLS, and the URL does not say so"
        if other == "redis":
            found = "speaks no TLS, and the URL says that it does"
        return fail(f"{place(url)} {found}", export(URL, _template(url, other)))
    reason = reason or f"cannot be used ({type(error).__name__})"
    return fail(f"{place(url)} {reason}", export(URL, _template(url)) + "  # where Redis is")


async def _speaks(url: str, *, is_secure: bool) -> bool:
    """Return whether TLS, or no TLS, is spoken there."""
    parts, context = urlsplit(url), ssl.create_default_context() if is_secure else None
    if context is not None:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with suppress(OSError, ValueError):  # A timeout is an error of the operating system as well.
        where = asyncio.open_connection(parts.hostname, parts.port or 6379, ssl=context)
        reader, writer = await asyncio.wait_for(where, 1)
        try:
            writer.write(b"PING\r\n")
            answer = await asyncio.wait_for(reader.read(16), 1)
            return is_secure or answer[:1] in {b"+", b"-"}
        finally:
            writer.close()
    return False
