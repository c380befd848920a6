"""Which errors of Redis are an outage."""

from __future__ import annotations

import pytest
from redis import exceptions

from otel_mcp.store.redis.client import outage


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
    ],
)
def test_errors_of_the_whole_server_are_an_outage(error: Exception, denied: bool) -> None:
    down = outage(error)
    assert down is not None
    assert down.denied is denied


@pytest.mark.parametrize(
    "error",
    [exceptions.ResponseError("WRONGTYPE Operation"), exceptions.ResponseError("ERR user_script:1: x"), KeyError("x")],
)
def test_errors_of_one_command_are_no_outage(error: Exception) -> None:
    assert outage(error) is None


def test_what_cannot_be_encoded_is_no_outage() -> None:
    assert outage(exceptions.DataError("Invalid input of type: 'object'")) is None
