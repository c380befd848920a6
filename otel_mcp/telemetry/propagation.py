"""Trace context that a request brings: in its headers, in ``_meta``, or as the context that it is served in.

The configured propagator is another library's object. Only its documented
interface is used, and what it raises costs the context, not the request.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from opentelemetry import context as otel_context
from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import Getter, TextMapPropagator

from otel_mcp.guard import report
from otel_mcp.model.call import Call, Exchange
from otel_mcp.wire import headers as wire_headers
from otel_mcp.wire.carrier import carried

_MAX: Final = 8193
"""Characters of a header that are read; a longer one is dropped by `carried`."""


class _Getter(Getter[Mapping[str, str]]):
    """Reads a carrier of lower-case names, as HTTP has them, under whatever case a propagator asks."""

    def get(self, carrier: Mapping[str, str], key: str) -> list[str] | None:
        value = carrier.get(key.lower())
        return None if value is None else [value]

    def keys(self, carrier: Mapping[str, str]) -> list[str]:
        return list(carrier)


class _Fields(NamedTuple):
    """The names that a propagator reads; it gathers them again each time it is asked."""

    textmap: TextMapPropagator | None
    names: dict[str, str]
    """Each name with its lower-case form."""
    headers: frozenset[bytes]


_GETTER: Final = _Getter()
_known = _Fields(None, {}, frozenset())
"""Of the propagator that is configured. Compared by identity: it need be neither hashable nor comparable."""


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
        # A composite of no propagators returns what it is given, and some return nothing.
        extracted: Any = propagate.extract(carrier, context, _GETTER)
        return extracted if extracted is not None else context
    except Exception as failure:
        report("propagator", failure)
        return context


def without_ended_span(context: Context) -> Context:
    """Return the context, without its span where that is known to have ended: of the SDK's spans it is.

    A server may serve a request in a context that an earlier request of the
    connection left behind. What has ended is nobody's parent.
    """
    if getattr(trace.get_current_span(context), "end_time", None) is None:
        return context
    return trace.set_span_in_context(trace.INVALID_SPAN, context)


def ambient_context(exchange: Exchange) -> Context:
    """Return the context that the HTTP request came with: an HTTP span's if there is one, else its headers'."""
    ambient = exchange.ambient if exchange.ambient is not None else otel_context.get_current()
    textmap = propagate.get_global_textmap()
    fields = _known if textmap is _known.textmap else _slow_fields(textmap)
    if exchange.headers.keys().isdisjoint(fields.headers):
        return ambient
    if trace.get_current_span(ambient).get_span_context().is_valid:
        return ambient
    read = ((name, wire_headers.text(exchange.headers, name.encode(), _MAX)) for name in fields.names.values())
    return _extract(carried(read), ambient)


def parent_of(call: Call) -> Context:
    """Return the context that the span of a message belongs under.

    A valid span context in ``_meta`` is the parent; the ambient HTTP span is then
    linked, if it is sampled, as the MCP conventions ask.
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
