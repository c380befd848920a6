"""Types that several layers share: those of ASGI, and what the session store knows of a request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]


class Asker(Protocol):
    """A request, which has one patience for all that it asks of the session store."""

    waited: float
    """Seconds that it has waited so far."""
