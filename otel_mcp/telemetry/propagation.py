"""Find the parent context of a request: from ``_meta``, from headers, or from the context that it is served in.

The configured propagator may be any library's. Only its documented interface is
used; if it raises, the context is lost, not the request. Propagators log malformed
values with their text, so that a client could write to the server's log: these are
left out before.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from opentelemetry import context as otel_context
from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import Getter, TextMapPropagator

from otel_mcp.guard import report
from otel_mcp.model.call import Call, Exchange
from otel_mcp.wire import headers as wire_headers
from otel_mcp.wire.jsonrpc import text

_MAX_READ: Final = 8193
"""Characters of a header that are read, one more than `carried` accepts."""
_MAX_LENGTH: Final = 8192
"""Characters; W3C's limit for baggage."""
_LONGEST: Final = {"traceparent": 512}
"""Characters; the limit of OpenTelemetry's propagator."""
_LIMITS: Final = {"baggage": (180, 4096), "tracestate": (32, 513)}
"""Greatest number of members, and characters of each."""
_NAME: Final = r"[a-z][_0-9a-z\-*/]"
_MEMBERS: Final = {
    "baggage": re.compile(
        r"[ \t]*[!#$%&'*+\-.^_`|~0-9A-Za-z]+[ \t]*=[ \t]*[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*[ \t]*"
        r"(?:;[!#$%&'*+\-.^_`|~0-9A-Za-z]+(?:=[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*)?)*"
    ),
    "tracestate": re.compile(
        rf"[ \t]*(?:{_NAME}{{0,255}}|[a-z0-9][_0-9a-z\-*/]{{0,240}}@{_NAME}{{0,13}})="
        r"[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e][ \t]*"
    ),
}
_SPACE: Final = {"baggage": re.compile(r"[ \t]*([,;=])[ \t]*"), "tracestate": re.compile(r"[ \t]*(,)[ \t]*")}
"""Optional whitespace, which older propagators do not expect."""


class _Getter(Getter[Mapping[str, str]]):
    """Reads a carrier with lower-case names, whatever case a propagator uses."""

    def get(self, carrier: Mapping[str, str], key: str) -> list[str] | None:
        value = carrier.get(key.lower())
        return None if value is None else [value]

    def keys(self, carrier: Mapping[str, str]) -> list[str]:
        return list(carrier)


class _Fields(NamedTuple):
    """The fields that a propagator reads, cached since each lookup computes them again."""

    textmap: TextMapPropagator | None
    names: dict[str, str]
    """Each name with its lower-case form."""
    headers: frozenset[bytes]


_GETTER: Final = _Getter()
_known = _Fields(None, {}, frozenset())
"""The fields of the configured propagator, which is compared by identity, since it may not be hashable."""


def _slow_fields(textmap: TextMapPropagator) -> _Fields:
    global _known
    names: dict[str, str] = {}
    try:
        names = {name: name.lower() for name in textmap.fields}
    except Exception as failure:
        report("propagator", failure)
    _known = _Fields(textmap, names, frozenset(name.encode("latin-1", "replace") for name in names.values()))
    return _known


def _extract(carrier: dict[str, str], context: Context) -> Context:
    try:
        # Some propagators return None.
        extracted: Any = propagate.extract(carrier, context, _GETTER)
        return extracted if extracted is not None else context
    except Exception as failure:
        report("propagator", failure)
        return context


def without_ended_span(context: Context) -> Context:
    """Return the context without its span if that is an SDK span that has ended.

    A server may serve a request in a context left over from an earlier request of
    the connection.
    """
    if getattr(trace.get_current_span(context), "end_time", None) is None:
        return context
    return trace.set_span_in_context(trace.INVALID_SPAN, context)


def ambient_context(exchange: Exchange) -> Context:
    """Return the context of the HTTP request: that of an HTTP span if there is one, else of its headers."""
    ambient = exchange.ambient if exchange.ambient is not None else otel_context.get_current()
    textmap = propagate.get_global_textmap()
    fields = _known if textmap is _known.textmap else _slow_fields(textmap)
    if exchange.headers.keys().isdisjoint(fields.headers):
        return ambient
    if trace.get_current_span(ambient).get_span_context().is_valid:
        return ambient
    read = ((name, wire_headers.text(exchange.headers, name.encode(), _MAX_READ)) for name in fields.names.values())
    return _extract(carried(read), ambient)


def parent_of(call: Call) -> Context:
    """Return the parent context for the span of a message.

    A valid span context in ``_meta`` is the parent; then the HTTP span is linked,
    if it is sampled, as the MCP conventions require.
    """
    exchange = call.exchange
    ambient, is_known = exchange.ambient, propagate.get_global_textmap() is _known.textmap
    if ambient is None or not is_known or not exchange.headers.keys().isdisjoint(_known.headers):
        ambient = ambient_context(exchange)
    if not call.meta or call.meta.keys().isdisjoint(_known.names):
        return ambient
    carrier = carried((lower, call.meta.get(name)) for name, lower in _known.names.items())
    around = trace.get_current_span(ambient).get_span_context()
    parent = _extract(carrier, trace.set_span_in_context(trace.INVALID_SPAN, ambient))
    if not trace.get_current_span(parent).get_span_context().is_valid:
        return ambient
    if around.is_valid and around.trace_flags.sampled:
        call.link = around
    return parent


def carried(fields: Iterable[tuple[str, object]]) -> dict[str, str]:
    """Return the well-formed fields of a client's trace context, without optional whitespace."""
    return {
        name: text(_without_space(name, value), _MAX_LENGTH)
        for name, value in fields
        if isinstance(value, str) and len(value) <= _LONGEST.get(name, _MAX_LENGTH) and _is_readable(name, value)
    }


def _without_space(name: str, value: str) -> str:
    space = _SPACE.get(name)
    return value if space is None else space.sub(r"\1", value).strip(" \t")


def _is_readable(name: str, value: str) -> bool:
    pattern = _MEMBERS.get(name)
    if pattern is None:
        return True
    max_members, max_length = _LIMITS[name]
    members = value.split(",", max_members)
    return len(members) <= max_members and all(
        len(member) <= max_length and pattern.fullmatch(member) is not None for member in members
    )
