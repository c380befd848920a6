"""The HTTP server span of an MCP request, where no HTTP instrumentation makes one.

Attributes and names come from the functions that ``opentelemetry-instrumentation-asgi``
exports, so the span looks like that library's; its middleware is not used. That
middleware wraps `receive` and `send` once more, hands whole requests to the
propagators, and lets what its helpers raise reach the client.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.instrumentation.utils import is_http_instrumentation_enabled
from opentelemetry.trace import SpanKind, Status, StatusCode, TracerProvider

from otel_mcp import semconv
from otel_mcp.guard import guarded, report
from otel_mcp.model.call import Exchange
from otel_mcp.settings import Settings
from otel_mcp.telemetry.propagation import ambient_context, without_ended_span
from otel_mcp.types import Message, Scope
from otel_mcp.version import __version__
from otel_mcp.wire import headers as wire_headers

SCOPE: Final = f"{semconv.SCOPE}.http"
"""Instrumentation scope, separate from that of messages, so that each can be counted."""
_MAX_KNOWN: Final = 512
"""Maximum number of cached names and attributes of requests."""
_LONGEST: Final = 1024
"""Characters of path and headers beyond which they are not cached."""
_PORTS: Final = (semconv.CLIENT_PORT, "net.peer.port")
"""Attributes that differ between connections of one client."""
_GUARD: Final = guarded("HTTP span")


class HTTPSpans:
    """Opens and ends the HTTP spans of one process."""

    def __init__(self, settings: Settings, provider: TracerProvider | None) -> None:
        self._when = settings.http_span
        self.is_off = settings.http_span == "off"
        self._tracer = trace.get_tracer(SCOPE, __version__, provider, semconv.SCHEMA_URL)
        self._library: _Library | None = None

    def begin(self, exchange: Exchange, scope: Scope) -> Context | None:
        """Open the HTTP span of a request, unless another instrumentation has opened one.

        Called at each place that lies inside the HTTP instrumentation of others,
        perhaps several times; the first call decides.

        Returns:
            The context to make current; ``None`` = the current one is right.
        """
        if exchange.http_span is not None:
            return None if trace.get_current_span().get_span_context().is_valid else exchange.ambient
        if exchange.http_decided or self.left_to_others(exchange):
            return None
        exchange.http_decided = True
        library = self._library or self._load()
        if library is None:
            return None
        with _GUARD:
            parent = ambient_context(exchange)
            around = trace.get_current_span(parent).get_span_context()
            kind = SpanKind.INTERNAL if around.is_valid and not around.is_remote else SpanKind.SERVER
            name, attributes = library.describe(exchange, scope)
            span = self._tracer.start_span(name, parent, kind, attributes, start_time=exchange.started_ns)
            exchange.http_span = span
            exchange.ambient = trace.set_span_in_context(span, parent)
        return exchange.ambient if exchange.http_span is not None else None

    def decide(self, exchange: Exchange, scope: Scope) -> None:
        """Open the span of a request known to be MCP, when its answer begins; else, note whether it may be ours."""
        if exchange.confirmed:
            self.begin(exchange, scope)
        else:
            self.left_to_others(exchange)

    def left_to_others(self, exchange: Exchange) -> bool:
        """Return whether not to open a span: it is disabled, or there is one already."""
        if exchange.http_decided:
            return exchange.http_span is None
        if self.is_off or not is_http_instrumentation_enabled():
            exchange.http_decided = True
        elif self._when == "auto":
            # Of the context that the request came with, a span may be left that has ended.
            current = trace.get_current_span(without_ended_span(otel_context.get_current()))
            exchange.http_decided = current.get_span_context().is_valid
        return exchange.http_decided

    def respond(self, exchange: Exchange, message: Message) -> Message:
        """Capture configured response headers; return the start, with those of a response propagator."""
        span, library = exchange.http_span, self._library
        if span is None or library is None:
            return message
        if library.response_headers:
            library.slow_capture(span, message)
        propagator = library.response_propagator()
        return message if propagator is None else library.slow_propagate(propagator, span, message)

    def end(self, exchange: Exchange, error: BaseException | None = None) -> None:
        """End the span, once; `error` is what the app raised."""
        span, exchange.http_span = exchange.http_span, None
        if span is None:
            return
        status, library = exchange.status, self._library
        try:
            if status is not None and status < 500 and error is None and not (library is None or library.has_old_names):
                span.set_attribute(semconv.HTTP_RESPONSE_STATUS_CODE, status)
            else:
                self._slow_status(exchange, span, error)
        except Exception as failure:
            report("HTTP span", failure)
        span.end()

    def _slow_status(self, exchange: Exchange, span: trace.Span, error: BaseException | None) -> None:
        status = exchange.status
        if status is not None and self._library is not None:
            self._library.set_status(span, status)
        if (error is not None or status is None) and not exchange.disconnected and (status or 0) < 500:
            # Without an answer of the app the server answers 500 by itself.
            span.set_attribute(semconv.ERROR_TYPE, type(error).__qualname__ if error is not None else "500")
            span.set_status(Status(StatusCode.ERROR))

    def _load(self) -> _Library | None:
        try:
            self._library = _Library()
        except Exception as failure:
            self.is_off = True
            report("HTTP span", failure)
        return self._library


class _Library:
    """The used parts of ``opentelemetry-instrumentation-asgi``, imported when the first span is opened."""

    def __init__(self) -> None:
        from opentelemetry.instrumentation import asgi  # pyright: ignore[reportMissingTypeStubs]
        from opentelemetry.instrumentation._semconv import _StabilityMode  # pyright: ignore[reportPrivateUsage]
        from opentelemetry.instrumentation.propagators import get_global_response_propagator
        from opentelemetry.util import http

        self._asgi: Any = asgi
        self.response_propagator: Callable[[], Any] = get_global_response_propagator
        # The stable names unless somebody asks for both: of this span there are no users of the old ones.
        asked = os.environ.get("OTEL_SEMCONV_STABILITY_OPT_IN", "").split(",")
        self.has_old_names = "http/dup" in map(str.strip, asked)
        self._mode = _StabilityMode.HTTP_DUP if self.has_old_names else _StabilityMode.HTTP
        self._request_headers = http.get_custom_headers(http.OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST)
        self.response_headers = http.get_custom_headers(http.OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_RESPONSE)
        self._sanitize = http.SanitizeValue(
            http.get_custom_headers(http.OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SANITIZE_FIELDS)
        )
        self._normalise_request = http.normalise_request_header_name
        self._normalise_response = http.normalise_response_header_name
        self._known: dict[tuple[Any, ...], tuple[str, dict[str, Any]]] = {}

    def describe(self, exchange: Exchange, scope: Scope) -> tuple[str, dict[str, Any]]:
        """Collect the name and the attributes of the span. Without the query: it may hold a token or a session."""
        headers, server = exchange.headers, scope.get("server")
        host, user_agent = headers.get(b"host"), headers.get(b"user-agent")
        asked: dict[str, Any] = {
            "type": "http",
            "method": exchange.http_method,
            "path": exchange.path,
            "scheme": scope.get("scheme", "http"),
            "server": tuple(server) if server else None,
            "client": (exchange.client, bool(exchange.client_port)) if exchange.client else None,
            "http_version": exchange.http_version,
            "root_path": scope.get("root_path", ""),
            "headers": ((b"host", host), (b"user-agent", user_agent)),
        }
        described = self._known.get(key := tuple(asked.values())) or self._slow_describe(key, asked)
        attributes = described[1].copy()
        for port in _PORTS:
            if port in attributes:
                attributes[port] = exchange.client_port
        if self._request_headers:
            attributes |= self._collect(list(headers.items()), self._request_headers, self._normalise_request)
        return described[0], attributes

    def _slow_describe(self, key: tuple[Any, ...], asked: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        asked["headers"] = [(name, value) for name, value in asked["headers"] if value is not None]
        name, attributes = asked["method"], {}
        with _GUARD:
            name, further = self._asgi.get_default_span_details(asked)
            attributes = {**self._asgi.collect_request_attributes(asked, self._mode), **further}
            if asked["server"] and "server.address" in attributes:
                attributes["server.address"] = str(asked["server"][0])  # The library's has the port in it.
            if len(asked["path"]) + sum(len(value) for _, value in asked["headers"]) <= _LONGEST:
                if len(self._known) >= _MAX_KNOWN:
                    self._known.clear()
                self._known[key] = name, attributes
        return name, attributes

    def _collect(self, headers: Any, wanted: list[str], normalise: Any) -> dict[str, Any]:
        with _GUARD:
            scope = {"headers": headers}
            return self._asgi.collect_custom_headers_attributes(scope, self._sanitize, wanted, normalise)
        return {}

    def slow_capture(self, span: trace.Span, message: Message) -> None:
        """Set the configured response headers on the span."""
        span.set_attributes(self._collect(wire_headers.pairs(message), self.response_headers, self._normalise_response))

    def slow_propagate(self, propagator: Any, span: trace.Span, message: Message) -> Message:
        """Return the start of the response with the headers that the response propagator adds."""
        with _GUARD:
            answered = {**message, "headers": list(message.get("headers") or ())}
            context = trace.set_span_in_context(span, Context())
            propagator.inject(answered, context=context, setter=self._asgi.asgi_setter)
            return answered
        return message

    def set_status(self, span: trace.Span, status: int) -> None:
        """Set the status code of the response, and ERROR from 500 on."""
        self._asgi.set_status_code(span, status, None, self._mode)
