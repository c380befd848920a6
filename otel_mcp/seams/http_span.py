"""The HTTP server span, where nobody else makes one.

Asked at the SDK's own seam, which lies inside every HTTP instrumentation: if a
span is current there, somebody instruments HTTP already.
"""

from __future__ import annotations

from typing import Any

from opentelemetry import trace
from opentelemetry.trace import Span

from otel_mcp import process
from otel_mcp.guard import guarded
from otel_mcp.middleware import ASGIApp, Receive, Scope, Send
from otel_mcp.request import SCOPE_KEY

_GUARD = guarded("HTTP span")
_APP_KEY = "otel_mcp.app"


async def with_http_span(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Run `app` under an HTTP span of ours if the settings want one here."""
    traced: ASGIApp | None = None
    with _GUARD:
        traced = _traced(scope)
    if traced is None:
        await app(scope, receive, send)
        return
    scope[_APP_KEY] = app
    await traced(scope, receive, send)


def _traced(scope: Scope) -> ASGIApp | None:
    runtime = process.existing()
    if runtime is None or scope.get(SCOPE_KEY) is None or runtime.settings.http_span == "off":
        return None
    if runtime.settings.http_span == "auto" and trace.get_current_span().get_span_context().is_valid:
        return None
    return runtime.http_app()


def make_http_app(**providers: Any) -> ASGIApp:
    """The OpenTelemetry ASGI middleware around whatever app the scope names; one for the process."""
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware  # pyright: ignore[reportMissingTypeStubs]

    return OpenTelemetryMiddleware(  # pyright: ignore[reportReturnType]
        _run, exclude_spans=["send", "receive"], server_request_hook=_without_query, **providers
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
