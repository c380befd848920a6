"""What happens to a service, and what its clients must see of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

from tests.restarts.service import Service, until
from tests.support.clients import LEGACY, connect
from tests.support.visitors import REFUSED
from tests.unit.identity.test_resolver import jwt


async def orderly(service: Service) -> None:
    """The process ends by SIGTERM; a client of the SDK has its stream open meanwhile."""
    before = await service.add()
    await service.come(6)
    identity: dict[str, Any] = {"name": "real", "mode": LEGACY, "headers": dict([jwt("real")])}
    async with connect(f"{service.relay.url}/mcp", **identity) as caller:
        await caller.call("add", a=1, b=2)
        old = caller.session_id
        await service.end(before)
        await service.add()
        try:
            await caller.call("add", a=1, b=2)
        except Exception:
            service.ledger.cut[old, "restart"] = 1
    async with connect(f"{service.relay.url}/mcp", **identity) as caller:
        await caller.call("add", a=1, b=2)
        service.ledger.back[caller.session_id, old] += 1
    await service.go_on("restart")


async def killed(service: Service) -> None:
    """The process is killed."""
    before = await service.add()
    await service.come(6)
    await service.end(before, kill=True)
    await service.add()
    await service.go_on("restart")


async def rolling(service: Service) -> None:
    """Three replicas are replaced one after the other."""
    await asyncio.gather(service.add(), service.add(), service.add())
    await service.come(12)
    for before in list(service.replicas):
        await service.add()
        await service.end(before)
        await service.go_on("restart")


async def astray(service: Service) -> None:
    """The proxy sends clients to the wrong replica, some for a moment."""
    await asyncio.gather(service.add(), service.add())
    await service.come(6)
    for visitor, _ in service.visitors:
        service.relay.astray.add(visitor.session_id)
    for number, (visitor, _) in enumerate(service.visitors):
        session_id = visitor.session_id
        assert await visitor.call() in REFUSED
        service.ledger.cut[session_id, "replica"] = 1
        if number % 2:
            assert await until(partial(service.has_document, session_id, lambda fields: "interrupted" in fields))
            service.relay.astray.remove(session_id)
            assert await visitor.call() == 200
            service.ledger.back[session_id, ""] += 1


SCENARIOS: Final[tuple[Callable[[Service], Awaitable[None]], ...]] = (orderly, killed, rolling, astray)
