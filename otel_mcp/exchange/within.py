"""The answer of a server without an SDK, read where its handler sends it.

A middleware around the handler may compress it: what then leaves the app cannot
be read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from otel_mcp.exchange.response_headers import by_name, with_headers_at_hand
from otel_mcp.guard import report
from otel_mcp.model.call import Exchange

if TYPE_CHECKING:
    from otel_mcp.exchange.answer import Answer
    from otel_mcp.types import Message, Send

MakeAnswer = Callable[[Exchange, Mapping[bytes, bytes]], "Answer"]


class Within:
    """The `send` of a handler: forwards first, and reads where nobody further out can."""

    __slots__ = ("_answer", "_exchange", "_make", "_passes", "_present", "_send")

    def __init__(self, exchange: Exchange, send: Send, make: MakeAnswer) -> None:
        self._exchange = exchange
        self._send = send
        self._make = make
        self._present: Mapping[bytes, bytes] = {}
        self._answer: Answer | None = None
        self._passes = False
        """It is read further out, or is no MCP."""

    async def __call__(self, message: Message) -> None:
        if self._passes:
            return await self._send(message)
        # Who compresses puts the compressed body into the same message.
        body, more = message.get("body", b""), message.get("more_body", False)
        try:
            if message["type"] == "http.response.start":
                message = with_headers_at_hand(message)
                self._present = by_name(message.get("headers", ()))
        except Exception as failure:
            report("send", failure)
        await self._send(message)
        try:
            if message["type"] == "http.response.body":
                self._read(body if type(body) is bytes else memoryview(body).cast("B"), more=more)
        except Exception as failure:
            report("send", failure)

    def _read(self, body: bytes | memoryview, *, more: bool) -> None:
        outer = self._exchange.answer
        if self._answer is None:
            if not self._exchange.confirmed or (outer is not None and outer.is_readable):
                self._passes = True
                return
            self._answer = self._make(self._exchange, self._present)
        self._answer.feed(body, more=more)
