"""Count the calls, streams and SDK sessions that are open in this process.

They are counted when metrics are read; a request only enters a table and leaves it.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Sized
from contextlib import suppress
from time import perf_counter
from typing import Any, Final, Literal, get_args

from otel_mcp.bounded import BoundedNames
from otel_mcp.model.call import Call, Exchange
from otel_mcp.model.delta import OpenCall
from otel_mcp.semconv import OTHER
from otel_mcp.wire.jsonrpc import KNOWN_METHODS, STREAMS

_HANGING_SECONDS: Final = 5.0
"""Seconds in flight from which on a tool call is reported as hanging."""
_MAX_HANGING: Final = 5
"""Hanging calls that a process reports, the oldest."""
MIN_STREAM_SECONDS: Final = 1.0
"""Seconds from which on an event stream that answers a POST counts as a stream; most end after one result."""
Kind = Literal["get", "listen", "sse", "post"]

Served = tuple[str, str | None]
"""A method and, for a tool call, its tool; both bounded."""


class Census:
    """Tables of open calls and streams; may be read from any thread."""

    def __init__(self, tools: BoundedNames) -> None:
        self._tools = tools
        self.served: set[Served] = set()
        """Methods and tools that have been measured or counted; they show as zero when nothing is open."""
        self._holders: dict[int, tuple[weakref.ref[Any], str]] = {}
        self.forget()

    def forget(self) -> None:
        """Start empty in a forked child, since open calls and streams are the parent's."""
        self.calls: dict[Call, None] = {}
        """Calls without an outcome, oldest first."""
        self.streams: dict[Exchange, float] = {}
        """Open event streams with the `perf_counter` second at which each began."""

    def requests(self) -> dict[Served, int]:
        """Count the calls in flight."""
        counts = Counter(dict.fromkeys(list(self.served), 0))
        counts.update(map(self._served, list(self.calls)))
        self.served.update(counts)
        return counts

    def oldest(self) -> dict[str, float]:
        """Return the age of each tool's oldest call in flight, in seconds."""
        ages, now = dict.fromkeys((tool for _, tool in list(self.served) if tool is not None), 0.0), perf_counter()
        for call in list(self.calls):
            self.served.add(served := self._served(call))
            if (tool := served[1]) is not None:
                ages[tool] = max(ages.get(tool, 0.0), now - call.exchange.started)
        return ages

    def hanging(self, instance: str) -> list[OpenCall]:
        """Return the oldest tool calls that have been in flight for seconds; `instance` names this process."""
        found, latest = list[OpenCall](), perf_counter() - _HANGING_SECONDS
        for call in list(self.calls):
            if call.exchange.started > latest or len(found) >= _MAX_HANGING:
                break
            if call.method == "tools/call":
                session = call.session.conversation or call.session if call.session is not None else None
                session_id = session.facts.session_id if session is not None else None
                found.append(OpenCall(call.target or "", call.exchange.started_ns / 1e9, session_id, instance))
        return found

    def _served(self, call: Call) -> Served:
        if call.method == "tools/call":
            # No answer proves the name of a tool that always hangs, but a patch that saw it entered does.
            proven = call.trusted_name and call.target is not None
            return call.method, self._tools.bounded(call.target or "", proven=proven)
        return call.method if call.method in KNOWN_METHODS else OTHER, None

    def open_streams(self) -> dict[str, int]:
        """Count the open streams, by their kind."""
        counts, now = dict[str, int].fromkeys(get_args(Kind), 0), perf_counter()
        for exchange, began in list(self.streams.items()):
            if (kind := kind_of(exchange, now - began)) is not None:
                counts[kind] += 1
        return counts

    def watch(self, holder: object, field: str) -> None:
        """Count the transport sessions that an object of an SDK holds in `field`, as long as the object lives."""
        key = id(holder)
        if key not in self._holders:
            with suppress(TypeError):  # The object may not support weak references.
                self._holders[key] = weakref.ref(holder, lambda _: self._holders.pop(key, None)), field

    def transport_sessions(self) -> int | None:
        """Count the sessions that the SDK holds; ``None`` = no such SDK."""
        held = [getattr(reference(), field, None) for reference, field in list(self._holders.values())]
        sizes = [len(each) for each in held if isinstance(each, Sized)]
        return sum(sizes) if sizes else None


def kind_of(exchange: Exchange, seconds: float) -> Kind | None:
    """Return the kind of stream of an answer that has lasted `seconds`; ``None`` = not a stream, or not MCP."""
    if not exchange.confirmed:
        return None
    if exchange.http_method == "GET":
        return "sse" if exchange.sse_endpoint else "get"
    if any(call.method in STREAMS for call in exchange.calls):
        return "listen"
    return "post" if seconds >= MIN_STREAM_SECONDS else None
