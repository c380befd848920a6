"""Exactly one server span for a message: completed where there is one, made where there is none.

A span is never opened at the HTTP seam: whatever instrumentation sits inside
would become its child. It is adopted, or opened, where the SDK hands the message
to its handler; and what was never handed over gets its span afterwards, with its
true times.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from socket import gethostname
from typing import Any, Final
from weakref import WeakKeyDictionary

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk import trace as sdk
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode, TracerProvider

from otel_mcp import semconv
from otel_mcp.model.call import Call, client_of
from otel_mcp.model.rounds import Round
from otel_mcp.telemetry.content import capture_result, captured
from otel_mcp.telemetry.propagation import parent_of
from otel_mcp.version import __version__
from otel_mcp.wire.jsonrpc import JsonId, Outcome
from otel_mcp.wire.uris import RESOURCE_METHODS, resource_uri

_SDK: Final = "mcp-python-sdk"
NATIVE_SCOPES: Final = frozenset({_SDK, "fastmcp"})
"""Instrumentation scopes of the libraries that open a server span of their own."""
QUICK: Final[type[Span] | None] = getattr(sdk, "_Span", None)
"""The SDK's class of spans. Clean attributes are put directly into its dictionary: cleaning them again was
a sixth of our cost of a call."""
NO_SPAN: Final = trace.set_span_in_context(trace.INVALID_SPAN, Context())
"""A context without a span. An empty context does not work: the SDK replaces it with the current one."""
CALL: Final = otel_context.create_key("otel_mcp-call")
"""Key of the call in the context of its handler."""
TENTATIVE: Final[WeakKeyDictionary[ReadableSpan, Mapping[str, str]]] = WeakKeyDictionary()
"""Session attributes for spans beneath that of a message, while the server may still refuse the message."""


def scope_of(span: Span) -> str | None:
    """Return the name of the instrumentation scope that opened a span."""
    scope: InstrumentationScope | None = getattr(span, "instrumentation_scope", None)
    return scope.name if scope is not None else None


def is_native(span: Span) -> bool:
    """Tell whether the SDK or FastMCP opened this span for a message."""
    return scope_of(span) in NATIVE_SCOPES and getattr(span, "kind", None) is SpanKind.SERVER


def session_attributes(call: Call) -> Mapping[str, str]:
    """Return the attributes that all spans of a session share, built once per session."""
    session = call.session
    if session is None:
        return {semconv.SESSION_SOURCE: "none"}
    if not session.attributes:
        facts = session.facts
        session.attributes[semconv.SESSION_ID] = facts.session_id
        session.attributes[semconv.SESSION_SOURCE] = session.source
    return session.attributes


def call_attributes(call: Call, scope: str | None = None, *, with_session: bool = True) -> dict[str, Any]:
    """Collect the attributes known before the handler runs, except those that the span of `scope` already has.

    Those that are the same for a client and its session are built once.
    """
    claim, exchange, attributes = call.claim, call.exchange, dict[str, Any]()
    if with_session and (claim is None or claim.session is not call.session or call.method == "initialize"):
        attributes = _common_attributes(call)
    elif with_session and claim is not None:
        facts = claim.session.facts if claim.session is not None else None
        made_of = (facts.client_name, facts.client_version, facts.previous_id) if facts is not None else ()
        if claim.attributes is None or claim.made_of != made_of:
            claim.attributes, claim.made_of = _common_attributes(call), made_of
        attributes = claim.attributes.copy()
        attributes[semconv.NETWORK_PROTOCOL_VERSION] = exchange.http_version  # It may differ between requests.
    if call.tenant is None and exchange.tenant_of is not None:
        call.tenant = exchange.tenant_of(exchange)
    if call.tenant is not None:
        attributes[semconv.TENANT] = call.tenant
    if exchange.client_port:
        attributes[semconv.CLIENT_PORT] = exchange.client_port
    # A text id may contain what the SDK cannot export.
    if call.id is not None and (scope != _SDK or type(call.id) is not int):
        attributes[semconv.JSONRPC_REQUEST_ID] = str(call.id)
    if call.method == "tools/call":
        if scope != _SDK:
            attributes[semconv.GEN_AI_OPERATION_NAME] = semconv.EXECUTE_TOOL
        if exchange.capture is not None:
            attributes |= captured(call, semconv.GEN_AI_TOOL_CALL_ARGUMENTS, call.params.get("arguments"))
    elif call.method in RESOURCE_METHODS and (uri := resource_uri(call.params)) is not None:
        attributes[semconv.MCP_RESOURCE_URI] = uri  # FastMCP overwrites it later with the raw URI.
    return attributes


def _common_attributes(call: Call) -> dict[str, Any]:
    exchange = call.exchange
    attributes: dict[str, Any] = {
        semconv.NETWORK_TRANSPORT: "tcp",
        semconv.NETWORK_PROTOCOL_NAME: "http",
        semconv.NETWORK_PROTOCOL_VERSION: exchange.http_version,
    }
    if transport_id := exchange.shown_session_id:
        attributes[semconv.MCP_SESSION_ID] = transport_id
    if call.claim is not None and call.claim.conversation_id:
        attributes[semconv.GEN_AI_CONVERSATION_ID] = call.claim.conversation_id
    if exchange.client:
        attributes[semconv.CLIENT_ADDRESS] = exchange.client
    # The header of its user agent is in the session's document and event: whatever stands on every span is paid for by
    # every call, above all where spans are encoded, in a thread that holds the interpreter meanwhile.
    name, version = client_of(call)
    if name:
        attributes[semconv.CLIENT_NAME] = attributes[semconv.USER_AGENT_NAME] = name
        if version:
            attributes[semconv.USER_AGENT_VERSION] = version
    if call.session is not None and call.session.facts.previous_id:
        attributes[semconv.SESSION_PREVIOUS_ID] = call.session.facts.previous_id
    # Last: with a limit of attributes, the SDK drops the oldest.
    attributes |= session_attributes(call)
    return attributes


def _identity(call: Call) -> tuple[str, dict[str, Any]]:
    """Return the name and the attributes that a native span would have: method, target and protocol version."""
    attributes: dict[str, Any] = {semconv.MCP_METHOD_NAME: call.method}
    if call.exchange.protocol_version:
        attributes[semconv.MCP_PROTOCOL_VERSION] = call.exchange.protocol_version[:32]
    if call.target is not None:
        key = semconv.GEN_AI_TOOL_NAME if call.method == "tools/call" else semconv.GEN_AI_PROMPT_NAME
        attributes[key] = call.target
    return f"{call.method} {call.target}" if call.target else call.method, attributes


def adopt(call: Call, span: Span, scope: str | None = None) -> None:
    """Complete the native span of a call. Must come before the handler: native spans end before the answer."""
    call.span = span
    call.span_context = span.get_span_context()
    attributes = call_attributes(call, scope)
    if scope != _SDK:
        # FastMCP names the target only where a middleware lets the message through to it.
        name, identity = _identity(call)
        span.update_name(name)
        attributes = {**identity, **attributes}
    is_quick = type(span) is QUICK and getattr(span, "_end_time", 0) is None
    bounded: Any = getattr(span, "_attributes", None) if is_quick else None
    held = getattr(bounded, "_dict", None)
    if (
        held is None
        or bounded.max_value_len is not None
        or (bounded.maxlen is not None and len(held) + len(attributes) > bounded.maxlen)
        or not held.keys().isdisjoint(attributes)
    ):
        span.set_attributes(attributes)
    else:
        held.update(attributes)
    if call.link is not None:
        span.add_link(call.link)
    if call.round is not None:
        call.round.mark(span)


def mark_asking(call: Call, span: Span) -> None:
    """Mark the open span of a call that asks for input as the first round, unless it is a later one."""
    call.round = call.round or Round(None, number=1)
    if call.round.state is None:
        call.round.mark(span)


def rename(call: Call, span: Span) -> None:
    """Restore the name of a call's span if a library has changed it."""
    name, identity = _identity(call)
    if name != getattr(span, "name", name):
        span.update_name(name)
        span.set_attributes(identity)


