"""Patch FastMCP's telemetry: its own spans, and the session ids and failures that it puts on them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial, wraps
from types import ModuleType, TracebackType
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.trace import Span, Status, StatusCode

from otel_mcp import semconv
from otel_mcp.exchange.dispatch import Dispatch
from otel_mcp.guard import guarded
from otel_mcp.integrations.patching import Patches
from otel_mcp.integrations.tools import note_missing
from otel_mcp.model.call import Call, current_call
from otel_mcp.telemetry.spans import rename, same_span

_GUARD = guarded("FastMCP")
_NO_FAILURES: Final = {"record_exception": False, "set_status_on_exception": False}


def telemetry(module: ModuleType, patches: Patches) -> None:
    """Patch the functions that FastMCP 3 and 4 look up in this module at call time."""
    patches.replace(module, "get_session_span_attributes", _session_attributes)
    if hasattr(module, "record_span_exception"):
        patches.replace(module, "record_span_exception", _record)
        patches.replace(module, "get_tracer", _get_tracer)
    elif hasattr(module, "server_span"):
        patches.replace(module, "server_span", _server_span)


def server(module: ModuleType, patches: Patches) -> None:
    """Patch the copy of `server_span` that FastMCP 3 binds if it was imported before us."""
    if not hasattr(module, "record_span_exception") and hasattr(module, "server_span"):
        patches.replace(module, "server_span", _server_span)


def native_span(module: ModuleType, patches: Patches) -> None:
    """Patch the middleware of FastMCP 4 that opens its span for a message."""
    if hasattr(module, "FastMCPServerMiddleware"):
        from otel_mcp.integrations.mcp_v2 import layer  # FastMCP 4 requires the SDK 2.x.

        patches.replace(module.FastMCPServerMiddleware, "__call__", partial(layer, opening=True))
        patches.replace(module.FastMCPServerMiddleware, "_seam_span", _seam_span)


def _session_attributes(original: Callable[[], dict[str, str]]) -> Callable[[], dict[str, str]]:
    """Keep session ids that FastMCP invents for requests without one off its spans."""

    @wraps(original)
    def get_session_span_attributes() -> dict[str, str]:
        call = current_call.get()
        if call is None:
            return original()
        attributes: dict[str, str] = {}
        with _GUARD:
            if session_id := call.exchange.shown_session_id:
                attributes[semconv.MCP_SESSION_ID] = session_id
        return attributes

    return get_session_span_attributes


def _record(original: Callable[[Span, Exception], None]) -> Callable[[Span, Exception], None]:
    """Let FastMCP 4 put an error on the span of a message only if the failure is the server's fault."""

    @wraps(original)
    def record_span_exception(span: Span, e: Exception) -> None:
        call = current_call.get()
        if call is None or call.span is not span:
            return original(span, e)
        with _GUARD:
            note_missing(call, e)
            if call.failure is not None and call.tool_failure is not None:
                call.failure = call.tool_failure
                span.set_attribute(semconv.FAILURE, call.failure)
            if call.handler_outcome is not None and call.handler_outcome.error_type is not None:
                span.record_exception(e)
                span.set_status(Status(StatusCode.ERROR, str(e)))

    return record_span_exception


def _get_tracer(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def get_tracer(*args: Any, **kwargs: Any) -> Any:
        tracer, dispatch = original(*args, **kwargs), _opening()
        return tracer if dispatch is None else _QuietTracer(tracer)

    return get_tracer


class _QuietTracer:
    """A tracer whose spans record no exception or status by themselves, as those of FastMCP before 4.2 do."""

    __slots__ = ("_tracer",)

    def __init__(self, tracer: Any) -> None:
        self._tracer = tracer

    def start_as_current_span(self, *args: Any, **kwargs: Any) -> Any:
        return self._tracer.start_as_current_span(*args, **{**_NO_FAILURES, **kwargs})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tracer, name)


def _opening() -> Dispatch | None:
    """Return the dispatch of the message whose span FastMCP 4 is about to open."""
    call = current_call.get()
    return call.dispatch if call is not None and call.dispatch is not None and call.dispatch.opening else None


def _seam_span(original: Callable[..., AbstractContextManager[None]]) -> Callable[..., AbstractContextManager[None]]:
    @wraps(original)
    def seam_span(self: Any, server: Any, ctx: Any) -> AbstractContextManager[None]:
        manager, dispatch = original(self, server, ctx), _opening()
        return manager if dispatch is None else _Completed(manager, dispatch)

    return seam_span


class _Completed:
    """Wraps FastMCP 4's span of a message, adopts it as ours, and completes it when it ends.

    FastMCP's middlewares run inside the span and may answer by themselves.
    """

    __slots__ = ("_dispatch", "_manager", "_span")

    def __init__(self, manager: AbstractContextManager[None], dispatch: Any) -> None:
        self._manager = manager
        self._dispatch = dispatch
        self._span: Span | None = None

    def __enter__(self) -> None:
        around = trace.get_current_span().get_span_context()
        self._manager.__enter__()
        self._dispatch.opening = False
        with _GUARD:
            span = trace.get_current_span()
            if not same_span(span.get_span_context(), around) and self._dispatch.adopts(span):
                self._span = span
                self._dispatch.spans_outside = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        with _GUARD:
            if self._span is not None:
                rename(self._dispatch.call, self._span)  # FastMCP may have named it after its own listing.
                self._dispatch.settle(self._span, error)
        return self._manager.__exit__(kind, error, traceback)


def _server_span(original: Callable[..., AbstractContextManager[Span]]) -> Callable[..., AbstractContextManager[Span]]:
    """Use our span in place of FastMCP 3's.

    FastMCP 3 opens its span inside its middlewares, which may answer by
    themselves, call the handler several times, or change its result. Our span
    encloses them and gets the attributes of FastMCP's.
    """

    @wraps(original)
    def server_span(*args: Any, **kwargs: Any) -> AbstractContextManager[Span]:
        call = current_call.get()
        if call is None or call.dispatch is None or call.span is None or call.dispatch.described:
            return original(*args, **kwargs)
        if trace.get_current_span() is not call.span:
            return original(*args, **kwargs)
        return _Described(call, call.span, partial(_description, *args, **kwargs))

    return server_span


class _Described:
    """Replaces a span of FastMCP 3: puts its attributes on our span."""

    __slots__ = ("_call", "_description", "_dispatch", "_span")

    def __init__(self, call: Call, span: Span, description: Callable[[], dict[str, str]]) -> None:
        self._call = call
        self._dispatch = call.dispatch
        self._span = span
        self._description = description

    def __enter__(self) -> Span:
        self._dispatch.described = True
        with _GUARD:
            self._span.set_attributes(self._description())
        return self._span

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._dispatch.described = False
        with _GUARD:
            note_missing(self._call, error)


def _description(
    _name: str, _method: str, server_name: str, component_type: str, component_key: str, *_: Any, **__: Any
) -> dict[str, str]:
    auth: dict[str, str] = {}
    if (module := sys.modules.get("fastmcp.server.telemetry")) is not None:
        auth = module.get_auth_span_attributes()
    return {
        "fastmcp.server.name": server_name,
        "fastmcp.component.type": component_type,
        "fastmcp.component.key": component_key,
        **auth,
    }
