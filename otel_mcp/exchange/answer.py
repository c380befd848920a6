"""Reads the answer of an exchange as it streams by, and tells how each call ended.

Bounded: a JSON body or an event beyond the limit is measured, not held.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from otel_mcp.model.call import Call, Exchange
from otel_mcp.wire.jsonrpc import JsonId, Outcome, json_id, outcome_of, parse_replies, result_id
from otel_mcp.wire.sse import Decoder, Event, whole

LIMIT: Final = 256 * 1024
"""Bytes held of one answer."""

_PLAIN: Final = frozenset({b"identity", b""})
_MESSAGES: Final = (b"message", b"")
"""Names of the events that carry JSON-RPC."""

Find = Callable[[JsonId], Call | None]
"""The call that an answer with this id belongs to."""
Finish = Callable[[Call, Outcome | None, int | None], None]
"""Called with a call, its outcome and the size of the answer in bytes."""


class Answer:
    """The response of one exchange."""

    __slots__ = (
        "_body",
        "_decoder",
        "_exchange",
        "_find",
        "_finish",
        "_kind",
        "_reads_results",
        "_size",
        "_unread",
        "on_endpoint",
        "on_reply",
    )

    def __init__(
        self, exchange: Exchange, find: Find, finish: Finish, headers: Mapping[bytes, bytes], *, reads_results: bool
    ) -> None:
        """Decide by the response's headers how to read its body; under a content encoding it passes unread.

        Args:
            exchange: what is answered.
            find: tells the call of an answer on this response.
            finish: takes each call that has been answered.
            headers: of the response, by lower-case name.
            reads_results: somebody wants the results themselves.
        """
        self._exchange = exchange
        self._find = find
        self._finish = finish
        content_type = headers.get(b"content-type", b"")
        self._kind = ""
        if headers.get(b"content-encoding", b"identity").strip().lower() in _PLAIN:
            if content_type.startswith(b"text/event-stream"):
                self._kind = "sse"
            elif content_type.startswith(b"application/json"):
                self._kind = "json"
        self._body: bytearray | bytes = b""
        self._unread: int | None = None
        """Size of an event that was too large to read."""
        self._size = 0
        self._decoder: Decoder | None = None
        self._reads_results = reads_results
        self.on_reply: Callable[[Call | None, Mapping[str, Any]], None] | None = None
        """Gets every answer that could be read, with its call if there is one."""
        self.on_endpoint: Callable[[bytes], None] | None = None
        """Gets the data of an ``endpoint`` event, with which a 2024-11-05 stream begins."""

    @property
    def is_readable(self) -> bool:
        """Whether it is JSON or an event stream, not encoded."""
        return self._kind != ""

    @property
    def is_stream(self) -> bool:
        """An event stream: what it has not brought, another one may."""
        return self._kind == "sse"

    def feed(self, chunk: bytes | memoryview, *, more: bool) -> None:
        """Read one body message that has already been forwarded."""
        if self._kind == "sse":
            if self._decoder is None and (event := whole(chunk, LIMIT)) is not None:
                self._event(event)
            elif chunk:
                if self._decoder is None:
                    self._decoder = Decoder(LIMIT)
                for event in self._decoder.feed(chunk):
                    self._event(event)
            if not more and self._unread is not None:
                self._too_large(self._unread)
        elif self._kind == "json":
            self._size += len(chunk)
            if self._size <= LIMIT:
                self._hold(chunk)
            if not more:
                self._json()

    def _hold(self, chunk: bytes | memoryview) -> None:
        if not self._body:
            self._body = bytes(chunk)  # Of an app that uses its buffer again, a copy.
        elif isinstance(self._body, bytearray):
            self._body += chunk
        else:
            self._body = bytearray(self._body) + chunk

    def _json(self) -> None:
        if self._size > LIMIT:
            self._too_large(self._size)
            return
        body, self._body = self._body, b""
        if body and not self._told(body, self._size):
            self._replies(body, self._size)

    def _replies(self, data: bytes | bytearray, size: int) -> None:
        try:
            replies = parse_replies(data)
        except ValueError:
            return  # What the server said makes no sense; that is between it and its client.
        for reply in replies:
            self._read(reply, size // len(replies))

    def _event(self, event: Event) -> None:
        if not self._exchange.confirmed:
            if event.name == b"endpoint" and event.data and self.on_endpoint is not None:
                self.on_endpoint(event.data)
            if not self._exchange.confirmed:
                self._kind = ""  # Somebody else's event stream.
        elif event.data is None:
            # The answer, or some notification: the end of the stream will tell.
            self._unread = event.size
        elif event.name in _MESSAGES and not self._told(event.data, event.size) and b'"id"' in event.data:
            self._replies(event.data, event.size)

    def _told(self, data: bytes | bytearray, size: int) -> bool:
        """Whether this is a result that the SDK's seam has seen before it was written: then it is not read again."""
        if self._reads_results or (request_id := result_id(data)) is None:
            return False
        call = self._exchange.sdk_call
        if call is None or call.id != request_id:
            call = self._find(request_id)
        if (
            call is None
            or call.method != "tools/call"
            or not call.accepted
            or call.running
            or call.handler_outcome is None
        ):
            return False
        if not call.finished:
            self._finish(call, call.handler_outcome, size)
        return True

    def _read(self, reply: Mapping[str, Any], size: int) -> None:
        if "method" in reply:
            return  # A request of the server's; ids of the two directions collide.
        outcome = outcome_of(reply)
        if outcome is None:
            return
        request_id = json_id(reply.get("id"))
        call = self._find(request_id) if request_id is not None else None
        if call is None:
            call = self._only_call()
            # Refusals carry no id, or one of the server's own making.
            refused = (self._exchange.status or 0) >= 400 or (reply.get("id") is None and "error" in reply)
            if call is not None and not call.id_unknown and not refused:
                call = None
        if self.on_reply is not None:
            self.on_reply(call, reply)
        if call is not None and not call.finished:
            self._finish(call, outcome, size)

    def _only_call(self) -> Call | None:
        pending = [call for call in self._exchange.calls if not call.finished]
        return pending[0] if len(pending) == 1 else None

    def _too_large(self, size: int) -> None:
        # Which call it answers, and how, cannot be read; with one call there is no doubt about the first.
        call = self._only_call()
        if call is not None:
            self._finish(call, call.handler_outcome or Outcome(unclassified=True), size)
