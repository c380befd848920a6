"""Patches of the MCP SDK 1.x, on which FastMCP 2 and 3 run.

The SDK serves all messages of a session in a task that its ``initialize`` request
started and whose context it keeps, so each message gets its own context here.
``initialize`` itself does not pass here: its span is made after the answer.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial, wraps
from types import ModuleType
from typing import Any, Final

from opentelemetry import context as otel_context
from opentelemetry import trace

from otel_mcp import current
from otel_mcp.exchange.dispatch import Dispatch, exchange_of
from otel_mcp.guard import guarded
from otel_mcp.integrations.patching import Patches
from otel_mcp.integrations.tools import note, note_missing
from otel_mcp.model.call import Call, current_call
from otel_mcp.wire.jsonrpc import Outcome, error_outcome, protocol_error
from otel_mcp.wire.tasks import TASK_METHODS

_GUARD = guarded("dispatch")
_FASTMCP3_METHODS: Final = frozenset({
    "tools/call", "tools/list", "resources/read", "resources/list", "resources/templates/list",
    "prompts/get", "prompts/list",
})  # fmt: skip
"""Methods for which FastMCP 3 opens a server span if there is none of ours."""
_REFUSALS: Final = frozenset({"ToolError", "FastMCPError"})
"""Exceptions by which the high-level servers refuse a call before a tool runs."""
_CANCELLED: Final = Outcome(error_type="cancelled")


def lowlevel_server(module: ModuleType, patches: Patches) -> None:
    """Patch the dispatch of messages and the making of errors; hide the SDK's internal listing of tools from traces."""
    patches.replace(module.Server, "_handle_request", _handle_request)
    patches.replace(module.Server, "_get_cached_tool_definition", _quiet_listing)
    patches.replace(module.Server, "_make_error_result", _noting)


def _handle_request(original: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    @wraps(original)
    async def handle(self: Any, message: Any, req: Any, *args: Any, **kwargs: Any) -> None:
        dispatch: _Dispatch | None = None
        with _GUARD:
            dispatch = _dispatch(self, message, req)
        handler = partial(original, self, message, req, *args, **kwargs)
        await (handler() if dispatch is None else dispatch.run(handler))

    return handle


def _dispatch(server: Any, message: Any, req: Any) -> _Dispatch | None:
    if (runtime := current.runtime) is None:
        return None
    exchange = exchange_of(getattr(getattr(message, "message_metadata", None), "request_context", None))
    if exchange is None:
        native = _opens_span(server, req.method)
        call = runtime.dispatcher.handed_over(message.request_id, req.method, req.params, native=native)
    else:
        # Parameters are models here; only the body has them as they were sent.
        runtime.exchanges.requests.read(exchange)
        call = runtime.dispatcher.requests.call_of(exchange, message.request_id, req.method, None)
    if call is None:
        return None
    dispatch = _Dispatch(runtime.dispatcher, call, server, opens=True, message=message)
    with _GUARD:
        message.respond = dispatch.responding(message.respond)
    return dispatch


@dataclass(slots=True, eq=False)
class _Dispatch(Dispatch):
    message: Any = None
    answered: Outcome | None = None
    """The outcome of the response; the handler itself returns nothing."""

    def responding(self, respond: Callable[[Any], Awaitable[Any]]) -> Callable[[Any], Awaitable[Any]]:
        """Return a `respond` that notes the outcome."""

        def responding(response: Any) -> Awaitable[Any]:
            with _GUARD:
                code, root = getattr(response, "code", None), getattr(response, "root", response)
                self.answered = error_outcome(code) if isinstance(code, int) else Dispatch.outcome_of(self, root)
                if self.call.method != "tools/call":
                    self.dispatcher.metrics.catalogues.learn(self.call.method, root)
                    if self.call.method in TASK_METHODS and not isinstance(code, int):
                        self.dispatcher.metrics.tasks.see(self.call, root)
            return respond(response)

        return responding

    def outcome_of(self, result: Any) -> Outcome | None:
        self.call.trusted_name = self.call.target in getattr(self.server, "_tool_cache", ())
        if self.answered is not None:
            return self.answered
        # For a cancelled request, the SDK answers at once, and the handler ends without a response.
        return _CANCELLED if getattr(self.message, "cancelled", False) is True else None

    def judge(self) -> None:
        call = self.call
        if _is_fastmcp(self.server):
            call.tools_observed = True  # FastMCP raises for unknown tools.
        else:
            # The cache was filled with all tools before the call.
            call.unlisted = not call.trusted_name and bool(getattr(self.server, "_tool_cache", ()))


def _is_fastmcp(server: Any) -> bool:
    return type(server).__module__.startswith("fastmcp")


def _opens_span(server: Any, method: str) -> bool:
    """Return whether FastMCP 3 opens a span for a message that has none of ours."""
    telemetry = sys.modules.get("fastmcp.server.telemetry")
    return method in _FASTMCP3_METHODS and _is_fastmcp(server) and hasattr(telemetry, "server_span")


def _noting(original: Callable[..., Any]) -> Callable[..., Any]:
    """Note why a low-level server answers with an error: an exception of the user's, or failed validation."""

    @wraps(original)
    def make(self: Any, error_message: str) -> Any:
        with _GUARD:
            if (call := current_call.get()) is not None and call.method == "tools/call":
                _note(self, call, sys.exc_info()[1], error_message)
        return original(self, error_message)

    return make


def _note(server: Any, call: Call, error: BaseException | None, message: str) -> None:
    within = error.__traceback__.tb_next if error is not None and error.__traceback__ is not None else None
    validates = within is not None and within.tb_frame.f_globals.get("__name__", "").startswith("jsonschema")
    if error is None or validates:
        call.tool_failure = "invalid_arguments" if validates and message.startswith("Input") else "exception"
        return
    if _is_fastmcp(server):
        note_missing(call, error)
    if call.tool_failure is None and not _is_refusal(server, error):
        note(call, error, None)


def _is_refusal(server: Any, error: BaseException) -> bool:
    """Return whether a high-level server or one of its middlewares refuses a call before a tool runs."""
    if any(base.__name__ in _REFUSALS for base in type(error).__mro__):
        return True
    return _is_fastmcp(server) and protocol_error(error) is not None


def _quiet_listing(original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @wraps(original)
    async def listed(self: Any, tool_name: str) -> Any:
        token = None
        with _GUARD:
            if tool_name not in self._tool_cache and _is_fastmcp(self):
                # FastMCP 3 would open a server span for this listing, which no client requested.
                unsampled = trace.NonRecordingSpan(_unsampled(trace.get_current_span().get_span_context()))
                token = otel_context.attach(trace.set_span_in_context(unsampled))
        try:
            return await original(self, tool_name)
        finally:
            if token is not None:
                with _GUARD:
                    otel_context.detach(token)

    return listed


def _unsampled(context: trace.SpanContext) -> trace.SpanContext:
    if not context.is_valid:
        # Only a valid parent decides about sampling; these ids are never exported.
        return trace.SpanContext(secrets.randbits(127) + 1, secrets.randbits(63) + 1, is_remote=False)
    return trace.SpanContext(context.trace_id, context.span_id, is_remote=False, trace_state=context.trace_state)
