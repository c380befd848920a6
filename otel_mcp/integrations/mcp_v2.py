"""Dispatch seam of the MCP SDK 2.x; FastMCP 4 runs inside it.

``ServerRunner._compose_server_middleware`` builds the chain for every inbound
message of every transport. It is private: where it is missing, spans are made
after the fact instead.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import Token
from dataclasses import replace
from functools import partial, wraps
from types import ModuleType
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry.context import Context
from pydantic import ValidationError

from otel_mcp import current, semconv
from otel_mcp.exchange.dispatch import Dispatch, call_of, exchange_of, handed_over, outcome_of_result
from otel_mcp.guard import guarded, report
from otel_mcp.integrations.patching import Patches, is_replaced
from otel_mcp.integrations.tools import was_entered
from otel_mcp.model.call import Call, Exchange
from otel_mcp.runtime import Runtime
from otel_mcp.telemetry.spans import call_attributes, capture_result, scope_of
from otel_mcp.wire.jsonrpc import Outcome, error_outcome, negotiated_version, protocol_error

Handler = Callable[[Any], Awaitable[Any]]

_INVALID_PARAMS, _INTERNAL_ERROR, _UNKNOWN_ERROR = -32602, -32603, 0
"""What the SDK answers where a message cannot be validated, and for any other exception (0 up to 2025-11-25)."""


def runner(module: ModuleType, patches: Patches) -> None:
    """Wrap the chain on both sides: outermost to set the context, innermost to find the span."""

    def make(compose: Callable[[Any, Handler], Handler]) -> Callable[[Any, Handler], Handler]:
        @wraps(compose)
        def composed(self: Any, inner: Handler) -> Handler:
            # No coroutine of its own: each one is paid for whenever the handler waits.
            def dispatched(ctx: Any) -> Awaitable[Any]:
                if (runtime := current.runtime) is None:
                    return compose(self, inner)(ctx)
                try:
                    if (exchange := exchange_of(getattr(ctx, "request", None))) is None:
                        call = _handed_over(runtime, self, ctx)
                        if call is None:
                            return compose(self, inner)(ctx)
                        if ctx.method == "initialize":
                            # Whether the transport gives out a session shows in its answer alone, after a native span.
                            return _unseen(compose, self, inner, ctx, runtime)
                    elif (call := _call_of(runtime, exchange, ctx)) is None:
                        return _unseen(compose, self, inner, ctx, runtime)
                    dispatch = _Dispatch(runtime, call, self, inner)
                except Exception as failure:
                    report("dispatch", failure)
                    return compose(self, inner)(ctx)
                try:
                    dispatch.learn(ctx)
                except Exception as failure:
                    report("dispatch", failure)
                return dispatch.run(partial(compose(self, dispatch.handle), ctx))

            return dispatched

        return composed

    patches.replace(module.ServerRunner, "_compose_server_middleware", make)


class _Dispatch(Dispatch):
    def __init__(self, runtime: Runtime, call: Call, owner: Any, inner: Handler) -> None:
        super().__init__(runtime, call)
        self._owner, self._inner = owner, inner

    def learn(self, ctx: Any) -> None:
        """Note what only this SDK can tell before the handler runs."""
        call = self.call
        self.served_by = ctx.session
        if call.exchange.protocol_version is None:
            call.exchange.protocol_version = ctx.protocol_version
        if call.method == "initialize":
            self.before = _initialize(ctx, self._runtime, call)
        elif call.method == "tools/call" and call.target not in self._runtime.metrics.tools.known:
            call.trusted_name = _is_tool(self._owner, call)

    def handle(self, ctx: Any) -> Awaitable[Any]:
        """The SDK's handler, inside everything that goes around it."""
        token = None
        call = self.call
        try:
            if call.span is None:
                token = self.innermost()
        except Exception as failure:
            report("dispatch", failure)
        if call.method == "initialize":
            return _handshake(self._inner(ctx), self._runtime, call, token)
        if token is None and call.exchange.capture is None:
            return self._inner(ctx)
        return _within(self._inner(ctx), call, token)

    def told(self, result: Any) -> Outcome | None:
        if self.call.method != "tools/call":
            self._runtime.metrics.learn_listed(self.call.method, result)
        return outcome_of_result(result)

    def failed(self, error: BaseException) -> Outcome:
        if (code := protocol_error(error)) is not None:
            return error_outcome(code)
        if not isinstance(error, Exception):
            return super().failed(error)
        call = self.call
        if isinstance(error, ValidationError):
            handler = self._owner.server.get_request_handler(call.method)
            if not was_entered(getattr(handler, "handler", None), error.__traceback__):
                return error_outcome(_INVALID_PARAMS)
            outcome = error_outcome(_INVALID_PARAMS)
        else:
            outcome = error_outcome(_INTERNAL_ERROR if call.exchange.modern else _UNKNOWN_ERROR)
        if call.method == "tools/call" and call.tool_failure is None:
            call.tool_failure = "exception"
            outcome = replace(outcome, exception_type=type(error).__qualname__[:128])
        return outcome

    def judge(self) -> None:
        call, server = self.call, self._owner.server
        # What another server does not look up, it may know all the same.
        owner: object = getattr(getattr(server, "get_tool_input_schema", None), "__self__", None)
        knows_all = any(base.__module__.startswith("mcp.server.mcpserver") for base in type(owner).__mro__)
        call.tools_observed = knows_all or hasattr(server, "fastmcp")
        call.unlisted = knows_all and not call.trusted_name and not _is_tool(self._owner, call)

    def owes_span(self) -> bool:
        # Of a layer that the seam has not reached, a span that was not sampled is seen only within.
        return not any(_is_native(entry) and not is_replaced(entry) for entry in self._owner.server.middleware)


