"""The circuit breaker, and what is logged of an outage."""

from __future__ import annotations

import asyncio
import logging

import pytest

from otel_mcp.sessions.health import StoreHealth
from otel_mcp.store.base import StoreDown
from tests.support.stores import Clock, Listener


def test_the_breaker_asks_later_each_time_up_to_its_longest_pause() -> None:
    clock = Clock()
    health = StoreHealth(Listener(), clock=clock)
    assert (health.is_away, health.wait) == (False, 0.0)

    for longest in (0.25, 0.5, 1.0, 2.0, 2.0, 2.0):
        health.failed(StoreDown("ConnectionError"))
        assert longest / 2 <= health.wait <= longest
        clock.now += health.wait
        assert (health.is_away, health.wait) == (True, 0.0)

    health.succeeded()
    health.succeeded()
    assert (health.is_away, health.recoveries) == (False, 1)
    health.failed(StoreDown("ConnectionError"))
    assert health.wait <= 0.25


def test_the_breaker_hardly_asks_where_it_is_not_let_in() -> None:
    health = StoreHealth(Listener(), clock=Clock())
    health.failed(StoreDown("NOAUTH", denied=True))
    assert health.wait >= 15


def test_a_store_that_comes_and_goes_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "otel_mcp")
    clock = Clock()
    health = StoreHealth(Listener(), clock=clock)

    def outages(count: int) -> list[int]:
        caplog.clear()
        for _ in range(count):
            health.failed(StoreDown("TimeoutError"))
            health.succeeded()
            clock.now += 1
        return [record.levelno for record in caplog.records]

    assert outages(20) == [logging.WARNING, logging.INFO] * 5
    clock.now += 60
    assert outages(1) == [logging.WARNING, logging.INFO]


def test_a_failing_part_of_a_cluster_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "otel_mcp")
    clock = Clock()
    health = StoreHealth(Listener(), divided=True, clock=clock)

    def logged() -> list[int]:
        return [record.levelno for record in caplog.records]

    # A question fails, another one is answered: that says nothing of the part which failed.
    health.failed(StoreDown("ConnectionError"))
    assert health.is_away
    health.answered()
    assert (health.is_away, health.is_partial, logged()) == (False, True, [logging.WARNING])
    # It fails again and again, and only that: nobody else has to do without the store.
    for _ in range(4):
        clock.now += 4
        health.failed(StoreDown("ConnectionError"))
        health.all_written()
        assert (health.is_away, health.is_partial, logged()) == (False, True, [logging.WARNING])
    # Then nothing can be used any more.
    health.failed(StoreDown("ConnectionError"), proof=True)
    assert (health.is_away, logged()) == (True, [logging.WARNING])
    health.answered()
    clock.now += 6
    health.all_written()
    assert (health.is_away, health.is_partial, logged()) == (False, False, [logging.WARNING, logging.INFO])


def test_a_cancelled_operation_is_not_counted_as_done() -> None:
    listener = Listener()
    with pytest.raises(asyncio.CancelledError), StoreHealth(listener).operation("flush"):
        raise asyncio.CancelledError

    assert listener.operations == {("flush", "error"): 1}
