"""OpenTelemetry-native observability for MCP servers over HTTP.

Names are imported on first use, so that importing the package is cheap: every
process under ``opentelemetry-instrument`` does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from otel_mcp.version import __version__

if TYPE_CHECKING:
    from otel_mcp.api import MCPMiddleware, SessionState, current_session
    from otel_mcp.instrumentor import MCPInstrumentor
    from otel_mcp.model.state import ToolCall
    from otel_mcp.observers import Observer
    from otel_mcp.telemetry.logs import SessionLogFilter

__all__ = [
    "MCPInstrumentor",
    "MCPMiddleware",
    "Observer",
    "SessionLogFilter",
    "SessionState",
    "ToolCall",
    "__version__",
    "current_session",
]

_HOMES: Final = {
    "MCPInstrumentor": "otel_mcp.instrumentor",
    "MCPMiddleware": "otel_mcp.api",
    "Observer": "otel_mcp.observers",
    "SessionLogFilter": "otel_mcp.telemetry.logs",
    "SessionState": "otel_mcp.api",
    "ToolCall": "otel_mcp.model.state",
    "current_session": "otel_mcp.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
