"""What both dispatch seams do: put a message's handler under its one span.

The dispatch seam is where an SDK hands one message to its handler, in the
handler's own task. Only there is it certain whether somebody opens a span, and
which context the handler really has.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextvars import Token
from dataclasses import replace
from typing import Any, TypeVar

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span

from otel_mcp.guard import report
from otel_mcp.loops import current_task, is_cancellation
from otel_mcp.model.call import SCOPE_KEY, Call, Exchange, current_call, current_exchange
from otel_mcp.runtime import Runtime
from otel_mcp.semconv import TOOL_ERROR
from otel_mcp.telemetry.propagation import parent_of
from otel_mcp.telemetry.spans import CALL, adopt, complete, is_native, same_span, scope_of
from otel_mcp.wire.headers import METHOD
from otel_mcp.wire.jsonrpc import FINE, KNOWN_METHODS, STREAMS, JsonId, Outcome, json_id, text

T = TypeVar("T")


def exchange_of(request: object) -> Exchange | None:
    """The record of the HTTP request that carried a message; never a stale one."""
    scope: Any = getattr(request, "scope", None)
    exchange: object = scope.get(SCOPE_KEY) if isinstance(scope, dict) else None  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return exchange if isinstance(exchange, Exchange) else None


def handed_over(
    runtime: Runtime, request_id: JsonId | None, method: str, params: object, *, native: bool
) -> Call | None:
    """The call that a message is which came without its HTTP request: over another transport than the SDK's.

    Args:
        runtime: that of the process.
        request_id: of the message.
        method: of the message.
        params: of the message, as dictionary or model.
        native: whether a library opens a span for it. Where it is not certain which call it is, that is the only one.
    """
    found = runtime.watch.handed_over.find(json_id(request_id), method, params)
    for call in found:
        runtime.watch.handed_over.learn(call.exchange)
    if len(found) == 1:
        (call,) = found
        if call.exchange is current_exchange.get() and call.span is None:
            call.exchange.ambient = otel_context.get_current()  # Inside whatever instruments HTTP.
        return call
    for call in found:
        call.dispatched = call.dispatched or native
    return None


def call_of(
    runtime: Runtime, exchange: Exchange, request_id: JsonId | None, method: str, params: Mapping[str, Any] | None
) -> Call | None:
    """The call that a message is.

    Returns:
        ``None`` for a message that never was on the wire: the SDK of 2026-07-28 lists
        tools by itself, under the id of the call that it is about to serve.
    """
    request_id = json_id(request_id)
    if method not in KNOWN_METHODS:  # A stranger's: only what can be exported of it.
        method = text(method)
    if not exchange.calls:
        said = exchange.headers.get(METHOD)
        if said is not None and said != method.encode():
            if exchange.modern and exchange.at_sdk:
                return None  # The SDK has compared the header with the body.
            runtime.watch.read(exchange)
    if exchange.calls and not exchange.calls[0].id_unknown:
        return exchange.find(request_id, method)
    if exchange.calls and exchange.calls[0].method != method:
        return None
    # The body has not been read on its way, or was too large for it.
    return runtime.watch.dispatched(exchange, request_id, method, params or {})


class Dispatch:
    """One message on its way through a handler."""

    _handwritten = False
    """The handler is the HTTP app itself, which may yet refuse the message."""
    _task: object = None
    _parent: Context | None = None
    _attached: Token[Context] | None = None
    _call_token: Token[Call | None] | None = None
    _own: Span | None = None
    described: bool = False
    """FastMCP 3 is within what would be its span."""
    served_by: object = None
    """What the SDK 2.x makes for each message: that of another server in this process is another."""
    opening: bool = False
    """A library is about to open the span of this message."""
    before: Awaitable[None] | None = None
    """What has to be known before the handler runs, and takes waiting for."""

    def __init__(self, runtime: Runtime, call: Call, *, handwritten: bool = False) -> None:
        self._runtime = runtime
        self.call = call
        if handwritten:
            self._handwritten = True

    async def resolve(self) -> None:
        """Find the session of a message that is new to this process; of a handshake only its success tells."""
        if self.call.method == "initialize":
            return
        if self._handwritten:
            await self._runtime.resolver.propose(self.call)
        else:
            await self._runtime.resolver.resolve(self.call)

    def owes_span(self) -> bool:
        """Whether a message of which no span was seen has none: nobody has let it go unsampled."""
        return True

    def failed(self, error: BaseException) -> Outcome:
        """How an exception out of the handler ends the message."""
        return Outcome(error_type="cancelled" if is_cancellation(error) else type(error).__name__)

    def judge(self) -> None:
        """Note what the server itself knows of the tool of a call that has failed."""

    def told(self, result: Any) -> Outcome | None:
        """How the handler's result says that the message ended; ``None`` = only the answer tells."""
        return None

    def take(self) -> bool:
        """The handler gets its message. Returns whether its session is known, or has still to be resolved."""
        call = self.call
        call.dispatched = call.running = True
        call.dispatch = self
        if self._handwritten:
            return False
        call.accepted = True
        exchange = call.exchange
        if call.method == "tools/call" and len(exchange.calls) == 1 and not self._runtime.settings.store_content:
            exchange.sdk_call = call
        return (call.session is not None and not call.tentative) or self._runtime.resolver.again(call)

    def enter(self) -> None:
        """Make the resolved parent current, whatever the task carried."""
        call = self.call
        if self._handwritten:
            self._task = current_task()
        around = otel_context.set_value(CALL, call, parent_of(call))
        if call.span is not None:
            # An SDK inside a route of the user's decides on the span. Ours is not ended, so nobody sees it.
            call.span = call.span_context = None
            self._runtime.watch.handed_over.learn(call.exchange)
        if self._handwritten:
            self._own = self._runtime.spans.open(call, around)
            self._parent = trace.set_span_in_context(self._own, around)
        else:
            self._parent = around
        self._attached = otel_context.attach(self._parent)
        self._call_token = current_call.set(call)

    def innermost(self) -> Token[Context] | None:
        """Called inside any native layer: adopt its span, or open ours where there is none.

        Returns:
            What to detach after the handler.
        """
        call = self.call
        if call.span is not None or self._parent is None:
            return None
        current = trace.get_current_span()
        attached = trace.get_current_span(self._parent).get_span_context()
        if not same_span(current.get_span_context(), attached) and (self.opened(current) or not current.is_recording()):
            return None
        # A notification gets no span where its library gives it none.
        return self.open() if call.id is not None else None

    def opened(self, span: Span) -> bool:
        """Take note of a span that somebody has opened around the handler. Returns whether it is to be completed."""
        call = self.call
        if call.span is None and is_native(span):
            adopt(call, span, scope_of(span))
        elif not span.is_recording():
            # The sampler has let it go: then there is one, and it is not for us to repeat.
            call.span_context = span.get_span_context()
        return call.span is span

    def open(self) -> Token[Context] | None:
        """Open our own span and make it current, unless there is one."""
        if self.call.span is not None:
            return None
        self._own = self._runtime.spans.open(self.call)
        return otel_context.attach(trace.set_span_in_context(self._own))

    def leave(self, told: Outcome | None) -> None:
        """The handler has returned or raised."""
        call = self.call
        call.running, call.dispatch = False, None
        if call.span_context is None and call.id is not None and self.owes_span():
            call.dispatched = False  # Something in between has answered by itself: the span is made afterwards.
        call.handler_outcome = told_more(call.handler_outcome, told)
        if call.handler_outcome is not None and call.handler_outcome.failed:
            self.judge()
        if self._own is not None and self._own is call.span:
            self._close(call, self._own)
        # In another task the context is not ours to touch; it ends with its task.
        if self._task is None or self._task is current_task():
            if self._call_token is not None:
                current_call.reset(self._call_token)
            if self._attached is not None:
                otel_context.detach(self._attached)
        if call.exchange.closed:
            self._runtime.watch.handled(call)

    def _close(self, call: Call, own: Span) -> None:
        if self._handwritten and not call.finished:
            call.open_span = own  # Its end is that of the answer, which may come on another stream.
        else:
            outcome = call.outcome or call.handler_outcome
            if outcome is not None and outcome.failed:
                self._runtime.metrics.classify(call, outcome)
            self._runtime.spans.close(call, own)

    def settle(self, span: Span, error: BaseException | None, description: str | None = None) -> None:
        """Complete the span that a library has opened for this message, at the last moment while it is open.

        Args:
            span: still open.
            error: what passes out of the library's layer, if anything does.
            description: what the library says of the failure.
        """
        call = self.call
        outcome = call.handler_outcome if error is None else told_more(call.handler_outcome, self.failed(error))
        if call.cancel_requested and outcome is not None and outcome.failed:
            outcome = replace(outcome, error_type="cancelled")
        if outcome is None or not outcome.failed or (outcome.error_type == "cancelled" and call.method in STREAMS):
            return
        self.judge()
        self._runtime.metrics.classify(call, outcome)
        complete(call, span, outcome, description)
        call.handler_outcome = outcome

    async def run(self, handler: Callable[[], Awaitable[T]]) -> T:
        """Run `handler` as this message. What it returns or raises passes untouched."""
        outcome: Outcome | None = None
        try:
            try:
                if self.before is not None:
                    await self.before
            except Exception as failure:
                report("dispatch", failure)
            try:
                if not self.take():
                    await self.resolve()
            except Exception as failure:
                report("dispatch", failure)
            try:
                self.enter()
            except Exception as failure:
                report("dispatch", failure)
            result = await handler()
            try:
                outcome = self.told(result)
            except Exception as failure:
                report("dispatch", failure)
            return result
        except BaseException as error:
            try:
                outcome = self.failed(error)
            except Exception as failure:
                report("dispatch", failure)
            raise
        finally:
            try:
                self.leave(outcome)
            except Exception as failure:
                report("dispatch", failure)


def told_more(earlier: Outcome | None, told: Outcome | None) -> Outcome | None:
    """What a handler's end says, beside what its tool has shown before."""
    if told is None or earlier is None:
        return told or earlier
    if told.exception_type is None and earlier.exception_type is not None:
        return replace(told, exception_type=earlier.exception_type)
    return told


def outcome_of_result(result: object) -> Outcome:
    """How a handler's result, as dictionary or model, ends its message."""
    fields: Any = result
    if isinstance(result, dict):
        failed = fields.get("isError")
    else:
        failed = getattr(result, "is_error", False) is True or getattr(result, "isError", False)
    return Outcome(TOOL_ERROR) if failed is True else FINE
