"""Made-up names and ids leave a bounded number of series and keys. `make fuzz` sends 100,000."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from otel_mcp import MCPMiddleware
from otel_mcp.types import ASGIApp, Message, Receive, Send
from tests.hostile import floods
from tests.hostile.floods import CONSTANT, KEYS_OF_ONE, SERIES, Left
from tests.support.answers import result
from tests.support.asgi import post, read, respond
from tests.support.messages import MODERN_HEADERS, initialize, modern
from tests.support.providers import Telemetry
from tests.unit.conftest import MakeRuntime

pytestmark = pytest.mark.anyio

COUNT, LIMIT = 150, 10


async def flooded(app: ASGIApp, send: Callable[[ASGIApp, int], Any], redis_url: str) -> Left:
    # A database of its own: what servers of other tests still write is in the first one.
    return await floods.flood(app, send, COUNT, f"{redis_url}/9", limit=LIMIT)


@pytest.mark.parametrize("app", [floods.anything, floods.unknown])
async def test_made_up_names_leave_a_bounded_number_of_series(app: ASGIApp, valkey_url: str) -> None:
    left = await flooded(app, floods.names, valkey_url)

    assert 10 < left.series < SERIES


LIKELY = {  # Values at most of what only looks likely: half of the bound, and the one for all others.
    "gen_ai.tool.name": 101,
    "gen_ai.prompt.name": 101,
    "otel_mcp.client.name": 21,
    "otel_mcp.tenant": 51,
    "error.type": 40,
    "rpc.response.status_code": 35,
    "mcp.protocol.version": 6,
    "network.protocol.version": 5,
}


@pytest.mark.parametrize("app", [floods.anything, floods.unauthorized, floods.unknown, floods.echoing])
async def test_made_up_names_do_not_fill_metric_attributes(
    app: ASGIApp, make_runtime: MakeRuntime, telemetry: Telemetry
) -> None:
    watched = MCPMiddleware(app, make_runtime(tenant="header:x-org"))

    for number in range(COUNT):
        await floods.labels(watched, number)

    seen: dict[str, set[object]] = {}
    for metric in telemetry.metrics().values():
        for attributes in metric.points:
            for key, value in attributes:
                seen.setdefault(key, set()).add(value)
    counts = {key: len(values) for key, values in seen.items()}
    assert {key: count for key, count in counts.items() if count > LIKELY.get(key, 10)} == {}
    assert "_OTHER" in seen["network.protocol.version"]


async def test_clients_without_successful_calls_leave_room_for_working_ones(
    make_runtime: MakeRuntime, telemetry: Telemetry
) -> None:
    """Introductions are open to anybody, calls take a credential."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        let_in = dict(scope["headers"]).get(b"authorization") == b"Bearer real"
        message = json.loads(await read(receive))
        await respond(send, result(message["id"]), 200 if let_in or message["method"] == "initialize" else 401)

    watched = MCPMiddleware(app, make_runtime())
    for number in range(COUNT):
        await post(watched, initialize(name=f"junk-{number}"))
        await post(watched, modern(client=f"junk-{number}"), MODERN_HEADERS)
    await post(watched, modern(client="real"), [*MODERN_HEADERS, ("authorization", "Bearer real")])

    names = {attributes["otel_mcp.client.name"] for attributes, _ in telemetry.points("otel_mcp.client.requests")}
    assert "real" in names
    assert len(names) == 12  # Half of the places, the real one, and `_OTHER`.


@pytest.mark.parametrize(
    ("app", "send"),
    [
        (floods.nothing, floods.session_ids),
        (floods.nothing, floods.claims),
        (floods.unauthorized, floods.session_ids),
        (floods.unauthorized, floods.credentials),
    ],
)
async def test_what_the_server_refuses_leaves_no_key(
    app: ASGIApp, send: Callable[[ASGIApp, int], Any], valkey_url: str
) -> None:
    left = await flooded(app, send, valkey_url)

    assert left.keys <= floods.BARE


@pytest.mark.parametrize("send", [floods.session_ids, floods.claims, floods.credentials])
async def test_accepted_floods_leave_keys_within_the_limit_on_new_sessions(
    send: Callable[[ASGIApp, int], Any], valkey_url: str
) -> None:
    left = await flooded(floods.anything, send, valkey_url)

    assert LIMIT < left.keys <= 2 * LIMIT * KEYS_OF_ONE + CONSTANT  # It may go over the turn of a minute.
