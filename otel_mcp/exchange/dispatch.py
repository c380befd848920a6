"""Run the handler of a message under the message's one span, in the handler's own task.

Only there it is certain whether a library opens a span, and which context the handler has.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import Token
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span

from otel_mcp.exchange.inflight import InFlight
from otel_mcp.exchange.request import Requests
from otel_mcp.guard import guarded, report
from otel_mcp.identity.resolver import Resolver
from otel_mcp.loops import current_task, is_cancellation
from otel_mcp.model.call import SCOPE_KEY, Call, Exchange, current_call, current_exchange
from otel_mcp.model.outcomes import completed_by
from otel_mcp.semconv import TOOL_ERROR
from otel_mcp.telemetry.http_span import HTTPSpans
from otel_mcp.telemetry.metrics import Metrics
from otel_mcp.telemetry.propagation import parent_of
from otel_mcp.telemetry.spans import CALL, Spans, adopt, complete, is_native, mark_asking, same_span, scope_of
from otel_mcp.types import Scope
from otel_mcp.wire.jsonrpc import FINE, INPUT_REQUIRED, STREAMS, JsonId, Outcome, asking, json_id

T = TypeVar("T")

_GUARD = guarded("dispatch")


def exchange_of(request: object) -> Exchange | None:
    """Return the `Exchange` in the scope of a message's HTTP request; ``None`` = not observed."""
    scope: Any = getattr(request, "scope", None)
    exchange: object = scope.get(SCOPE_KEY) if isinstance(scope, dict) else None  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return exchange if isinstance(exchange, Exchange) else None


@dataclass(frozen=True, slots=True)
class Dispatcher:
    """The dependencies of each `Dispatch`; one object per process."""

    requests: Requests
    inflight: InFlight
    resolver: Resolver
    spans: Spans
    http_spans: HTTPSpans
    metrics: Metrics
    reads_results: bool
    """Answers are parsed, because their content is stored or captured."""

    def handed_over(self, request_id: JsonId | None, method: str, params: object, *, native: bool) -> Call | None:
        """Find the call of a message that a custom transport passed to the SDK without its HTTP request.

        Args:
            request_id: of the message.
            method: of the message.
            params: of the message, as dictionary or model.
            native: whether a library opens a span for it; if several calls match, that is the only span.
        """
        found = self.inflight.handed_over.find(json_id(request_id), method, params)
        for call in found:
            self.inflight.handed_over.paths.learn(call.exchange.path, True)
        if len(found) == 1:
            (call,) = found
            if call.exchange is current_exchange.get() and call.span is None:
                call.exchange.ambient = otel_context.get_current()  # Below the span of an HTTP instrumentation.
            return call
        for call in found:
            call.dispatched = call.dispatched or native
        return None

    async def attach(self, exchange: Exchange, scope: Scope) -> None:
        """Make the span of its only call current in a bare app that has read its request.

        Runs in the app's own task, so the app's context changes. The first request
        of an app shows that no library opens a span; its span is made afterwards.
        """
        if exchange.dispatch is not None or not self.requests.is_bare(exchange):
            return
        requests = [call for call in exchange.calls if call.id is not None]
        if len(requests) == 1 and not requests[0].dispatched:
            self.http_spans.begin(exchange, scope)
            exchange.dispatch = AppDispatch(self, requests[0])
            await exchange.dispatch.enter()