def complete(call: Call, span: Span, outcome: Outcome) -> None:
    """Set the failure of a call on its open span, as `Metrics.classify` decides it; without the error's text."""
    attributes: dict[str, Any] = {}
    if call.tenant is None and (tenant_of := call.exchange.tenant_of) is not None:
        call.tenant = tenant_of(call.exchange)  # The app identified its user after the span began.
    if call.tenant is not None:
        attributes[semconv.TENANT] = call.tenant
    if outcome.error_type is not None:
        attributes[semconv.ERROR_TYPE] = outcome.error_type
        span.set_status(Status(StatusCode.ERROR))
    if outcome.status_code is not None:
        attributes[semconv.RPC_RESPONSE_STATUS_CODE] = outcome.status_code
    if outcome.exception_type is not None:
        attributes[semconv.TOOL_EXCEPTION_TYPE] = outcome.exception_type
    if call.failure is not None:
        attributes[semconv.FAILURE] = call.failure
    span.set_attributes(attributes)


class Spans:
    """Opens and ends the spans that no library makes."""

    def __init__(self, provider: TracerProvider | None) -> None:
        self._provider = provider
        self._tracer = trace.get_tracer(semconv.SCOPE, __version__, provider, semconv.SCHEMA_URL)

    def instance(self) -> str:
        """Return the ``service.instance.id`` of this process, else its host and process id; 64 characters at most."""
        resource: Any = getattr(self._provider or trace.get_tracer_provider(), "resource", None)
        named = resource.attributes.get("service.instance.id") if resource is not None else None
        return str(named or f"{gethostname()}:{os.getpid()}")[:64]

    def open(self, call: Call, context: Context | None = None) -> Span:
        """Start the server span of a call for which no library opens one."""
        name, identity = _identity(call)
        span = call.span = self._tracer.start_span(
            name,
            context,
            SpanKind.SERVER,
            # While the server may refuse the message, the session is left out; it is set after the answer.
            {**identity, **call_attributes(call, with_session=not call.tentative)},
            [Link(call.link)] if call.link is not None else [],
            start_time=call.exchange.started_ns,
        )
        call.span_context = span.get_span_context()
        if call.round is not None:
            call.round.mark(span)
        if call.tentative and isinstance(span, ReadableSpan):
            TENTATIVE[span] = session_attributes(call)
        return span

    def asked(
        self, call: Call, method: str, request_id: JsonId, started_ns: int, seconds: float, failure: Mapping[str, str]
    ) -> None:
        """Write the span of a request of the server to its client, beneath that of the call which needs the answer.

        The conventions have it be a client's, since the server has sent the request.
        """
        if call.span_context is None or not call.span_context.is_valid:
            return
        beneath = trace.set_span_in_context(trace.NonRecordingSpan(call.span_context), Context())
        attributes = {
            semconv.MCP_METHOD_NAME: method,
            semconv.JSONRPC_REQUEST_ID: str(request_id),
            semconv.NETWORK_TRANSPORT: "tcp",
            semconv.NETWORK_PROTOCOL_NAME: "http",
            semconv.NETWORK_PROTOCOL_VERSION: call.exchange.http_version,
            **failure,
            **session_attributes(call),
        }
        span = self._tracer.start_span(method, beneath, SpanKind.CLIENT, attributes, start_time=started_ns)
        if failure:
            span.set_status(Status(StatusCode.ERROR))
        span.end(started_ns + int(seconds * 1e9))

    def finish(self, call: Call) -> None:
        """End our span of a finished call; if no handler saw the call, create its span with the true times."""
        if call.open_span is not None:
            self.close(call, call.open_span)
        elif call.span_context is None and not call.dispatched and call.id is not None:
            self.close(call, self.open(call, parent_of(call)))

    def close(self, call: Call, span: Span) -> None:
        """End our span with an outcome; the text of an error is never recorded."""
        outcome = call.outcome or call.handler_outcome
        if outcome is not None and span.is_recording():
            if call.method == "initialize":
                # The answer named the session after the span began.
                span.set_attributes({**_identity(call)[1], **call_attributes(call)})
            elif semconv.SESSION_SOURCE not in (getattr(span, "attributes", None) or ()):
                span.set_attributes(_common_attributes(call))
            complete(call, span, outcome)
            if outcome.asks is not None:
                mark_asking(call, span)
            if call.task is not None:
                call.task.show(span)
            if call.result is not None:
                capture_result(call, call.result)
        duration_ns = int(call.duration * 1e9) if call.finished else None
        span.end(call.exchange.started_ns + duration_ns if duration_ns is not None else None)


def same_span(left: SpanContext, right: SpanContext) -> bool:
    return left.span_id == right.span_id and left.trace_id == right.trace_id
