"""What is open in this process at a moment: calls, streams, and the sessions that an SDK holds.

Counted only when metrics are read. A request does no more for it than stand in a table while it is served.
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

_HANGING: Final = 5.0
"""Seconds from which on a call in flight is worth a look."""
_SHOWN: Final = 5
"""Such calls that a process tells of, the oldest."""
LONG: Final = 1.0
"""Seconds from which on the event stream that answers a POST counts as a stream; most bring one result and end."""
Kind = Literal["get", "listen", "sse", "post"]

Served = tuple[str, str | None]
"""A method and, of a tool call, its tool; both bounded."""


class Census:
    """The tables, and what they say now. They are read from any thread."""

    def __init__(self, tools: BoundedNames) -> None:
        self._tools = tools
        self.served: set[Served] = set()
        """What has been measured, or counted here before: it shows as zero where nothing is open."""
        self._holders: dict[int, tuple[weakref.ref[Any], str]] = {}
        self.forget()

    def forget(self) -> None:
        """Start again in a forked child: what is open is the parent's."""
        self.calls: dict[Call, None] = {}
        """Calls that have arrived and have no outcome, oldest first."""
        self.streams: dict[Exchange, float] = {}
        """Answers that are event streams and have not ended; when each began, by `perf_counter`."""

    def requests(self) -> dict[Served, int]:
        """Count the calls in flight."""
        counts = Counter(dict.fromkeys(list(self.served), 0))
        counts.update(map(self._what, list(self.calls)))
        self.served.update(counts)
        return counts

    def oldest(self) -> dict[str, float]:
        """Return how long the oldest call in flight of each tool has taken so far, in seconds."""
        ages, now = dict.fromkeys((tool for _, tool in list(self.served) if tool is not None), 0.0), perf_counter()
        for call in list(self.calls):
            self.served.add(what := self._what(call))
            if (tool := what[1]) is not None:
                ages[tool] = max(ages.get(tool, 0.0), now - call.exchange.started)
        return ages

    def hanging(self, instance: str) -> list[OpenCall]:
        """Return the oldest tool calls that have been in flight for seconds, of the process that is called so."""
        found, until = list[OpenCall](), perf_counter() - _HANGING
        for call in list(self.calls):
            if call.exchange.started > until or len(found) >= _SHOWN:
                break
            if call.method == "tools/call":
                session = call.session.conversation or call.session if call.session is not None else None
                session_id = session.facts.session_id if session is not None else None
                found.append(OpenCall(call.target or "", call.exchange.started_ns / 1e9, session_id, instance))
        return found

    def _what(self, call: Call) -> Served:
        if call.method == "tools/call":
            # The name of a tool that always hangs is never proven by an answer, but by its having been entered.
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
        """Take note of an object of an SDK that holds transport sessions in `field`, for as long as it lives."""
        key = id(holder)
        if key not in self._holders:
            with suppress(TypeError):  # It allows no weak references.
                self._holders[key] = weakref.ref(holder, lambda _: self._holders.pop(key, None)), field

    def transport_sessions(self) -> int | None:
        """Count the sessions that the SDK holds; ``None`` = no SDK has been seen, or it shows none."""
        held = [getattr(reference(), field, None) for reference, field in list(self._holders.values())]
        sizes = [len(each) for each in held if isinstance(each, Sized)]
        return sum(sizes) if sizes else None


def kind_of(exchange: Exchange, seconds: float) -> Kind | None:
    """Return what kind of stream an answer is that has lasted so long; ``None`` = none, or not of MCP."""
    if not exchange.confirmed:
        return None
    if exchange.http_method == "GET":
        return "sse" if exchange.sse_endpoint else "get"
    if any(call.method in STREAMS for call in exchange.calls):
        return "listen"
    return "post" if seconds >= LONG else None
