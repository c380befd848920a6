"""Made-up names and ids leave a bounded number of series and keys. `make fuzz` sends 100,000."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.hostile import floods
from tests.hostile.floods import CONSTANT, KEYS_OF_ONE, SERIES, Left
from tests.unit.kit import App

pytestmark = pytest.mark.anyio

COUNT, LIMIT = 150, 10


async def flooded(app: App, send: Callable[[App, int], Any], redis_url: str) -> Left:
    return await floods.flood(app, send, COUNT, redis_url, limit=LIMIT)


@pytest.mark.parametrize("app", [floods.anything, floods.unknown])
async def test_made_up_names_leave_a_bounded_number_of_series(app: App, valkey_url: str) -> None:
    left = await flooded(app, floods.names, valkey_url)

    assert 10 < left.series < SERIES


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
    app: App, send: Callable[[App, int], Any], valkey_url: str
) -> None:
    left = await flooded(app, send, valkey_url)

    assert left.keys <= 1  # The hash key.


@pytest.mark.parametrize("send", [floods.session_ids, floods.claims, floods.credentials])
async def test_what_nobody_refuses_leaves_keys_within_the_limit_on_new_sessions(
    send: Callable[[App, int], Any], valkey_url: str
) -> None:
    left = await flooded(floods.anything, send, valkey_url)

    assert LIMIT < left.keys <= 2 * LIMIT * KEYS_OF_ONE + CONSTANT  # It may go over the turn of a minute.