@dataclass(slots=True, eq=False)
class Dispatch:
    """One message in a handler of an SDK."""

    dispatcher: Dispatcher
    call: Call
    server: Any = None
    """The SDK's server object."""
    served_by: object = None
    """Session object of the SDK 2.x; a message with another one belongs to another server of this process."""
    before: Awaitable[None] | None = None
    """Awaited before the handler runs."""
    opens: bool = False
    """No library opens its span, so we do."""
    opening: bool = False
    """FastMCP 4 is about to open the span of this message."""
    described: bool = False
    """FastMCP 3 runs inside its own span, or would if it recorded."""
    parent: Context | None = None
    """Context that the handler runs in; ``None`` before it runs."""
    own: Span | None = None
    """The span, if we opened it."""
    fine: object = _GUARD
    """A result that an inner layer has found fine: if the handler returns this object, it is not read again."""
    _attached: Token[Context] | None = None
    _call_token: Token[Call | None] | None = None

    async def run(self, handler: Callable[[], Awaitable[T]]) -> T:
        """Run `handler` under the span of this message. Its result or exception passes unchanged."""
        call, dispatcher, outcome = self.call, self.dispatcher, None
        try:
            try:
                if self.before is not None:
                    await self.before
                call.dispatched = call.running = call.accepted = True
                call.dispatch = self
                if call.method == "tools/call" and len(call.exchange.calls) == 1 and not dispatcher.reads_results:
                    call.exchange.sdk_call = call
                if (call.session is None or call.tentative) and not dispatcher.resolver.cached(call):
                    await self._slow_resolve()
                if call.round is not None:
                    dispatcher.inflight.rounds.resume(call)
                if call.span is not None:
                    # `AppDispatch` opened this span before the SDK. Without an end it is never exported.
                    call.span = call.span_context = None
                    dispatcher.inflight.handed_over.paths.learn(call.exchange.path, True)
                # Not the task's context: the task may be older than the request.
                self.parent = Context({**parent_of(call), CALL: call})
                self._attached = otel_context.attach(self._opened(self.parent) if self.opens else self.parent)
                self._call_token = current_call.set(call)
            except Exception as failure:
                report("dispatch", failure)
            result = await handler()
            try:
                outcome = FINE if result is self.fine else self.outcome_of(result)
            except Exception as failure:
                report("dispatch", failure)
            return result
        except BaseException as error:
            with _GUARD:
                outcome = self.failed(error)
            raise
        finally:
            try:
                self.leave(outcome)
            except Exception as failure:
                report("dispatch", failure)

    async def _slow_resolve(self) -> None:
        """Find the session of a message that is new to this process, unless it is a handshake."""
        with _GUARD:
            if self.call.method != "initialize":
                await self.dispatcher.resolver.resolve(self.call)

    def outcome_of(self, result: Any) -> Outcome | None:
        """Return how the message ended, by the handler's result, a dictionary or model."""
        fields: Any = result
        if isinstance(result, dict):
            failed, kind, is_plain = fields.get("isError"), fields.get("resultType"), "content" in fields
        else:
            failed = getattr(result, "is_error", False) is True or getattr(result, "isError", False)
            kind, is_plain = getattr(result, "result_type", None), hasattr(result, "content")
        if kind == INPUT_REQUIRED:
            return asking(fields)
        if not is_plain and self.call.method == "tools/call":
            self.dispatcher.metrics.tasks.see(self.call, fields)
        return Outcome(TOOL_ERROR) if failed is True else FINE

    def failed(self, error: BaseException) -> Outcome:
        """Return the outcome of a message whose handler raised `error`."""
        return Outcome(error_type="cancelled" if is_cancellation(error) else type(error).__name__)

    def judge(self) -> None:
        """Learn what the server knows about the tool of a failed call."""

    def owes_span(self) -> bool:
        """Return whether a message without a span needs one of ours; ``False`` = a sampler may have dropped it."""
        return True

    def leave(self, outcome: Outcome | None) -> None:
        """Set the outcome after the handler has returned or raised, and restore the context."""
        call = self.call
        call.running, call.dispatch = False, None
        if call.span_context is None and call.id is not None and self.owes_span():
            call.dispatched = False  # An inner layer answered: make the span later.
        if call.handler_outcome is not None and call.handler_outcome is not outcome:
            outcome = completed_by(call.handler_outcome, outcome)
        call.handler_outcome = outcome
        if outcome is not None and outcome is not FINE and outcome.failed:
            self.judge()
        if self.own is not None and self.own is call.span:
            self._close(self.own)
        if self._call_token is not None and self._attached is not None:
            current_call.reset(self._call_token)
            otel_context.detach(self._attached)
        if call.exchange.closed:
            self.dispatcher.inflight.handled(call)

    def _close(self, span: Span) -> None:
        if (outcome := self.call.outcome or self.call.handler_outcome) is not None and outcome.failed:
            self.dispatcher.metrics.classify(self.call, outcome)
        self.dispatcher.spans.close(self.call, span)

    def open_unless_opened(self) -> Token[Context] | None:
        """Inside a library's layer, adopt its span, or else open ours. Returns the token to detach afterwards."""
        call = self.call
        if call.span is not None or self.parent is None:
            return None
        span = trace.get_current_span()
        around = trace.get_current_span(self.parent).get_span_context()
        if not same_span(span.get_span_context(), around) and (self.adopts(span) or not span.is_recording()):
            return None
        # A notification without a span of the library gets none.
        return otel_context.attach(self._opened(None)) if call.id is not None else None

    def adopts(self, span: Span) -> bool:
        """Adopt a span that a library has opened around the handler. Returns whether it is this message's span."""
        call = self.call
        if call.span is None and is_native(span):
            adopt(call, span, scope_of(span))
        elif not span.is_recording():
            # The sampler dropped it: do not make another one.
            call.span_context = span.get_span_context()
        return call.span is span

    def _opened(self, context: Context | None) -> Context:
        """Open our own span in `context`, or in the current one. Returns the context that has it."""
        self.own = self.dispatcher.spans.open(self.call, context)
        return trace.set_span_in_context(self.own, context)

    def settle(self, span: Span, error: BaseException | None) -> Outcome | None:
        """Complete a library's span of this message, just before the library ends it.

        Args:
            span: still open.
            error: the exception that leaves the library's layer.

        Returns:
            How the message failed; ``None`` = it did not.
        """
        call, outcome = self.call, self.call.handler_outcome
        if error is not None:
            outcome = completed_by(outcome, self.failed(error))
        if call.cancel_requested and outcome is not None and outcome.failed:
            outcome = replace(outcome, error_type="cancelled")
        if outcome is not None and outcome.asks is not None:
            mark_asking(call, span)
        if outcome is None or not outcome.failed or (outcome.error_type == "cancelled" and call.method in STREAMS):
            return None
        self.judge()
        self.dispatcher.metrics.classify(call, outcome)
        complete(call, span, outcome)
        call.handler_outcome = outcome
        return outcome


class AppDispatch(Dispatch):
    """One message whose handler is the HTTP app itself. The app may still refuse it, so its session is tentative."""

    _task: object = None

    async def enter(self) -> None:
        """Open our span and make it current in the app's task."""
        call = self.call
        call.dispatched = call.running = True
        call.dispatch = self
        with _GUARD:
            await self.dispatcher.resolver.propose(call)
            if call.round is not None:
                self.dispatcher.inflight.rounds.resume(call)
        with _GUARD:
            self._task = current_task()
            self._attached = otel_context.attach(self._opened(otel_context.set_value(CALL, call, parent_of(call))))
            self._call_token = current_call.set(call)

    def leave(self, outcome: Outcome | None) -> None:
        """Set the outcome after the app; in another task than `enter`, the context to restore has ended with that."""
        if self._task is not None and self._task is not current_task():
            self._call_token = self._attached = None
        super().leave(outcome)

    def _close(self, span: Span) -> None:
        if self.call.finished:
            super()._close(span)
        else:
            self.call.open_span = span  # It ends with the answer, perhaps on another stream.
