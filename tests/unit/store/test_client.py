"""Which errors of Redis are an outage, and which client a URL names."""

from __future__ import annotations

from typing import Any, cast

import pytest
from redis import exceptions

from otel_mcp.store.redis.client import TIMEOUT, connect
from otel_mcp.store.redis.errors import outage

IN_SCRIPT = "Error running script (call to f_720ec0560486ebea7e26ddc6b46272fbb2b1450e): @user_script:1: "
"""What Redis before 7.0 puts in front of errors in scripts."""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"{IN_SCRIPT}@user_script: 1: -OOM command not allowed when used memory > 'maxmemory'.", "OOM"),
        (f"{IN_SCRIPT}@user_script: 1: -READONLY You can't write against a read only replica.", "READONLY"),
        (f"{IN_SCRIPT}@user_script: 1: -NOREPLICAS Not enough good replicas to write.", "NOREPLICAS"),
        ("MISCONF Redis is configured to save RDB snapshots", "MISCONF"),
        ("max number of clients reached", "max number"),
        ("syntax error", "syntax error: Redis 5.0 or newer is needed"),
        (f"{IN_SCRIPT}ERR syntax error", "syntax error: Redis 5.0 or newer is needed"),
        (
            f"{IN_SCRIPT}@user_script: 1: Unknown Redis command called from Lua script",
            "Unknown Redis: Redis 5.0 or newer is needed",
        ),
    ],
)
def test_an_outage_is_named_by_its_kind(text: str, reason: str) -> None:
    down = outage(exceptions.ResponseError(text))
    assert down is not None
    assert (down.reason, down.denied) == (reason, False)


@pytest.mark.parametrize(
    ("error", "denied"),
    [
        (exceptions.BusyLoadingError("Redis is loading the dataset in memory"), False),
        (exceptions.ClusterDownError("CLUSTERDOWN The cluster is down"), False),
        (exceptions.MasterDownError("MASTERDOWN Link with MASTER is down"), False),
        (exceptions.MovedError("1 127.0.0.1:1"), False),
        (exceptions.TryAgainError("TRYAGAIN"), False),
        (exceptions.ReadOnlyError("You can't write against a read only replica."), False),
        (exceptions.OutOfMemoryError("OOM"), False),
        (exceptions.ResponseError("MISCONF Redis is configured to save RDB snapshots"), False),
        (exceptions.ResponseError("NOREPLICAS Not enough good replicas to write."), False),
        (exceptions.ResponseError("BUSY Redis is busy running a script."), False),
        (exceptions.TimeoutError("Timeout reading"), False),
        (ConnectionResetError(), False),
        (exceptions.RedisClusterException("no node"), False),
        (exceptions.AuthenticationError("WRONGPASS"), True),
        (exceptions.NoPermissionError("NOPERM"), True),
        (exceptions.ResponseError("ACL failure in script: User u has no permissions to run the 'set' command"), True),
        (exceptions.ResponseError("The user executing the script can't run this command or subcommand"), True),
        (exceptions.ResponseError(f"{IN_SCRIPT}@user_script: 1: The user executing the script can't access"), True),
    ],
)
def test_errors_of_the_whole_server_are_an_outage(error: Exception, denied: bool) -> None:
    down = outage(error)
    assert down is not None
    assert down.denied is denied


@pytest.mark.parametrize(
    "error",
    [
        exceptions.ResponseError("WRONGTYPE Operation"),
        exceptions.ResponseError(f"{IN_SCRIPT}WRONGTYPE Operation"),
        exceptions.ResponseError("ERR user_script:1: x"),
        exceptions.ResponseError("user_script:1: attempt to index local 'a' (a nil value) script: on @user_script:1."),
        exceptions.ResponseError(f"{IN_SCRIPT}user_script:1: attempt to index local 'a' (a nil value)"),
        KeyError("x"),
    ],
)
def test_errors_of_one_command_are_no_outage(error: Exception) -> None:
    assert outage(error) is None


def test_what_cannot_be_encoded_is_no_outage() -> None:
    assert outage(exceptions.DataError("Invalid input of type: 'object'")) is None


# Clients from URLs.


def options(url: str) -> dict[str, Any]:
    client: Any = connect(url)
    return client.connection_pool.connection_kwargs


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://cache", {"host": "cache"}),
        (
            "redis://user:p%40ss@cache:6380/2",
            {"host": "cache", "port": 6380, "db": 2, "username": "user", "password": "p@ss"},
        ),
        ("unix:///run/redis.sock?db=3", {"path": "/run/redis.sock", "db": 3}),
        ("redis://cache?socket_timeout=2", {"socket_timeout": 2.0}),
    ],
)
def test_a_url_becomes_a_client(url: str, expected: dict[str, Any]) -> None:
    assert options(url).items() >= expected.items()


def test_a_client_gives_up_early_and_tries_once() -> None:
    given = options("rediss://cache")
    assert (given["socket_connect_timeout"], given["socket_timeout"]) == (TIMEOUT, TIMEOUT)
    assert given["retry"].get_retries() == 0
    client: Any = connect("rediss://cache?ssl_cert_reqs=none")
    assert client.connection_pool.connection_class.__name__ == "SSLConnection"
    assert client.connection_pool.connection_kwargs["ssl_cert_reqs"] == "none"


def test_a_sentinel_url_names_all_sentinels_and_the_service() -> None:
    client: Any = connect("redis+sentinel://me:pw@one,two:27000/main/3?sentinel_password=other")
    pool = client.connection_pool
    assert (pool.service_name, pool.connection_kwargs["db"]) == ("main", 3)
    assert (pool.connection_kwargs["username"], pool.connection_kwargs["password"]) == ("me", "pw")
    asked = [sentinel.connection_pool.connection_kwargs for sentinel in pool.sentinel_manager.sentinels]
    assert [(given["host"], given["port"], given["password"]) for given in asked] == [
        ("one", 26379, "other"),
        ("two", 27000, "other"),
    ]
    assert all(given["socket_timeout"] == TIMEOUT for given in asked)


@pytest.mark.anyio
async def test_a_cluster_url_names_its_first_nodes() -> None:
    client: Any = connect("rediss+cluster://me:pw@one,two:7000")
    assert [(node.host, node.port) for node in client.get_nodes() or client.nodes_manager.startup_nodes.values()] == [
        ("one", 6379),
        ("two", 7000),
    ]
    given = cast("dict[str, Any]", client.connection_kwargs)
    assert (given["username"], given["password"], given["connection_class"].__name__) == ("me", "pw", "SSLConnection")


@pytest.mark.parametrize(
    "url", ["", "cache:6379", "http://cache", "redis+cluster://", "redis+sentinel:///main", "redis+other://x"]
)
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        connect(url)
