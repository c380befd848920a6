"""Dispatch seam of the MCP SDK 2.x; FastMCP 4 runs inside it.

``ServerRunner._compose_server_middleware`` builds the chain for every inbound
message of every transport. It is private: where it is missing, spans are made
after the fact instead.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from types import ModuleType
from typing import Any

from opentelemetry import context as otel_context

from otel_mcp.answer import listed_names
from otel_mcp.guard import guarded
from otel_mcp.request import Call, Exchange
from otel_mcp.runtime import Runtime
from otel_mcp.seams.dispatch import Dispatch, call_of, exchange_of, outcome_of_result, runtime_for
from otel_mcp.seams.patching import Patches
from otel_mcp.spans import capture_result

Handler = Callable[[Any], Awaitable[Any]]
_GUARD = guarded("dispatch")


def runner(module: ModuleType, patches: Patches) -> None:
    """Wrap the chain on both sides: outermost to set the context, innermost to find the span."""

    def make(compose: Callable[[Any, Handler], Handler]) -> Callable[[Any, Handler], Handler]:
        @wraps(compose)
        def composed(self: Any, inner: Handler) -> Handler:
            async def dispatched(ctx: Any) -> Any:
                exchange = exchange_of(getattr(ctx, "request", None))
                runtime = runtime_for(exchange)
                if exchange is None or runtime is None:
                    return await compose(self, inner)(ctx)
                call: Call | None = None
                with _GUARD:
                    call = call_of(exchange, ctx.request_id, ctx.method, ctx.params)
                if call is None:
                    return await _unseen(compose, self, inner, ctx, runtime)
                return await _serve(compose, self, inner, ctx, runtime, call)

            return dispatched

        return composed

    patches.replace(module.ServerRunner, "_compose_server_middleware", make)


async def _serve(
    compose: Callable[[Any, Handler], Handler], owner: Any, inner: Handler, ctx: Any, runtime: Runtime, call: Call
) -> Any:
    with _GUARD:
        await _before(owner, ctx, runtime, call)
    dispatch = Dispatch(runtime, call)

    async def innermost(ctx: Any) -> Any:
        token = None
        with _GUARD:
            token = dispatch.innermost()
        try:
            result = await inner(ctx)
            if call.exchange.capture is not None:
                with _GUARD:
                    capture_result(call, result)
            return result
        finally:
            if token is not None:
                with _GUARD:
                    otel_context.detach(token)

    def told(result: Any) -> Any:
        if call.method == "tools/list":
            runtime.metrics.learn_tools(listed_names(result))
        return outcome_of_result(result)

    return await dispatch.run(lambda: compose(owner, innermost)(ctx), told)


async def _before(owner: Any, ctx: Any, runtime: Runtime, call: Call) -> None:
    """What only this SDK can tell before the handler runs; its span ends before the answer begins."""
    exchange = call.exchange
    if call.method == "initialize":
        await _initialize(ctx, runtime, call, exchange)
    elif call.method == "tools/call" and call.target is not None:
        lookup = getattr(owner.server, "get_tool_input_schema", None)
        call.trusted_name = lookup is not None and lookup(call.target) is not None
    if exchange.protocol_version is None:
        exchange.protocol_version = ctx.protocol_version


async def _initialize(ctx: Any, runtime: Runtime, call: Call, exchange: Exchange) -> None:
    connection = getattr(ctx.session, "_connection", None)
    session_id = getattr(connection, "session_id", None)
    if isinstance(session_id, str):
        exchange.server_session_id = session_id
        await runtime.resolver.opened(call, session_id)
    elif exchange.owns_sessions is False and runtime.watch.may_mint(exchange):
        await runtime.watch.mint(call)


async def _unseen(
    compose: Callable[[Any, Handler], Handler], owner: Any, inner: Handler, ctx: Any, runtime: Runtime
) -> Any:
    """Run a message that is not on the wire without a span of its own: it is the SDK's inner business."""
    chain: Handler | None = None
    quiet: AbstractContextManager[Any] = nullcontext()
    with _GUARD:
        chain = _without_native(compose, owner, inner)
        telemetry = sys.modules.get("fastmcp.telemetry")
        if telemetry is not None and hasattr(telemetry, "suppress_fastmcp_telemetry"):
            quiet = telemetry.suppress_fastmcp_telemetry()
    with quiet:
        result = await (chain or compose(owner, inner))(ctx)
    with _GUARD:
        runtime.metrics.learn_tools(listed_names(result))
    return result


class _Server:
    """A server as `compose` sees it, without the SDK's own span middleware."""

    def __init__(self, server: Any) -> None:
        self.middleware = [entry for entry in server.middleware if type(entry).__name__ != "OpenTelemetryMiddleware"]


class _Runner:
    def __init__(self, owner: Any) -> None:
        self.server = _Server(owner.server)


def _without_native(compose: Callable[[Any, Handler], Handler], owner: Any, inner: Handler) -> Handler:
    return compose(_Runner(owner), inner)
