"""Check that Redis answers, accepts our credentials and commands, and has memory. Writes nothing."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final
from urllib.parse import urlsplit

from otel_mcp.cli.doctor.endpoint import REFUSED, Unreachable, exchange
from otel_mcp.cli.doctor.report import Finding, export, fail, ok, skip, warn
from otel_mcp.cli.store import Connection
from otel_mcp.settings import PREFIX, Settings
from otel_mcp.store.base import StoreDown
from otel_mcp.store.redis.codec import Keys
from otel_mcp.store.redis.errors import OLDEST, outage, unwrapped

URL: Final = f"{PREFIX}REDIS_URL"
_PROBE_ID: Final = "otel-mcp-doctor"
"""The id of a session that does not exist."""
SESSION_COMMANDS: Final = (
    "GET k", "DEL k", "HDEL k f", "HGETALL k", "HLEN k", "HMGET k f", "PEXPIRE k 1",
    "TIME", "PTTL k", "SET k v", "HSET k f v", "EVAL x 1 k", "EVALSHA x 1 k",
)  # fmt: skip
"""Commands on the keys of a session."""
INDEX_COMMANDS: Final = (
    "ZADD k XX 0 m", "ZREM k m", "ZSCORE k m", "ZCOUNT k 0 0", "ZRANGEBYSCORE k 0 0", "ZREMRANGEBYRANK k 0 0",
    "PEXPIRE k 1", "EVAL x 1 k",
    "PFADD k m", "PFCOUNT k",
)  # fmt: skip
"""Commands on the index of all sessions."""
_ACCOUNT: Final = "USER:PASSWORD@"
_MIB: Final = 1024 * 1024
_SLOW: Final = 0.05
"""Seconds after which a request continues without an answer of Redis."""
_PERMISSIONS_SCRIPT: Final = """
local refused = {}
local touched = redis.pcall('ZADD', KEYS[2] or KEYS[1], 'XX', 0, ARGV[1])
if type(touched) == 'table' and touched.err and not string.find(touched.err, 'WRONGTYPE', 1, true) then
  refused[1] = touched.err
