"""The server spans that the SDK 2.x and FastMCP 4 open themselves, completed while they are open.

Such a span ends inside everything that this package puts around a message. The
last moment at which it can be completed is the end of the layer that opened it,
whether the handler is reached, or a middleware answers by itself.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from functools import partial, wraps
from types import ModuleType, TracebackType
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, Span, Status, StatusCode

from otel_mcp import semconv
from otel_mcp.exchange.dispatch import Dispatch, outcome_of_result, told_more
from otel_mcp.guard import guarded, report
from otel_mcp.integrations.patching import Patches
from otel_mcp.model.call import current_call
from otel_mcp.telemetry.spans import capture_result, rename, same_span
from otel_mcp.wire.jsonrpc import negotiated_version

_GUARD = guarded("native span")
_READ = frozenset({"tools/call", "initialize"})
"""Methods whose results say more than that they worked."""

Handler = Callable[[Any], Awaitable[Any]]


def sdk(module: ModuleType, patches: Patches) -> None:
    """The SDK 2.x: its middleware, and the span that this opens."""
    if hasattr(module, "OpenTelemetryMiddleware"):
        patches.replace(module.OpenTelemetryMiddleware, "__call__", _layer)
        patches.replace(module, "otel_span", _sdk_span)


def fastmcp(module: ModuleType, patches: Patches) -> None:
    """FastMCP 4: the same, in its own middleware."""
    if hasattr(module, "FastMCPServerMiddleware"):
        patches.replace(module.FastMCPServerMiddleware, "__call__", _layer)
        patches.replace(module.FastMCPServerMiddleware, "_seam_span", _fastmcp_span)


def _dispatch_of(ctx: Any) -> Dispatch | None:
    """The message that a layer is about to open a span for; not one of another server in this process."""
    call = current_call.get()
    if call is None or call.dispatch is None or call.span_context is not None:
        return None
    return call.dispatch if ctx.method == call.method and ctx.session is call.dispatch.served_by else None


def _layer(original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Read what comes out of everything inside the layer that opens the span."""

    @wraps(original)
    def layer(self: Any, ctx: Any, call_next: Handler) -> Awaitable[Any]:
        with _GUARD:
            if (dispatch := _dispatch_of(ctx)) is not None:
                dispatch.opening = True
                if ctx.method in _READ:
                    call_next = partial(_read, dispatch, call_next)
        return original(self, ctx, call_next)

    return layer


async def _read(dispatch: Dispatch, call_next: Handler, ctx: Any) -> Any:
    result = await call_next(ctx)
    try:
        call = dispatch.call
        if call.method == "tools/call":
            call.handler_outcome = told_more(call.handler_outcome, outcome_of_result(result))
            if call.exchange.capture is not None:
                capture_result(call, result)
        elif call.span is not None and (version := negotiated_version({"result": result})) is not None:
            call.span.set_attribute(semconv.MCP_PROTOCOL_VERSION, version)
    except Exception as failure:
        report("native span", failure)
    return result


def _sdk_span(original: Callable[..., AbstractContextManager[Span]]) -> Callable[..., AbstractContextManager[Span]]:
    @wraps(original)
    def otel_span(*args: Any, **kwargs: Any) -> AbstractContextManager[Span]:
        manager = original(*args, **kwargs)
        call = current_call.get()
        if call is None or call.dispatch is None or not call.dispatch.opening:
            return manager
        return _SdkSpan(manager, call.dispatch)

    return otel_span


def _fastmcp_span(original: Callable[..., AbstractContextManager[None]]) -> Callable[..., AbstractContextManager[None]]:
    @wraps(original)
    def seam_span(self: Any, server: Any, ctx: Any) -> AbstractContextManager[None]:
        manager = original(self, server, ctx)
        call = current_call.get()
        if call is None or call.dispatch is None or not call.dispatch.opening:
            return manager
        return _Completed(manager, call.dispatch)

    return seam_span


class _Completed:
    """A library's context manager that opens a span: adopted as it begins, complete before it ends."""

    __slots__ = ("_dispatch", "_manager", "_span")

    def __init__(self, manager: AbstractContextManager[Any], dispatch: Dispatch) -> None:
        self._manager = manager
        self._dispatch = dispatch
        self._span: Span | None = None

    def __enter__(self) -> Any:
        around = trace.get_current_span()
        value = self._manager.__enter__()
        self._dispatch.opening = False
        try:
            span = trace.get_current_span()
            if not same_span(span.get_span_context(), around.get_span_context()) and self._dispatch.opened(span):
                self._span = span
                return self._yielded(span, value)
        except Exception as failure:
            report("native span", failure)
        return value

    def _yielded(self, span: Span, value: Any) -> Any:
        return value

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        try:
            if self._span is not None:
                self._settle(self._span, error)
        except Exception as failure:
            report("native span", failure)
        return self._manager.__exit__(kind, error, traceback)

    def _settle(self, span: Span, error: BaseException | None) -> None:
        rename(self._dispatch.call, span)  # FastMCP gives it the name of a listing that it needs to serve it.
        self._dispatch.settle(span, error)


class _SdkSpan(_Completed):
    __slots__ = ("_held",)

    def _yielded(self, span: Span, value: Any) -> Any:
        self._held = _Held(span)
        return self._held

    def _settle(self, span: Span, error: BaseException | None) -> None:
        self._dispatch.settle(span, error, self._held.description)


class _Held(NonRecordingSpan):
    """The span as the SDK's middleware gets it: what that says of a failure is not written.

    It blames the server for the caller's errors, and what is once on a span
    cannot be taken off again.
    """

    def __init__(self, span: Span) -> None:
        super().__init__(span.get_span_context())
        self._span = span
        self.description: str | None = None

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        self.description = status.description if isinstance(status, Status) else description

    def record_exception(self, *args: Any, **kwargs: Any) -> None:
        self._span.record_exception(*args, **kwargs)
