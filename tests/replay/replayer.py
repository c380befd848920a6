"""Feeds a capture through the middleware, around an app that answers as was recorded.

Every step of every exchange (its beginning, each piece of its body, each piece
of its answer, the client's leaving, its end) is taken one after the other in
the recorded order, so that requests and streams overlap as they did; no time
passes but that of the clock which the package measures by.
"""

from __future__ import annotations

import heapq
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

import anyio
from anyio.abc import TaskGroup

from otel_mcp.types import Message
from tests.replay.capture import Capture, Recorded
from tests.support.asgi import make_scope
from tests.support.providers import Clock

PATIENCE: Final = 60
"""Seconds after which a replay that hangs fails."""
App = Callable[[Any, Any, Any], Awaitable[None]]


@dataclass(frozen=True)
class Step:
    """What one exchange does at one moment."""

    at: float
    kind: str
    messages: tuple[Message, ...] = ()


@dataclass
class Playing:
    """One exchange while it is replayed, and what came of it."""

    recorded: Recorded
    second_start: bool
    sent: list[Message] = field(default_factory=list[Message])
    """What the server got."""
    meant: list[Message] = field(default_factory=list[Message])
    """What the app sent."""
    got: list[Message] = field(default_factory=list[Message])
    """What the app received."""
    incoming: list[Message] = field(default_factory=list[Message])
    scope: Message = field(default_factory=dict[str, Any])
    """What the app was asked."""
    entered: anyio.Event = field(default_factory=anyio.Event)
    done: anyio.Event = field(default_factory=anyio.Event)
    orders: list[tuple[Step, anyio.Event]] = field(default_factory=list[tuple[Step, anyio.Event]])
    ordered: anyio.Event = field(default_factory=anyio.Event)

    def steps(self) -> list[Step]:
        """Everything after the beginning, in order."""
        recorded = self.recorded
        found = [_received(chunk.at, chunk.body, chunk.more) for chunk in recorded.request]
        read = found[-1].at if found else recorded.began
        if recorded.status is not None:
            start: Message = {
                "type": "http.response.start",
                "status": recorded.status,
                "headers": [(name.encode(), value.encode()) for name, value in recorded.response_headers],
            }
            # Where it stood is not recorded: streams of a session begin at once, other answers with their body.
            at_once = (recorded.streams and not recorded.modern) or not recorded.response
            found.append(Step(read if at_once else recorded.response[0].at, "send", (start,)))
        bodies: dict[float, list[Message]] = {}
        for chunk in recorded.response:
            message = {"type": "http.response.body", "body": chunk.body, "more_body": chunk.more}
            bodies.setdefault(chunk.at, []).append(message)
        found += [Step(at, "send", tuple(messages)) for at, messages in bodies.items()]
        if recorded.left is not None:
            found.append(Step(recorded.left, "receive", ({"type": "http.disconnect"},)))
        if self.second_start:
            found.append(
                Step(
                    recorded.ended,
                    "send",
                    (
                        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]},
                        {"type": "http.response.body", "body": b"", "more_body": False},
                    ),
                )
            )
        return [*found, Step(recorded.ended, "return")]

    async def app(self, scope: Message, receive: Any, send: Any) -> None:
        """The app: does what the capture has, when the capture has it."""
        self.scope = scope
        self.entered.set()
        while True:
            await self.ordered.wait()
            step, taken = self.orders.pop(0)
            if not self.orders:
                self.ordered = anyio.Event()
            if step.kind == "return":
                return
            for message in step.messages:
                if step.kind == "receive":
                    self.got.append(await receive())
                else:
                    self.meant.append(message)
                    await send(message)
            taken.set()

    async def receive(self) -> Message:
        return self.incoming.pop(0)

    async def send(self, message: Any) -> None:
        self.sent.append(dict(message))

    async def take(self, step: Step) -> None:
        """Have the app do one step, and wait until it is done."""
        if step.kind == "receive":
            self.incoming += step.messages
        taken = self.done if step.kind == "return" else anyio.Event()
        self.orders.append((step, taken))
        self.ordered.set()
        await taken.wait()


def _received(at: float, body: bytes, more: bool) -> Step:
    return Step(at, "receive", ({"type": "http.request", "body": body, "more_body": more},))


class Replay:
    """One scenario on its way through the middleware."""

    def __init__(self, capture: Capture, middleware: Callable[[App], App], clock: Clock) -> None:
        self._middleware = middleware
        self._clock = clock
        self._began = clock.now
        # Every server of 2024-11-05 that was recorded sends a second start when its stream has ended.
        self.playing = [Playing(each, second_start=each.path == "/sse") for each in capture.exchanges]
        self.minted: str | None = None
        """The id that we gave to the client of a server without sessions; it sends it back from then on."""

    async def run(self) -> list[Playing]:
        """Replay everything; returns the exchanges with what came of them."""
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                await self._conduct(group)
        return self.playing

    async def _conduct(self, group: TaskGroup) -> None:
        waiting: list[tuple[float, int, int]] = []
        steps = [playing.steps() for playing in self.playing]
        for number, playing in enumerate(self.playing):
            heapq.heappush(waiting, (playing.recorded.began, number, -1))
        while waiting:
            at, number, index = heapq.heappop(waiting)
            playing = self.playing[number]
            self._clock.now = self._began + at
            if index < 0:
                group.start_soon(self._serve, playing)
                await playing.entered.wait()
            else:
                await playing.take(steps[number][index])
                self._notice(playing)
            if index + 1 < len(steps[number]):
                following = steps[number][index + 1]
                heapq.heappush(waiting, (max(at, following.at), number, index + 1))

    async def _serve(self, playing: Playing) -> None:
        recorded = playing.recorded
        headers = list(recorded.headers)
        if self.minted and not recorded.modern and recorded.header("mcp-session-id") is None:
            headers.append(("mcp-session-id", self.minted))
        scope = make_scope(recorded.method, recorded.path, headers, query=recorded.query, client=recorded.client)
        try:
            await self._middleware(playing.app)(scope, playing.receive, playing.send)
        finally:
            playing.done.set()

    def _notice(self, playing: Playing) -> None:
        """Do what every legacy client does with an id on the answer to its ``initialize``."""
        message = playing.recorded.message if playing.recorded.method == "POST" else None
        if not isinstance(message, dict) or message.get("method") != "initialize" or not playing.sent:
            return
        given = {name for name, _ in playing.recorded.response_headers}
        for name, value in playing.sent[0].get("headers", ()):
            if name == b"mcp-session-id" and "mcp-session-id" not in given:
                self.minted = value.decode()
