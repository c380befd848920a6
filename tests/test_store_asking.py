"""Single commands on connections that stay at hand: what becomes of these when something goes wrong."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ResponseError

from otel_mcp.sessions import redis_asking
from otel_mcp.sessions.redis_asking import Asker, asker
from otel_mcp.sessions.redis_client import AT_ONCE, CONNECTIONS, connect
from otel_mcp.sessions.redis_cluster import Cluster
from otel_mcp.sessions.redis_errors import outage
from otel_mcp.sessions.redis_link import RedisLink, Run
from tests.store_support import SERVERS, Server

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module", params=SERVERS)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    server = Server(request.param)
    yield server
    server.close()


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Any]:
    client = connect(server.url)
    yield client
    await client.aclose()


@pytest.fixture
def asking(client: Any) -> Asker:
    made = asker(client)
    assert made is not None
    return made


def idle(asking: Asker) -> list[Any]:
    return list(asking._idle)  # pyright: ignore[reportPrivateUsage]


async def own_id(asking: Asker) -> int:
    """The server's number of the connection that was asked."""
    return int(await asking.ask(("CLIENT", "ID")))


async def test_one_after_the_other_is_asked_on_the_same_connection(asking: Asker) -> None:
    numbers = {await own_id(asking) for _ in range(5)}

    assert len(numbers) == 1
    assert len(idle(asking)) == 1


async def test_many_at_once_get_each_its_own_reply_and_few_connections_stay(asking: Asker, client: Any) -> None:
    replies = await asyncio.gather(*(asking.ask(("ECHO", str(number))) for number in range(AT_ONCE)))

    assert replies == [str(number).encode() for number in range(AT_ONCE)]
    assert len(idle(asking)) == 2
    pool = client.connection_pool
    assert (len(pool._in_use_connections), len(pool._available_connections)) == (2, AT_ONCE - 2)


async def test_what_stays_at_hand_leaves_room_for_all_that_may_be_under_way() -> None:
    assert AT_ONCE + redis_asking._KEPT <= CONNECTIONS  # pyright: ignore[reportPrivateUsage]


async def test_an_error_is_a_reply(asking: Asker) -> None:
    before = await own_id(asking)

    with pytest.raises(ResponseError):
        await asking.ask(("GET",))

    assert await own_id(asking) == before


async def test_a_connection_that_the_server_has_closed_is_not_asked(asking: Asker, server: Server) -> None:
    number = await own_id(asking)
    with server.client() as other:
        other.client_kill_filter(_id=number)
    while not await idle(asking)[0].can_read():  # noqa: ASYNC110 - until the loop has read that it is closed
        await asyncio.sleep(0.001)

    assert await own_id(asking) != number


async def test_a_connection_with_something_left_on_it_is_not_asked(asking: Asker) -> None:
    number = await own_id(asking)
    connection = idle(asking)[0]
    await connection.send_command("ECHO", "stale")
    while not await connection.can_read():  # noqa: ASYNC110 - until the reply is there
        await asyncio.sleep(0.001)

    assert await asking.ask(("ECHO", "mine")) == b"mine"
    assert await own_id(asking) != number


async def test_no_reply_is_ever_read_by_somebody_else(asking: Asker) -> None:
    """Whoever gives up in the middle takes the connection along."""
    for turns in range(6):
        task = asyncio.create_task(asking.ask(("ECHO", "theirs")))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})

        assert await asking.ask(("ECHO", str(turns))) == str(turns).encode()


async def test_a_hang_is_an_outage_and_over_when_it_is(server: Server, asking: Asker) -> None:
    await own_id(asking)
    server.hang()
    try:
        began = time.monotonic()
        with pytest.raises(Exception) as failed:  # noqa: PT011 - judged below
            await asking.ask(("ECHO", "lost"))
        taken = time.monotonic() - began
    finally:
        server.resume()

    down = outage(failed.value)
    assert down is not None
    assert (down.reason, down.denied, taken >= 0.5, idle(asking)) == ("TimeoutError", False, True, [])
    assert await asking.ask(("ECHO", "found")) == b"found"


async def test_nothing_is_a_reply_too(asking: Asker) -> None:
    assert await asking.ask(("GET", "nothing of the kind")) is None
    assert len(idle(asking)) == 1


@pytest.mark.parametrize("seconds", [None, 0.2])
async def test_the_patience_of_the_url_is_kept(server: Server, seconds: float | None) -> None:
    client = connect(server.url + (f"?socket_timeout={seconds}" if seconds else ""))
    asking = asker(client)
    assert asking is not None
    await own_id(asking)

    assert [connection.socket_timeout for connection in idle(asking)] == [seconds or 0.5]
    server.hang()
    try:
        began = time.monotonic()
        with pytest.raises(Exception, match="no reply in time"):
            await asking.ask(("ECHO", "lost"))
        assert time.monotonic() - began >= (seconds or 0.5)
    finally:
        server.resume()
        await client.aclose()


async def test_a_connection_goes_back_as_it_came(asking: Asker, client: Any) -> None:
    await asyncio.gather(*(own_id(asking) for _ in range(4)))

    available = client.connection_pool._available_connections
    assert [connection.socket_timeout for connection in available] == [0.5, 0.5]


async def test_whoever_closes_the_client_closes_what_stays_at_hand(server: Server) -> None:
    link = RedisLink(lambda: connect(server.url))
    number = await link.run(Run("CLIENT", ("ID",)))

    await link.aclose()

    with server.client() as other:
        until = time.monotonic() + 5
        while any(int(known["id"]) == number for known in other.client_list()) and time.monotonic() < until:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert all(int(known["id"]) != number for known in other.client_list())
    # And the next question opens anew.
    assert await link.run(Run("CLIENT", ("ID",))) > number
    await link.aclose()


async def test_other_kinds_of_clients_are_asked_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Redis.from_url("redis://127.0.0.1:1")
    assert asker(Cluster([("127.0.0.1", 1)])) is None
    assert asker(client) is not None

    # Of an older redis-py.
    monkeypatch.delattr(AbstractConnection, "can_read")

    assert asker(client) is None
