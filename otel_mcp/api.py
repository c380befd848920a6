"""What tool authors may call."""

from __future__ import annotations

from otel_mcp import current
from otel_mcp.model.call import current_call
from otel_mcp.model.state import SessionState
from otel_mcp.sessions.service import Sessions


def current_session() -> SessionState | None:
    """The session of the request being served, as this process knows it.

    Returns:
        ``None`` outside a request, and where the session is unknown. The state
        is a copy without tool calls; ``sessions().load(id)`` reads the shared one.
    """
    call = current_call.get()
    if call is None or call.session is None:
        return None
    return call.session.state()


def sessions() -> Sessions:
    """The session store of this process: ``save``, ``load``, ``get_or_create``, ``delete``.

    Raises:
        RuntimeError: OpenTelemetry is switched off in this process.
    """
    runtime = current.build()
    if runtime is None:
        raise RuntimeError("OpenTelemetry is switched off (OTEL_SDK_DISABLED) or uninstrumented")
    return runtime.sessions
