"""Hold the runtime of this process, built when first needed, and pass MCP requests to it.

Every patch imports this module, so it imports little: a process without MCP never
loads the runtime or its dependencies.
"""

from __future__ import annotations

import os
import sys
import threading
from asyncio import get_running_loop
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, Final

from otel_mcp.guard import guarded, report
from otel_mcp.model.call import SCOPE_KEY, Exchange, current_exchange
from otel_mcp.types import ASGIApp, Message, Receive, Scope, Send
from otel_mcp.wire.headers import METHOD, NAME, PROTOCOL_VERSION, SESSION_ID, HeaderMap, Seen, recognise

if TYPE_CHECKING:
    from otel_mcp.runtime import Runtime
    from otel_mcp.sessions.service import Sessions

runtime: Runtime | None = None
"""The runtime, once it was needed."""

_GUARD: Final = guarded("lifespan")
_NOTHING: Final[Seen] = ({}, False)
_REPEATED: Final = (
    *(b"host", b"user-agent", b"authorization", b"cookie", b"content-type", b"accept"),
    *(SESSION_ID, PROTOCOL_VERSION, METHOD, NAME),
)
"""Headers that an adapter may omit, but does not change. (It may serialise the body differently.)"""

_lock = threading.Lock()
_options: dict[str, Any] = {}
_uninstrumented = False
_failed = False


def configure(**options: Any) -> None:
    """Keep keyword arguments for the runtime, which is built when first needed.

    A runtime with other arguments, built earlier because code asked for sessions at
    start, is flushed and discarded.
    """
    global _options, _uninstrumented, _failed
    if runtime is not None and options != _options:
        discard()
    _options, _uninstrumented, _failed = options, False, False


def build() -> Runtime | None:
    """Return the runtime, built if needed; ``None`` = OpenTelemetry is switched off."""
    global runtime, _failed
    if runtime is not None:
        return runtime
    if _uninstrumented or _failed or os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    from otel_mcp.model import state
    from otel_mcp.runtime import Runtime
    from otel_mcp.settings import load

    state.bind(sessions)
    with _lock:
        if runtime is None:
            _failed = True  # An attempt that fails is not repeated on every request.
            options = dict(_options)
            providers = {
                name: options.pop(name, None) for name in ("tracer_provider", "meter_provider", "logger_provider")
            }
            runtime = Runtime(load(**options), **providers)
            _failed = False
        return runtime


def sessions() -> Sessions:
    """Return the session store of this process: ``save``, ``load``, ``get_or_create``, ``delete``.

    Raises:
        RuntimeError: OpenTelemetry is switched off in this process.
    """
    built = build()
    if built is None:
        raise RuntimeError("OpenTelemetry is switched off (OTEL_SDK_DISABLED) or uninstrumented")
    return built.sessions


def discard() -> None:
    """Flush and discard the runtime; apps that are still wrapped run unobserved from now on."""
    global runtime, _uninstrumented
    _uninstrumented = True
    held, runtime = runtime, None
    if held is not None:
        held.disable()


def look(scope: Scope, *, from_server: bool = False) -> Seen | None:
    """Decide whether to observe a connection; called by every patch that it passes.

    Args:
        scope: of the connection.
        from_server: whether the web server calls, so that no other request is around it.

    Returns:
        The argument for `serve`; ``None`` = nothing to observe: the headers exclude MCP,
        or an outer patch observes the request, perhaps with another scope.
    """
    try:
        if SCOPE_KEY in scope:
            if (exchange := scope[SCOPE_KEY]) is not None:
                exchange.scope = scope
            return None
        kind = scope.get("type")
        if kind != "http":
            return _NOTHING if kind == "lifespan" else None
        if (seen := recognise(scope)) is None:
            return None
        around = None if from_server else current_exchange.get()
        if around is None or not _is_same(around, scope, seen[0]):
            return seen
        scope[SCOPE_KEY], around.scope = around, scope
    except Exception as failure:
        report("first look", failure)
    return None


def _is_same(around: Exchange, scope: Scope, headers: HeaderMap) -> bool:
    """Return whether an unmarked scope is that of the request that the current task serves.

    Frameworks that are not ASGI make a new scope for the SDK. It is the same request if no
    SDK has it yet, and method, path and headers agree; otherwise the server sends a request
    to another server of this process.
    """
    if around.at_sdk or around.closed or around.responded or around.http_method != scope.get("method"):
        return False
    outer, inner = around.path.rstrip("/"), str(scope.get("path", "")).rstrip("/")
    if not (outer.endswith(inner) or inner.endswith(outer)):
        return False
    return all(name not in headers or headers[name] == around.headers.get(name) for name in _REPEATED)


def serve(
    seen: Seen, app: ASGIApp, scope: Scope, receive: Receive, send: Send, given: Runtime | None = None
) -> Awaitable[None]:
    """Run `app` for a connection that :func:`look` accepted, observed by `given` or the runtime of this process.

    The runtime is built here, so only traffic that may be MCP loads it.
    """
    try:
        if scope["type"] == "lifespan":
            scope[SCOPE_KEY] = None  # Flush only once: it may wait for unreachable exporters.
            send = _lifespan(send, given)
        elif (held := given or runtime or build()) is None:
            pass
        elif held.excluded is None or not held.is_excluded(scope, seen[0]):
            if not held.is_ready:
                held.get_ready()
            try:
                if held.sessions.worker.loop() is not get_running_loop():
                    held.sessions.ensure_running()
            except RuntimeError:  # Not asyncio.
                held.sessions.ensure_running()
            return held.handler(seen, scope, receive, send).run(app)
    except Exception as failure:
        report("request", failure)
    return app(scope, receive, send)


def _lifespan(send: Send, given: Runtime | None) -> Send:
    """Return a `send` that warms up before the first request, and flushes before the shutdown is reported.

    Some servers then raise the signal that stopped them, so ``atexit`` never runs.
    """

    async def observed(message: Message) -> None:
        with _GUARD:
            if message["type"] == "lifespan.startup.complete" and "mcp" in sys.modules:
                if (held := given or build()) is not None:
                    await held.warm_up()
            elif message["type"].startswith("lifespan.shutdown.") and runtime is not None:
                await runtime.shut_down()
        await send(message)

    return observed
