"""Dispatch seam of the MCP SDK 1.x, on which FastMCP 2 and 3 run.

A session's task was started by its ``initialize`` request and carries that
request's context for ever, so every message gets its own context here.
``initialize`` itself never passes: its span is made after the fact.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import wraps
from types import ModuleType
from typing import Any, Final

from opentelemetry import context as otel_context
from opentelemetry import trace

from otel_mcp import current
from otel_mcp.exchange.dispatch import Dispatch, call_of, exchange_of, handed_over, outcome_of_result
from otel_mcp.guard import guarded
from otel_mcp.integrations.patching import Patches
from otel_mcp.integrations.tools import note
from otel_mcp.model.call import Call, current_call
from otel_mcp.wire.jsonrpc import Outcome, error_outcome, protocol_error

_GUARD = guarded("dispatch")
_FASTMCP3_METHODS: Final = frozenset({
    "tools/call", "tools/list", "resources/read", "resources/list", "resources/templates/list",
    "prompts/get", "prompts/list",
})  # fmt: skip
"""Methods that FastMCP 3 opens a server span for, where none of ours is there."""
_SAID: Final = frozenset({"ToolError", "FastMCPError"})
"""Exceptions of the high-level servers: what is raised before a tool runs is not the tool's."""
_CANCELLED: Final = Outcome(error_type="cancelled")


def lowlevel_server(module: ModuleType, patches: Patches) -> None:
    """Wrap ``Server._handle_request``, and keep the hidden listing of tools out of the traces."""
    patches.replace(module.Server, "_handle_request", _handle_request)
    patches.replace(module.Server, "_get_cached_tool_definition", _quiet_listing)
    patches.replace(module.Server, "_make_error_result", _noting)


def _handle_request(original: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    @wraps(original)
    async def handle(self: Any, message: Any, req: Any, *args: Any, **kwargs: Any) -> None:
        call: Call | None = None
        exchange = exchange_of(getattr(getattr(message, "message_metadata", None), "request_context", None))
        runtime = current.runtime
        if runtime is not None:
            with _GUARD:
                if exchange is None:
                    native = _fastmcp_will(self, req.method)
                    call = handed_over(runtime, message.request_id, req.method, req.params, native=native)
        if exchange is not None and runtime is not None:
            with _GUARD:
                runtime.watch.read(exchange)  # Here the parameters are models; the body has them as they were sent.
                call = call_of(runtime, exchange, message.request_id, req.method, None)
        if call is None or runtime is None:
            return await original(self, message, req, *args, **kwargs)
        dispatch = _Dispatch(runtime, call)
        dispatch.answered_by(self, message)

        async def handler() -> None:
            token = None
            with _GUARD:
                token = dispatch.open()
            try:
                await original(self, message, req, *args, **kwargs)
            finally:
                if token is not None:
                    with _GUARD:
                        otel_context.detach(token)

        return await dispatch.run(handler)

    return handle


class _Dispatch(Dispatch):
    _server: Any = None
    _message: Any = None
    _outcomes: Sequence[Outcome] = ()

    def answered_by(self, server: Any, message: Any) -> None:
        self._server, self._message, self._outcomes = server, message, self._responses(message)

    def told(self, result: Any) -> Outcome | None:
        self.call.trusted_name = self.call.target in getattr(self._server, "_tool_cache", ())
        if self._outcomes:
            return self._outcomes[-1]
        # The SDK has answered at once, and its handler ends without a word.
        return _CANCELLED if getattr(self._message, "cancelled", False) is True else None

    def _responses(self, message: Any) -> list[Outcome]:
        """Watch what the handler answers: it returns nothing, it responds."""
        outcomes: list[Outcome] = []
        with _GUARD:
            respond = message.respond

            async def watched(response: Any) -> Any:
                with _GUARD:
                    code = getattr(response, "code", None)
                    root = getattr(response, "root", response)
                    outcomes.append(error_outcome(code) if isinstance(code, int) else outcome_of_result(root))
                    if self.call.method != "tools/call":
                        self._runtime.metrics.learn_listed(self.call.method, root)
                return await respond(response)

            message.respond = watched
        return outcomes

    def judge(self) -> None:
        call = self.call
        if _is_fastmcp(self._server):
            call.tools_observed = True  # It says itself what it does not know.
        else:
            # The cache has all tools, from before the call on.
            call.unlisted = not call.trusted_name and bool(getattr(self._server, "_tool_cache", ()))


def _is_fastmcp(server: Any) -> bool:
    return type(server).__module__.startswith("fastmcp")


def _fastmcp_will(server: Any, method: str) -> bool:
    """Whether FastMCP 3 opens a span for a message that none of ours is there for."""
    telemetry = sys.modules.get("fastmcp.server.telemetry")
    return method in _FASTMCP3_METHODS and _is_fastmcp(server) and hasattr(telemetry, "server_span")


def _noting(original: Callable[..., Any]) -> Callable[..., Any]:
    """What a low-level server makes an error of: the user's exception, or what it has validated itself."""

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
    elif call.tool_failure is None and not _is_refusal(server, error):
        note(call, error, None)


def _is_refusal(server: Any, error: BaseException) -> bool:
    """Whether a high-level server, or a middleware of its, says no before a tool runs."""
    said = any(base.__name__ in _SAID for base in type(error).__mro__)
    return said or (_is_fastmcp(server) and protocol_error(error) is not None)


def _quiet_listing(original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @wraps(original)
    async def listed(self: Any, tool_name: str) -> Any:
        token = None
        with _GUARD:
            if tool_name not in self._tool_cache and type(self).__module__.startswith("fastmcp"):
                # FastMCP 3 would open a server span for this listing, which no client asked for.
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
        # A parent has to be valid to be heeded; these ids reach nobody.
        context = trace.SpanContext(secrets.randbits(127) + 1, secrets.randbits(63) + 1, is_remote=False)
    return trace.SpanContext(
        context.trace_id,
        context.span_id,
        is_remote=False,
        trace_flags=trace.TraceFlags(0),
        trace_state=context.trace_state,
    )
