"""The HTTP server span, where nobody else makes one.

Asked at the SDK's own seam, which lies inside every HTTP instrumentation: if a
span is current there, somebody instruments HTTP already.
"""

from __future__ import annotations

from typing import Any

from opentelemetry import trace
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.trace import Span, TracerProvider

from otel_mcp import process
from otel_mcp.guard import guarded
from otel_mcp.middleware import ASGIApp, Receive, Scope, Send

_GUARD = guarded("HTTP span")
_APP_KEY = "otel_mcp.app"
_DONE_KEY = "otel_mcp.http_span"


def http_app(scope: Scope) -> ASGIApp | None:
    """The app to call instead, with the scope of :func:`within`, if an HTTP span of ours is wanted here."""
    runtime = process.existing()
    if runtime is None or runtime.settings.http_span == "off" or _DONE_KEY in scope:
        return None
    if runtime.settings.http_span == "auto" and trace.get_current_span().get_span_context().is_valid:
        return None
    return runtime.http_app()


def within(scope: Scope, app: ASGIApp) -> Scope:
    """Name the app that the HTTP span goes around."""
    scope[_APP_KEY] = app
    scope[_DONE_KEY] = True
    return scope


def make_http_app(provider: TracerProvider | None) -> ASGIApp:
    """The OpenTelemetry ASGI middleware around whatever app the scope names; one for the process.

    Its metrics are not for us to add: a series for each ``Host`` that a stranger makes up.
    """
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware  # pyright: ignore[reportMissingTypeStubs]

    return OpenTelemetryMiddleware(  # pyright: ignore[reportReturnType]
        _run,
        exclude_spans=["send", "receive"],
        server_request_hook=_without_query,
        tracer_provider=provider,
        meter_provider=NoOpMeterProvider(),
    )


def _without_query(span: Span, scope: Scope) -> None:
    """Take the query off: it may hold a token or a session, and the middleware records it as it is."""
    with _GUARD:
        if scope.get("query_string") and span.is_recording():
            recorded: dict[str, Any] = dict(getattr(span, "attributes", None) or {})
            for name in ("http.url", "http.target", "url.full"):
                if isinstance(value := recorded.get(name), str):
                    span.set_attribute(name, value.partition("?")[0])
            if "url.query" in recorded:
                span.set_attribute("url.query", "")


async def _run(scope: Scope, receive: Receive, send: Send) -> None:
    app: ASGIApp = scope.pop(_APP_KEY)
    await app(scope, receive, send)
