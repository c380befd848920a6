"""FastMCP's telemetry: what it would say of sessions and failures, and the spans of FastMCP 3."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import wraps
from types import ModuleType, TracebackType
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.trace import Span, Status, StatusCode

from otel_mcp import semconv
from otel_mcp.guard import guarded
from otel_mcp.integrations.patching import Patches
from otel_mcp.model.call import Call, current_call

_GUARD = guarded("FastMCP seam")
_MISSING: Final = frozenset({"NotFoundError", "DisabledError"})
"""Exceptions of FastMCP for a name that it does not know, or does not show."""


def telemetry(module: ModuleType, patches: Patches) -> None:
    """Replace what FastMCP 3 and 4 look up at call time."""
    patches.replace(module, "get_session_span_attributes", _session_attributes)
    if hasattr(module, "record_span_exception"):
        patches.replace(module, "record_span_exception", _record)
        patches.replace(module, "get_tracer", _get_tracer)
    elif hasattr(module, "server_span"):
        _server_span(module, patches)


def server(module: ModuleType, patches: Patches) -> None:
    """FastMCP 3, imported before us."""
    if not hasattr(module, "record_span_exception") and hasattr(module, "server_span"):
        _server_span(module, patches)


def _session_attributes(original: Callable[[], dict[str, str]]) -> Callable[[], dict[str, str]]:
    """Keep the session ids that FastMCP invents off its spans: where the client sent none, one for each request."""

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
    """Let FastMCP 4 blame the server on a span of a message only where the message says so too."""

    @wraps(original)
    def record_span_exception(span: Span, e: Exception) -> None:
        call = current_call.get()
        if call is None or call.span is not span:
            return original(span, e)
        with _GUARD:
            _note_missing(call, e)
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
        tracer = original(*args, **kwargs)
        call = current_call.get()
        opening = call is not None and call.dispatch is not None and call.dispatch.opening
        return _Quiet(tracer) if opening else tracer

    return get_tracer


class _Quiet:
    """A tracer that leaves it to us to say of a message's span how the message failed; before 4.2 it would itself."""

    __slots__ = ("_tracer",)

    def __init__(self, tracer: Any) -> None:
        self._tracer = tracer

    def start_as_current_span(self, *args: Any, **kwargs: Any) -> Any:
        quiet = {"record_exception": False, "set_status_on_exception": False}
        return self._tracer.start_as_current_span(*args, **{**quiet, **kwargs})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tracer, name)


def _note_missing(call: Call, error: BaseException | None) -> None:
    if call.method == "tools/call" and not call.tool_entered and type(error).__name__ in _MISSING:
        call.tool_failure = "unknown_tool"


def _server_span(module: ModuleType, patches: Patches) -> None:
    """Let our span stand for that of FastMCP 3.

    FastMCP 3 opens its span within its middlewares, which may answer by
    themselves, call it several times, or change what it returns. Ours is there
    before them and ends after them: it gets what FastMCP says of the message.
    """

    def make(original: Callable[..., AbstractContextManager[Span]]) -> Callable[..., AbstractContextManager[Span]]:
        @wraps(original)
        def server_span(*args: Any, **kwargs: Any) -> AbstractContextManager[Span]:
            call = current_call.get()
            if call is None or call.dispatch is None or call.span is None or call.dispatch.described:
                return original(*args, **kwargs)
            if trace.get_current_span() is not call.span:
                return original(*args, **kwargs)
            return _Described(call, call.span, args, kwargs)

        return server_span

    patches.replace(module, "server_span", make)


class _Described:
    """Stands for a span of FastMCP 3: says on ours what FastMCP alone knows."""

    __slots__ = ("_args", "_call", "_kwargs", "_span")

    def __init__(self, call: Call, span: Span, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self._call = call
        self._span = span
        self._args = args
        self._kwargs = kwargs

    def __enter__(self) -> Span:
        with _GUARD:
            if self._call.dispatch is not None:
                self._call.dispatch.described = True
            self._span.set_attributes(_told_by(*self._args, **self._kwargs))
        return self._span

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with _GUARD:
            if self._call.dispatch is not None:
                self._call.dispatch.described = False
            _note_missing(self._call, error)


def _told_by(
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
