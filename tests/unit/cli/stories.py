"""Sessions for the command line to look at, written as replicas write them."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from otel_mcp.model.delta import CallRecord, Flush, SessionDelta, SessionFacts
from otel_mcp.settings import Settings
from otel_mcp.store.base import ProducerId
from otel_mcp.store.redis.store import RedisStore

LONG_ID = "4d5a1c7e90b34f2e8a6b1c2d3e4f5a6b7c8d"


def call(tool: str, at: float, seconds: float = 0.0033, size: int | None = 267, **known: Any) -> CallRecord:
    """One call that began at `at`."""
    return CallRecord(tool, 1, at, seconds, result_bytes=size, **known)


def session(
    session_id: str,
    calls: list[CallRecord],
    *,
    began: float,
    last: float | None = None,
    ended: tuple[float, Any] | None = None,
    **known: Any,
) -> SessionDelta:
    """One session as one flush brings it."""
    facts = SessionFacts(session_id, began, known.pop("limit", 3600.0), **known)
    last = last if last is not None else max([began, *(made.started_at + made.duration for made in calls)])
    failed = sum(1 for made in calls if made.error_type)
    return SessionDelta(
        facts, last, requests=len(calls) + 2, errors=failed, call_count=len(calls), calls=calls, ended=ended
    )


def shop(now: float | None = None) -> list[SessionDelta]:
    """Three sessions of a shop: one that works, one that struggles, one that only looked."""
    now = time.time() if now is None else now
    works = [call("find_orders", now - 60 + 5 * at, trace_id=f"{at:032x}") for at in range(10)]
    began = now - 7200
    struggle = [
        call("find_orders", now - 700, 0.0033, 267, arguments_digest="a1"),
        call("refund", now - 697, 0.012, 180, arguments_digest="b1", error_type="-32602"),
        call("refund", now - 696, 0.011, 180, arguments_digest="b1", error_type="-32602"),
        call("refund", now - 691, 0.84, 310, arguments_digest="b2"),
        call("ship", now - 690, 2.5, 90, arguments_digest="c1", error_type="tool_error"),
    ]
    return [
        session(
            "c_7f3ab2",
            works,
            began=now - 840,
            client_name="claude-code",
            client_version="2.1.266",
            protocol_version="2025-11-25",
            source="conversation",
            principal="91c2d0f3aa",
            opened=True,
        ),
        session(
            "om1.uUrTOZUz",
            struggle,
            began=began,
            client_name="cursor",
            client_version="3.4",
            protocol_version="2025-11-25",
            source="header",
            previous_id="om1.before",
        ),
        session(LONG_ID, [], began=now - 40, client_name="glama", source="header"),
    ]


def write(url: str, deltas: list[SessionDelta], service: str = "shop", **settings: Any) -> None:
    """Write sessions as a replica of `service` does."""

    async def flush() -> None:
        process = ProducerId()
        store = RedisStore(Settings.model_validate({"redis_url": url, "service_name": service, **settings}), process)
        for delta in deltas:
            (answer,) = await store.apply([Flush(delta, process.token, process.next_sequence())])
            assert answer.refused is None
            assert answer.retry is None
        await store.aclose()

    asyncio.run(flush())