end
for index = 2, #ARGV do
  local words = {}
  for word in string.gmatch(ARGV[index], '%S+') do words[#words + 1] = word == 'k' and KEYS[1] or word end
  if not redis.acl_check_cmd then refused[#refused + 1] = 'unknown'
  elseif not redis.acl_check_cmd(unpack(words)) then refused[#refused + 1] = words[1] end
end
return refused
"""
"""Lua: asks the server which commands this user may run, and tries a write that changes nothing (ZADD XX of a missing
member), which fails on a full or read-only server."""
_NO_WRITES: Final = {
    "READONLY": ("is a replica, which rejects writes", export(URL, "redis://PRIMARY:6379/0")),
    "MISCONF": (
        "rejects writes, since it cannot save to disk",
        "redis-cli CONFIG SET stop-writes-on-bgsave-error no",
    ),
    "NOREPLICAS": (
        "rejects writes, since it has too few replicas",
        "redis-cli CONFIG SET min-replicas-to-write 0",
    ),
}
"""Errors of servers that answer but do not accept writes, each with the finding and its fix."""
_DENIED: Final = ("NOAUTH", "WRONGPASS", "Authentication required", "username-password pair")
"""Texts of authentication errors, since a Cluster client does not pass on their class."""
_TIMEOUT: Final = 1.0
"""Seconds; twice a server's, so that a busy machine does not look like an outage."""
_TOO_LATE: Final = f"does not answer within {_TIMEOUT:g} s"
_UNKNOWN_HOST: Final = "names an unknown host"
_REASONS: Final = {
    "LOADING": "is still loading its data",
    "Name or service not known": _UNKNOWN_HOST,
    "nodename nor servname": _UNKNOWN_HOST,
    "name resolution": _UNKNOWN_HOST,
    "refused": REFUSED,
    "Connect call failed": REFUSED,
    "DB index": "has no database of that number",
    "max number of clients": "has reached its limit of clients",
    "protected mode": "is in protected mode: it accepts no clients over the network",
    "Timeout": _TOO_LATE,
}
"""Findings, by texts in an error or its class."""


async def check(settings: Settings) -> list[Finding]:
    """Check the Redis that the settings name."""
    url = settings.redis_url
    if url is None:
        found = "not configured: sessions live in the memory of each process, and end with it"
        return [warn(found, export(URL, "redis://localhost:6379/0"))]
    try:
        redis = Connection(settings, socket_timeout=_TIMEOUT, socket_connect_timeout=_TIMEOUT)
    except (ValueError, TypeError, OverflowError):
        return [fail(f"{URL} is not a valid Redis URL", export(URL, "redis://HOST:6379/0"))]
    try:
        return await _check(redis, url, settings)
    except StoreDown as down:
        return [await _named(url, down.__cause__ or down)]
    finally:
        with suppress(Exception):
            await redis.client.aclose()


async def _check(redis: Connection, url: str, settings: Settings) -> list[Finding]:
    loop, times = asyncio.get_running_loop(), list[float]()
    for _ in range(4):  # The first one opens the connection.
        began = loop.time()
        # Without permission for this command, the user is connected all the same.
        await _run(redis, "GET" if redis.is_cluster else "PING", *([_PROBE_ID] if redis.is_cluster else []))
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
    if "valkey_version" not in info and server and int(str(server).partition(".")[0]) < OLDEST:
        return [fail(f"{found}: sessions need Redis {OLDEST}.0 or newer", export(URL, "redis://NEWER:6379/0"))]
    slow = warn(f"{found}: requests do not wait longer than {_SLOW * 1000:.0f} ms")
    return [slow if min(times) > _SLOW else ok(found), await _permissions(redis, url, settings), _memory(info)]


async def _run(redis: Connection, *command: Any) -> Any:
    """Run one command; return its result, or an error that concerns this command only.

    Raises:
        StoreDown: Redis cannot be used.
    """
    (result,) = await redis.send([command])
    down = outage(result) if isinstance(result, Exception) else None
    if down is not None and down.reason != "NoPermissionError":
        raise down from result
    return result


async def _info(redis: Connection) -> dict[str, Any]:
    """Return the result of INFO, empty without permission."""
    if not redis.is_cluster:
        found = await _run(redis, "INFO")
        return {} if isinstance(found, Exception) else found
    try:
        info: dict[str, Any] = await redis.client.execute_command("INFO", target_nodes="primaries")
    except Exception:
        return {}
    # Several nodes answer by name: take the fullest. A single node answers without a name.
    return info if "maxmemory" in info else max(info.values(), key=lambda each: each["used_memory"])


async def _permissions(redis: Connection, url: str, settings: Settings) -> Finding:
    keys, refused = Keys(settings.redis_prefix, settings.service_name), set[str]()
    for names, commands in (
        (keys.session(_PROBE_ID), SESSION_COMMANDS),
        ((keys.successor(_PROBE_ID),), SESSION_COMMANDS),
        ((keys.deadlines,), INDEX_COMMANDS),
        ((keys.sweeper,), SESSION_COMMANDS),
        ((keys.agreement("hash-key"),), SESSION_COMMANDS),
    ):
        results = await _run(redis, "EVAL", _PERMISSIONS_SCRIPT, len(names), *names, _PROBE_ID, *commands)
        if isinstance(results, Exception):
            refused.add("keys" if "key" in str(results) else "EVAL")
            continue
        for text in (unwrapped(result.decode() if isinstance(result, bytes) else str(result)) for result in results):
            reason = text.split(maxsplit=1)[0].lstrip("-") if text else ""
            if reason in _NO_WRITES:
                found, mend = _NO_WRITES[reason]
                return replace(fail(f"{place(url)} {found}", mend), check="redis")
            if " " not in text:
                refused.add(text)
            elif "OOM" not in text[:8]:  # The check of memory reports this.
                refused.add("keys" if "key" in text else "ZADD")
    if refused == {"unknown"}:
        found = "all required keys are allowed; before Redis 7.0 no server says which commands are"
        return replace(ok(found), check="permissions")
    refused.discard("unknown")
    if not refused:
        return replace(ok("all required commands and keys are allowed"), check="permissions")
    user = urlsplit(url).username or "default"
    parts = (", ".join(sorted(refused - {"keys"})), "some keys" if "keys" in refused else "")
    found = f"user {user} has no permission for {' and '.join(filter(None, parts))}"
    return replace(fail(found, acl(user, settings.redis_prefix)), check="permissions")


def acl(user: str, prefix: str) -> str:
    """Return the command that gives a user exactly the permissions that we need."""
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
        finding = skip("this user has no permission for INFO")
    elif policy.startswith("allkeys-") and limit:
        finding = fail(f"{found}: sessions and the hash key are evicted", mend)
    elif policy.startswith("allkeys-"):
        finding = warn(f"{found}: sessions would be evicted if a maxmemory were set", mend)
    elif limit and policy == "noeviction" and used >= limit:
        finding = fail(f"{found}: memory is full, nothing can be written", more)
    elif limit and policy == "noeviction" and used >= limit * 0.9:
        finding = warn(f"{found}: memory is almost full", more)
    elif limit and policy.startswith("volatile-"):
        finding = warn(f"{found}: sessions are evicted when memory is full", mend)
    else:
        finding = ok(found)
    return replace(finding, check="memory")


def place(url: str, scheme: str = "", account: str = "") -> str:
    """Return the URL without query, and with `account` in place of user and password."""
    parts = urlsplit(url)
    return f"{scheme or parts.scheme}://{account}{parts.netloc.rpartition('@')[2]}{parts.path}"


def _template(url: str, scheme: str = "") -> str:
    """Return the URL without query, and with placeholders in place of user and password."""
    return place(url, scheme, _ACCOUNT if "@" in urlsplit(url).netloc else "")


def _is_node(url: str) -> Finding:
    scheme = f"{urlsplit(url).scheme}+cluster"
    mend = export(URL, _template(url.partition("?")[0], scheme).removesuffix(urlsplit(url).path))
    return fail(f"{place(url)} is a node of a Cluster, but the URL does not say so", mend)


async def _named(url: str, error: BaseException) -> Finding:
    """Explain an error in our own words, since its text may contain the password."""
    text, scheme = f"{error} {type(error).__name__}", urlsplit(url).scheme
    if "AuthenticationError" in text or any(sign in text for sign in _DENIED):
        found = "rejects this user and password" if "@" in url else "requires a password"
        return fail(f"{place(url)} {found}", export(URL, place(url, account=_ACCOUNT)))
    if "Cluster mode is not enabled" in text or "cluster support disabled" in text:
        mend = export(URL, _template(url, scheme.partition("+")[0]))
        return fail(f"{place(url)} is not a Cluster, but the URL says so", mend)
    if "MOVED" in text[:8] or "MovedError" in text:
        return _is_node(url)
    if "No master found" in text:
        return fail("the sentinels know no master of that name", export(URL, "redis+sentinel://HOST:26379/NAME/0"))
    if "CERTIFICATE_VERIFY_FAILED" in text:
        mend = export(URL, f"{_template(url)}?ssl_ca_certs=/path/to/ca.pem")
        return fail(f"the certificate of {place(url)} is not trusted", mend)
    reason = next((reason for words, reason in _REASONS.items() if words in text), None)
    # A TLS server hangs up on a plain client, or waits for more; and the other way round.
    other = {"redis": "rediss", "rediss": "redis"}.get(scheme)
    if reason in {None, _TOO_LATE} and other is not None and await _speaks(url, is_secure=other == "rediss"):
        found = "speaks TLS, but the URL does not say so"
        if other == "redis":
            found = "does not speak TLS, but the URL says so"
        return fail(f"{place(url)} {found}", export(URL, _template(url, other)))
    reason = reason or f"cannot be used ({type(error).__name__})"
    return fail(f"{place(url)} {reason}", export(URL, _template(url)) + "  # where Redis is")


async def _speaks(url: str, *, is_secure: bool) -> bool:
    """Return whether the server speaks TLS, or with `is_secure` false, plain Redis."""
    parts, context = urlsplit(url), ssl.create_default_context() if is_secure else None
    if context is not None:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with suppress(Unreachable, ValueError):
        answer = await exchange(parts.hostname or "", parts.port or 6379, context, b"PING\r\n")
        return answer[:1] in {b"+", b"-"}
    return False
