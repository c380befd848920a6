"""Patches of the MCP SDK 2.x: where a message reaches its handler, and the span that the SDK opens for it.

``ServerRunner._compose_server_middleware`` builds the handler chain for every inbound
message of every transport. It is private; without it, spans are made after the answer.
The SDK's span ends before the outer layers of the chain do, so it is completed inside
the middleware that opens it, whether the handler runs or another middleware answers.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial, wraps
from types import ModuleType
from typing import Any, Final

from opentelemetry import context as otel_context
from pydantic import ValidationError

from otel_mcp import current, semconv
from otel_mcp.exchange.dispatch import Dispatch
from otel_mcp.guard import guarded, report
from otel_mcp.integrations.patching import ORIGINAL, Patches
from otel_mcp.integrations.tools import was_entered
from otel_mcp.model.call import SCOPE_KEY, Call, Exchange, current_call
from otel_mcp.model.outcomes import completed_by
from otel_mcp.runtime import Runtime
from otel_mcp.telemetry.spans import call_attributes, capture_result, scope_of
from otel_mcp.wire.jsonrpc import FINE, Outcome, error_outcome, negotiated_version, protocol_error
from otel_mcp.wire.tasks import TASK_METHODS

Handler = Callable[[Any], Awaitable[Any]]
Compose = Callable[[Any, Handler], Handler]

_GUARD = guarded("dispatch")
_NATIVE: Final = "OpenTelemetryMiddleware"
"""The SDK's middleware that opens spans."""
_ERROR_ATTRIBUTES: Final = frozenset({semconv.ERROR_TYPE, semconv.RPC_RESPONSE_STATUS_CODE})
_INVALID_PARAMS, _INTERNAL_ERROR, _UNKNOWN_ERROR = -32602, -32603, 0
"""Codes of the SDK's answer to an invalid message, and to any other exception (0 up to 2025-11-25)."""


def runner(module: ModuleType, patches: Patches) -> None:
    """Wrap the chain outside, to set the context, and inside, to find the SDK's span."""
    patches.replace(module.ServerRunner, "_compose_server_middleware", _composed)


def native_span(module: ModuleType, patches: Patches) -> None:
    """Patch the middleware that opens the SDK's span."""
    if hasattr(module, _NATIVE):
        patches.replace(getattr(module, _NATIVE), "__call__", layer)


def _composed(compose: Compose) -> Compose:
    @wraps(compose)
    def composed(self: Any, inner: Handler) -> Handler:
        # Not a coroutine function: each coroutine costs time whenever the handler waits.
        def dispatched(ctx: Any) -> Awaitable[Any]:
            if (runtime := current.runtime) is None:
                return compose(self, inner)(ctx)
            try:
                scope: Any = getattr(getattr(ctx, "request", None), "scope", None)
                exchange: object = scope.get(SCOPE_KEY) if type(scope) is dict else None  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
                if not isinstance(exchange, Exchange):
                    native = any(map(_is_native, self.server.middleware))
                    native = native or type(self.server).__module__.startswith("fastmcp")
                    call = runtime.dispatcher.handed_over(ctx.request_id, ctx.method, ctx.params, native=native)
                    if call is None:
                        return compose(self, inner)(ctx)
                    if ctx.method == "initialize":
                        # Only the answer, after the SDK's span, shows whether the transport gives out a session.
                        return _unseen(compose, self, inner, ctx, runtime)
                else:
                    if exchange.protocol_version != ctx.protocol_version and ctx.method != "initialize":
                        exchange.protocol_version = ctx.protocol_version  # The negotiated one, not the header's.
                    call = runtime.dispatcher.requests.call_of(exchange, ctx.request_id, ctx.method, ctx.params)
                    if call is None:
                        return _unseen(compose, self, inner, ctx, runtime)
                dispatch = _Dispatch(runtime.dispatcher, call, self, ctx.session)
                if call.method != "tools/call" or call.target not in runtime.metrics.catalogues.tools.known:
                    dispatch.slow_learn(ctx)
                # A patched middleware that opens spans observes its inner part itself.
                if self.server.middleware and hasattr(type(self.server.middleware[0]).__call__, ORIGINAL):
                    dispatch.is_layered = True
                chain = compose(self, inner if dispatch.is_layered else partial(dispatch.observe, inner))
                return dispatch.run(partial(chain, ctx))
            except Exception as failure:
                report("dispatch", failure)
                return compose(self, inner)(ctx)

        return dispatched

    return composed