async def _within(handling: Awaitable[Any], call: Call, token: Token[Context] | None) -> Any:
    try:
        result = await handling
        if call.exchange.capture is not None:
            with guarded("dispatch"):
                capture_result(call, result)
        return result
    finally:
        if token is not None:
            with guarded("dispatch"):
                otel_context.detach(token)


async def _handshake(handling: Awaitable[Any], runtime: Runtime, call: Call, token: Token[Context] | None) -> Any:
    """What a handshake brings is known once it has succeeded, and its span is still open."""
    result = await _within(handling, call, token)
    with guarded("dispatch"):
        await runtime.resolver.succeeded(call)
        version = call.exchange.protocol_version = negotiated_version({"result": result})
        if call.span is not None:
            agreed = {semconv.MCP_PROTOCOL_VERSION: version} if version else {}
            call.span.set_attributes({**call_attributes(call, scope_of(call.span)), **agreed})
    return result


def _call_of(runtime: Runtime, exchange: Exchange, ctx: Any) -> Call | None:
    if exchange.protocol_version != ctx.protocol_version and ctx.method != "initialize":
        exchange.protocol_version = ctx.protocol_version  # What both sides speak, whatever a header says.
    return call_of(runtime, exchange, ctx.request_id, ctx.method, ctx.params)


def _is_native(middleware: object) -> bool:
    return type(middleware).__name__ == "OpenTelemetryMiddleware"


def _has_native(owner: Any) -> bool:
    return any(_is_native(entry) for entry in owner.server.middleware)


def _handed_over(runtime: Runtime, owner: Any, ctx: Any) -> Call | None:
    native = _has_native(owner) or type(owner.server).__module__.startswith("fastmcp")
    return handed_over(runtime, ctx.request_id, ctx.method, ctx.params, native=native)


def _is_tool(owner: Any, call: Call) -> bool:
    """Whether the server knows the tool by itself: then its name may be told though the call fails."""
    lookup = getattr(owner.server, "get_tool_input_schema", None)
    if call.target is None or lookup is None:
        return False
    try:
        return lookup(call.target) is not None
    except Exception:
        return False  # A function of the user's, which may raise for a name that it does not know: no failure of ours.


async def _initialize(ctx: Any, runtime: Runtime, call: Call) -> None:
    """What only this SDK can tell before the handler runs; its span ends before the answer begins."""
    exchange = call.exchange
    connection = getattr(ctx.session, "_connection", None)
    session_id = getattr(connection, "session_id", None)
    if isinstance(session_id, str):
        exchange.server_session_id = session_id
        await runtime.resolver.opens(call, session_id)
    elif exchange.owns_sessions is False and runtime.replies.may_mint(exchange):
        await runtime.replies.mint(call)


async def _unseen(
    compose: Callable[[Any, Handler], Handler], owner: Any, inner: Handler, ctx: Any, runtime: Runtime
) -> Any:
    """Run a message that is not on the wire without a span of its own: it is the SDK's inner business."""
    chain: Handler | None = None
    quiet: AbstractContextManager[Any] = nullcontext()
    try:
        chain = _without_native(compose, owner, inner)
        telemetry = sys.modules.get("fastmcp.telemetry")
        if telemetry is not None and hasattr(telemetry, "suppress_fastmcp_telemetry"):
            quiet = telemetry.suppress_fastmcp_telemetry()
    except Exception as failure:
        report("dispatch", failure)
    with quiet:
        result = await (chain or compose(owner, inner))(ctx)
    try:
        runtime.metrics.learn_listed(ctx.method, result)
    except Exception as failure:
        report("dispatch", failure)
    return result


class _Server:
    """A server as `compose` sees it, without the SDK's own span middleware."""

    def __init__(self, server: Any) -> None:
        self.middleware = [entry for entry in server.middleware if not _is_native(entry)]


class _Runner:
    def __init__(self, owner: Any) -> None:
        self.server = _Server(owner.server)


def _without_native(compose: Callable[[Any, Handler], Handler], owner: Any, inner: Handler) -> Handler:
    return compose(_Runner(owner), inner)
