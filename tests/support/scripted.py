"""ASGI apps that follow a script, and a server that writes down every message in both directions."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from otel_mcp.types import ASGIApp, Message, Receive, Scope, Send
from tests.support.asgi import make_scope

Step: TypeAlias = "str | Message | BaseException"
"""What an app does next: `RECEIVE`, a message to send, or an exception to raise."""

RECEIVE: Final = "receive"
OURS: Final = frozenset({b"mcp-session-id", b"x-session-id"})
"""The only headers that may be added to a response."""


@dataclass
class Scripted:
    """An app that does one step after the other, and notes what it was given."""

    steps: Sequence[Step]
    scopes: list[Scope] = field(default_factory=list["Scope"])
    failures: list[BaseException] = field(default_factory=list[BaseException])
    """What `receive` and `send` raised into the app."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(dict(scope))
        for step in self.steps:
            try:
                if isinstance(step, str):
                    await receive()
                elif not isinstance(step, BaseException):
                    await send(step)
            except BaseException as error:
                self.failures.append(error)
                raise
            if isinstance(step, BaseException):
                raise step


@dataclass
class Conversation:
    """Everything that passed between a server and an app, in its order."""

    events: list[tuple[str, Message]] = field(default_factory=list["tuple[str, Message]"])
    raised: BaseException | None = None

    def added_to(self, plain: Conversation) -> dict[bytes, bytes]:
        """The headers that stand here behind those of the same response there."""
        return dict(
            header
            for (_, message), (_, other) in zip(self.events, plain.events, strict=False)
            for header in _headers(message)[len(_headers(other)) :]
        )

    def without(self, added: Collection[bytes]) -> list[tuple[str, Message]]:
        """Every message, with headers of these names cut off where they come last."""
        return [(kind, _cut(message, added)) for kind, message in self.events]


async def converse(
    app: ASGIApp, scope: Scope, incoming: Sequence[Message], *, refuse_from: int | None = None
) -> Conversation:
    """Serve one connection.

    Args:
        app: The app.
        scope: Its scope, which is copied.
        incoming: What `receive` gives, one after the other; then it waits for ever.
        refuse_from: From this message on, `send` raises as it does when the client is gone.
    """
    conversation = Conversation()
    waiting = list(incoming)
    sent = 0

    async def receive() -> Message:
        if not waiting:
            await asyncio.Event().wait()
        message = waiting.pop(0)
        conversation.events.append(("received", deepcopy(message)))
        return message

    async def send(message: Message) -> None:
        nonlocal sent
        if refuse_from is not None and sent >= refuse_from:
            raise BrokenPipeError("the client is gone")
        sent += 1
        conversation.events.append(("sent", _as_read(message)))

    try:
        await app(deepcopy(scope), receive, send)
    except BaseException as error:
        conversation.raised = error
    return conversation


def _as_read(message: Message) -> Message:
    """A copy as a server takes it: headers may come in anything that can be gone through once."""
    if "headers" not in message:
        return deepcopy(message)
    return {**message, "headers": [tuple(header) for header in message["headers"]]}


def _headers(message: Message) -> list[tuple[bytes, bytes]]:
    return list(message.get("headers", ()))


def _cut(message: Message, added: Collection[bytes]) -> Message:
    headers = _headers(message)
    while headers and headers[-1][0] in added:
        headers.pop()
    if len(headers) == len(_headers(message)):
        return message
    rest = {key: value for key, value in message.items() if key != "headers"}
    return {**rest, "headers": headers} if headers else rest


def http_scope(method: str = "POST", headers: dict[str, str] | None = None, path: str = "/mcp") -> dict[str, Any]:
    """The scope of a request as uvicorn makes it."""
    given: dict[str, str] = {"host": "127.0.0.1:8000", "user-agent": "scripted/1.0", **(headers or {})}
    older = {"asgi": {"version": "3.0", "spec_version": "2.3"}, "state": {}}
    return {**make_scope(method, path, given.items()), **older}