def layer(original: Callable[..., Awaitable[Any]], *, opening: bool = False) -> Callable[..., Awaitable[Any]]:
    """Wrap a middleware that opens the span of a message, to observe the part of the chain inside it.

    Args:
        original: the middleware's ``__call__``.
        opening: see `Dispatch.opening`.
    """

    @wraps(original)
    def observing(self: Any, ctx: Any, call_next: Handler) -> Awaitable[Any]:
        try:
            call = current_call.get()
            dispatch: _Dispatch | None = call.dispatch if call is not None and call.span_context is None else None
            # The message may be one of another server in this process.
            if dispatch is not None and ctx.session is dispatch.served_by and ctx.method == dispatch.call.method:
                dispatch.opening = opening
                call_next = partial(dispatch.observe, call_next)
        except Exception as failure:
            report("dispatch", failure)
        return original(self, ctx, call_next)

    return observing


@dataclass(slots=True, eq=False)
class _Dispatch(Dispatch):
    is_layered: bool = False
    """The outermost middleware opens the span, so its result is the result of the message."""
    observed: bool = False
    """A layer further out reads the result and completes the span."""
    spans_outside: bool = False
    """FastMCP opened the span and completes it further out."""

    def slow_learn(self, ctx: Any) -> None:
        """Note facts that only this SDK has before the handler runs."""
        with _GUARD:
            exchange, method = self.call.exchange, self.call.method
            if exchange.protocol_version is None:
                exchange.protocol_version = ctx.protocol_version
            if method == "initialize":
                self.before = self._slow_initialize(ctx)
            elif method == "tools/call":
                self.call.trusted_name = _is_tool(self.server, self.call)

    async def _slow_initialize(self, ctx: Any) -> None:
        """Learn the session that the transport gives out, since the SDK's span ends before the answer begins."""
        with _GUARD:
            runtime, exchange = current.runtime, self.call.exchange
            session_id = getattr(getattr(ctx.session, "_connection", None), "session_id", None)
            if isinstance(session_id, str):
                exchange.server_session_id = session_id
                await self.dispatcher.resolver.opens(self.call, session_id)
            elif runtime is not None and exchange.owns_sessions is False:
                await runtime.exchanges.responses.mint(self.call)

    async def observe(self, call_next: Handler, ctx: Any) -> Any:
        """Run the inner part of the chain, opening a span if there is none, and complete the span while it is open."""
        if self.observed:
            return await call_next(ctx)
        self.observed = True
        call, token = self.call, None
        try:
            if call.span is None:
                with _GUARD:
                    token = self.open_unless_opened()
            result = await call_next(ctx)
            try:
                if (outcome := self.outcome_of(result)) is FINE and self.is_layered:
                    self.fine = result
                if outcome is not FINE or call.method != "tools/call" or call.exchange.capture is not None:
                    await self._slow_observed(result, outcome)
            except Exception as failure:
                report("dispatch", failure)
            return result
        except BaseException as error:
            with _GUARD:
                self._settle(error)
            raise
        finally:
            if token is not None:
                otel_context.detach(token)

    async def _slow_observed(self, result: Any, outcome: Outcome | None) -> None:
        call = self.call
        capture_result(call, result)
        if call.method == "tools/call" or (outcome is not None and outcome.asks is not None):
            call.handler_outcome = completed_by(call.handler_outcome, outcome)
            self._settle(None)
        else:
            self.dispatcher.metrics.catalogues.learn(call.method, result)
            if call.method in TASK_METHODS:
                self.dispatcher.metrics.tasks.see(call, result)
        if call.method == "initialize":
            # The handshake has succeeded and its span is still open.
            await self.dispatcher.resolver.succeeded(call)
            version = call.exchange.protocol_version = negotiated_version({"result": result})
            if call.span is not None:
                agreed = {semconv.MCP_PROTOCOL_VERSION: version} if version else {}
                call.span.set_attributes({**call_attributes(call, scope_of(call.span)), **agreed})

    def _settle(self, error: BaseException | None) -> None:
        span = self.call.span
        if span is None or span is self.own or self.spans_outside:
            return
        if (outcome := self.settle(span, error)) is not None:
            _keep(span, outcome)

    def failed(self, error: BaseException) -> Outcome:
        if (code := protocol_error(error)) is not None:
            return error_outcome(code)
        if not isinstance(error, Exception):
            return super(_Dispatch, self).failed(error)
        call = self.call
        if isinstance(error, ValidationError):
            handler = self.server.server.get_request_handler(call.method)
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
        call, server = self.call, self.server.server
        # Other servers may serve tools that their lookup does not find.
        owner: object = getattr(getattr(server, "get_tool_input_schema", None), "__self__", None)
        knows_all = any(base.__module__.startswith("mcp.server.mcpserver") for base in type(owner).__mro__)
        call.tools_observed = knows_all or hasattr(server, "fastmcp")
        call.unlisted = knows_all and not call.trusted_name and not _is_tool(self.server, call)

    def owes_span(self) -> bool:
        # An unsampled span of a middleware that is not patched cannot be seen from outside.
        entries = self.server.server.middleware
        return not any(_is_native(entry) and not hasattr(type(entry).__call__, ORIGINAL) for entry in entries)


