"""Every command that reaches the server, also from scripts, is one that Redis 5.0 knows, with the same options."""

from __future__ import annotations

import re
from typing import Any

import pytest

from otel_mcp.store.redis.store import RedisStore
from tests.store.test_acl import PROCESS, adopt, use
from tests.support.stores import Server, settings

pytestmark = pytest.mark.anyio

_OPTIONS = {"SET": {"PX", "EX", "NX", "XX"}, "ZADD": {"NX", "XX", "CH"}, "ZRANGEBYSCORE": {"WITHSCORES", "LIMIT"}}
"""Words that may follow, by https://redis.io/docs/latest/commands/set/ and the like; KEEPTTL came with 6.0."""
_ARITY = {"PEXPIRE": 3, "PTTL": 2, "GET": 2, "TIME": 1, "ZCOUNT": 4, "ZREMRANGEBYRANK": 4, "ZSCORE": 3}
"""Words in all, where an option would be one more."""
_OTHERS = {
    "DEL", "EVAL", "EVALSHA", "HDEL", "HGETALL", "HLEN", "HMGET", "HSET", "PFADD", "PFCOUNT", "ZREM",
}  # fmt: skip
_MARK = "all-has-been-sent"


def too_new(command: list[str]) -> str | None:
    """Return what of a command Redis 5.0 does not know."""
    name = command[0].upper()
    if name in _ARITY:
        return None if len(command) == _ARITY[name] else " ".join(command)
    if name not in _OPTIONS:
        return None if name in _OTHERS else name
    words = command[3:] if name == "SET" else command[4:] if name == "ZRANGEBYSCORE" else command[2:3]
    unknown = [word for word in words if word.isalpha() and word.upper() not in _OPTIONS[name]]
    return f"{name} {unknown[0]}" if unknown else None


async def sent(server: Server) -> list[list[str]]:
    """Do all that a store can do; return the commands as the server has seen them."""
    with server.client() as watcher, server.client() as client, watcher.monitor() as monitor:
        await use(RedisStore(settings(server.patient_url), PROCESS))
        await adopt(server, RedisStore(settings(server.patient_url)))
        client.echo(_MARK)
        lines: list[str] = []
        connection: Any = monitor.connection
        while not lines or _MARK not in lines[-1]:
            lines.append(connection.read_response(disable_decoding=True).decode("utf-8", "replace"))
    commands = [re.findall(r'"((?:[^"\\]|\\.)*)"', line.partition("] ")[2]) for line in lines[:-1]]
    return [command for command in commands if command[0].upper() not in ("CLIENT", "HELLO", "MONITOR")]


async def test_no_command_is_newer_than_the_oldest_server_supported(server: Server, raw: Any) -> None:
    commands = await sent(server)

    assert {command[0].upper() for command in commands} >= {"EVALSHA", "HSET", "PEXPIRE", "SET", "ZADD"}
    assert {found for found in map(too_new, commands) if found is not None} == set()


@pytest.mark.parametrize(
    "command", ["SET k v KEEPTTL", "ZADD k GT 1 m", "PEXPIRE k 1 GT", "GETEX k", "SET k v PX 1 GET"]
)
def test_newer_commands_are_noticed(command: str) -> None:
    assert too_new(command.split()) is not None
