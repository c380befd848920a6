"""FastMCP's telemetry: keep the session ids that it invents off its spans."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from types import ModuleType

from otel_mcp import semconv
from otel_mcp.guard import guarded
from otel_mcp.request import current_call
from otel_mcp.seams.patching import Patches

_GUARD = guarded("FastMCP seam")


def telemetry(module: ModuleType, patches: Patches) -> None:
    """Replace ``get_session_span_attributes``, looked up at call time by FastMCP 3 and 4.

    Where the client sent no session id, FastMCP makes one up for each request.
    """

    def make(original: Callable[[], dict[str, str]]) -> Callable[[], dict[str, str]]:
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

    patches.replace(module, "get_session_span_attributes", make)
