"""A new answer to ``tools/list`` is read in turns of the loop, as many as its size takes, and never on the path."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from otel_mcp import MCPMiddleware
from otel_mcp.runtime import Runtime
from otel_mcp.telemetry import listings
from otel_mcp.wire.catalogue import PageReader
from tests.support.providers import Telemetry
from tests.unit.telemetry.test_catalogue import ADD, CLIENT, SIZE, SUB, Lister, bytes_of, definitions, listing

pytestmark = pytest.mark.anyio

_LARGE = [{**ADD, "name": f"tool-{number:03}", "description": "x" * 4000} for number in range(100)]


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How many characters were read in each turn."""
    made, read = list[float](), PageReader.read

    def counted(self: PageReader, most: float = float("inf")) -> int:
        made.append(read(self, most))
        return int(made[-1])

    monkeypatch.setattr(PageReader, "read", counted)
    return made


async def _are_read(runtime: Runtime) -> None:
    for _ in range(1000):
        await asyncio.sleep(0)  # A turn of the loop.
    assert not runtime.metrics.listings._waiting  # pyright: ignore[reportPrivateUsage]


async def test_a_large_list_is_read_in_slices_after_its_answer(
    runtime: Runtime, telemetry: Telemetry, turns: list[float]
) -> None:
    app = MCPMiddleware(Lister(*_LARGE), runtime)

    for number in range(2):
        await listing(app, number=number)
    assert turns == []
    runtime.recorder.drain()
    assert len(turns) == 1
    await _are_read(runtime)

    one, at_once = bytes_of(_LARGE[0]), listings._SLICE  # pyright: ignore[reportPrivateUsage]
    assert sum(turns) == 100 * one
    assert max(turns) < at_once + one
    assert len(turns) >= 100 * one // (at_once + one)
    assert telemetry.points(SIZE) == [(CLIENT, (2, 2 * bytes_of(*_LARGE)))]


async def test_what_is_exported_has_what_was_listed_before(
    runtime: Runtime, telemetry: Telemetry, turns: list[float]
) -> None:
    await listing(MCPMiddleware(Lister(*_LARGE), runtime))

    assert len(definitions(telemetry)) == 100
    assert len(turns) == 2


async def test_lists_are_taken_in_their_order_though_one_is_large(
    runtime: Runtime, telemetry: Telemetry, turns: list[float]
) -> None:
    pages: dict[str | None, Any] = {None: {"tools": _LARGE, "nextCursor": "2"}, "2": {"tools": [SUB]}}
    app = MCPMiddleware(Lister(pages=pages), runtime)
    await listing(app, "2", client="early")
    runtime.recorder.drain()
    await _are_read(runtime)

    for cursor in pages:
        await listing(app, cursor)
    runtime.recorder.drain()
    await _are_read(runtime)

    assert telemetry.points(SIZE) == [(CLIENT, (1, bytes_of(*_LARGE, SUB)))]


def test_a_loop_that_ends_leaves_the_rest_to_the_next_export(
    runtime: Runtime, telemetry: Telemetry, turns: list[float]
) -> None:
    async def serve() -> None:
        await listing(MCPMiddleware(Lister(*_LARGE), runtime))
        runtime.recorder.drain()

    loop = asyncio.new_event_loop()
    loop.run_until_complete(serve())
    loop.close()

    assert sum(turns) < bytes_of(*_LARGE)
    assert telemetry.points(SIZE) == [(CLIENT, (1, bytes_of(*_LARGE)))]