def _keep(span: Any, outcome: Outcome) -> None:
    """Keep the SDK from overwriting our error attributes on its span.

    It marks the caller's errors as the server's, and attributes cannot be removed from a span.
    Its status description and its exception event stay.
    """
    set_attribute, set_attributes = span.set_attribute, span.set_attributes

    def without_errors(attributes: Mapping[str, Any]) -> None:
        set_attributes({name: attributes[name] for name in attributes if name not in _ERROR_ATTRIBUTES})

    span.set_attributes = without_errors
    span.set_attribute = lambda name, value: None if name in _ERROR_ATTRIBUTES else set_attribute(name, value)  # pyright: ignore[reportUnknownLambdaType]
    if outcome.error_type is None:
        span.set_status = lambda *_, **__: None  # pyright: ignore[reportUnknownLambdaType]


def _is_native(middleware: object) -> bool:
    return type(middleware).__name__ == _NATIVE


def _is_tool(owner: Any, call: Call) -> bool:
    """Return whether the server has the tool: then its name may be shown even if the call fails."""
    lookup = getattr(owner.server, "get_tool_input_schema", None)
    if call.target is None or lookup is None:
        return False
    try:
        return lookup(call.target) is not None
    except Exception:
        return False  # The user's lookup may raise for an unknown name.


async def _unseen(compose: Compose, owner: Any, inner: Handler, ctx: Any, runtime: Runtime) -> Any:
    """Run a message that the SDK made itself, without a span."""
    chain: Handler | None = None
    quiet: AbstractContextManager[Any] = nullcontext()
    with _GUARD:
        chain = compose(_Runner(owner), inner)
        telemetry = sys.modules.get("fastmcp.telemetry")
        if telemetry is not None and hasattr(telemetry, "suppress_fastmcp_telemetry"):
            quiet = telemetry.suppress_fastmcp_telemetry()
    with quiet:
        result = await (chain or compose(owner, inner))(ctx)
    with _GUARD:
        runtime.metrics.catalogues.learn(ctx.method, result)
    return result


class _Runner:
    """Stands in for a runner whose server lacks the SDK's span middleware, as far as `compose` needs it."""

    def __init__(self, owner: Any) -> None:
        self.server = self
        self.middleware = [entry for entry in owner.server.middleware if not _is_native(entry)]
