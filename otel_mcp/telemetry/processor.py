"""Put the session on every span beneath that of a message; `logs` does so for log records.

A span processor, because the libraries that make those spans do not know us. A
span whose parent has a session gets the same one, even if the parent came from
a thread or an attached context. Only above the call's own span, and if the
parent has none, the call of the context decides. It runs for every span of
the process, so outside a call it does a few look-ups and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.trace import SpanKind, TracerProvider

from otel_mcp import semconv
from otel_mcp.guard import report
from otel_mcp.model.call import Call, current_call
from otel_mcp.telemetry.spans import CALL, NATIVE_SCOPES, TENTATIVE, adopt, session_attributes

_STAMP: Final = (semconv.SESSION_ID, semconv.SESSION_SOURCE)


class SessionSpanProcessor(SpanProcessor):
    """Stamps ``session.id`` and its source; never overwrites one that is there."""

    def __init__(self) -> None:
        self.enabled = True

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        if not self.enabled:
            return
        try:
            # A native span may have a context made of `_meta` alone: its call is that of the task.
            serving = current_call.get()
            scope = span.instrumentation_scope.name if span.instrumentation_scope is not None else None
            if serving is not None and serving.span is None and scope in NATIVE_SCOPES and span.kind is SpanKind.SERVER:
                adopt(serving, span, scope)
                return
            call = otel_context.get_value(CALL, parent_context)
            parent = trace.get_current_span(parent_context)
            carried = getattr(parent, "attributes", None)
            if call is None and not carried:  # Ours always carry something.
                return
            if scope == semconv.SCOPE:
                return  # Ours has its own session, perhaps of another request than the one being served.
            stamp = session_beneath(parent, call if isinstance(call, Call) else None, carried)
            if semconv.SESSION_ID in stamp and semconv.SESSION_ID not in (span.attributes or {}):
                span.set_attributes(stamp)
        except Exception as failure:
            report("span processor", failure)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return True


def session_beneath(parent: trace.Span, call: Call | None, carried: Mapping[str, Any] | None) -> Mapping[str, str]:
    """Return the attributes of the session that a span beneath `parent` belongs to; empty if to none.

    Args:
        parent: the current span of its context.
        call: the call of that context, if it names one.
        carried: attributes of `parent`.
    """
    if call is not None and call.span_context is None:
        return session_attributes(call)
    if carried and semconv.SESSION_SOURCE in carried:
        return {name: carried[name] for name in _STAMP if name in carried}
    if isinstance(parent, ReadableSpan) and parent in TENTATIVE:
        return TENTATIVE[parent]
    return session_attributes(call) if call is not None and is_beneath(parent, call) else {}


def is_beneath(parent: trace.Span, call: Call) -> bool:
    """Return whether a parent without a session is in the trace of the call, at its span or beneath it."""
    own, context = call.span_context, parent.get_span_context()
    if own is None or context.is_remote or context.trace_id != own.trace_id:
        return False
    above = getattr(call.span, "parent", None)
    return above is None or above.span_id != context.span_id


def install(provider: TracerProvider | None) -> SessionSpanProcessor | None:
    """Add the processor to an SDK provider; ``None`` if there is none yet, so that it can be tried again."""
    target = provider if provider is not None else trace.get_tracer_provider()
    add = getattr(target, "add_span_processor", None)
    if add is None:
        return None
    processor = SessionSpanProcessor()
    add(processor)
    return processor
