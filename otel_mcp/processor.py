"""Puts the session on every span that a message's handler opens.

A span processor, because those spans are made by libraries that know nothing of
us. It runs for every span of the process, so it does one look-up and, outside a
call, nothing else.
"""

from __future__ import annotations

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.trace import SpanKind, TracerProvider

from otel_mcp import semconv
from otel_mcp.guard import report
from otel_mcp.request import current_call
from otel_mcp.spans import NATIVE_SCOPES, adopt, session_attributes


class SessionSpanProcessor(SpanProcessor):
    """Stamps ``session.id`` and its source; never overwrites one that is there."""

    def __init__(self) -> None:
        self.enabled = True

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        call = current_call.get()
        if call is None or not self.enabled:
            return
        try:
            made_by = span.instrumentation_scope
            scope = made_by.name if made_by is not None else None
            if scope == semconv.SCOPE:
                return  # Ours has its own session, perhaps of another request than the one being served.
            if call.span is None and scope in NATIVE_SCOPES and span.kind is SpanKind.SERVER:
                adopt(call, span, scope)
            elif call.session is not None and semconv.SESSION_ID not in (span.attributes or {}):
                span.set_attributes(session_attributes(call))
        except Exception as failure:
            report("span processor", failure)

    def on_end(self, span: ReadableSpan) -> None:
        pass

    def shutdown(self) -> None:
        pass

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return True


def install(provider: TracerProvider | None) -> SessionSpanProcessor | None:
    """Add the processor to an SDK provider; ``None`` where there is none yet, so that it can be tried again."""
    target = provider if provider is not None else trace.get_tracer_provider()
    add = getattr(target, "add_span_processor", None)
    if add is None:
        return None
    processor = SessionSpanProcessor()
    add(processor)
    return processor
