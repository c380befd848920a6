"""Types that several layers share: those of ASGI, and a request's time budget for the store."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]


class Asker(Protocol):
    """A request, with one time budget for all its questions to the session store."""

    waited: float
    """Seconds that the request has waited for the store so far."""
