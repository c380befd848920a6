"""All seams: which module is patched by which function, when it is imported."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Final

from otel_mcp.integrations.patching import Patches


def _lazy(module: str, function: str) -> Callable[[ModuleType, Patches], None]:
    # A seam's own imports wait until the library that it patches is there.
    def apply(loaded: ModuleType, patches: Patches) -> None:
        from importlib import import_module

        getattr(import_module(f"otel_mcp.integrations.{module}"), function)(loaded, patches)

    return apply


SEAMS: Final = (
    ("starlette.applications", _lazy("http", "starlette")),
    ("litestar.app", _lazy("http", "litestar")),
    ("starlette.routing", _lazy("handwritten", "route")),
    ("starlette.middleware.gzip", _lazy("handwritten", "gzip")),
    ("brotli_asgi", _lazy("handwritten", "brotli")),
    ("opentelemetry.instrumentation.asgi", _lazy("handwritten", "asgi_instrumentation")),
    ("uvicorn.config", _lazy("servers", "uvicorn")),
    ("uvicorn.server", _lazy("servers", "uvicorn_server")),
    ("gunicorn.workers.gasgi", _lazy("servers", "gunicorn")),
    ("hypercorn.app_wrappers", _lazy("servers", "hypercorn")),
    ("granian.asgi", _lazy("servers", "granian")),
    ("httpx", _lazy("http", "http_client")),
    ("httpx2", _lazy("http", "http_client")),
    ("mcp.server.streamable_http_manager", _lazy("http", "session_manager")),
    ("mcp.server.sse", _lazy("http", "sse_transport")),
    ("mcp.server.runner", _lazy("mcp_v2", "runner")),
    ("mcp.server._otel", _lazy("native", "sdk")),
    ("fastmcp.server.low_level", _lazy("native", "fastmcp")),
    ("mcp.server.lowlevel.server", _lazy("mcp_v1", "lowlevel_server")),
    ("mcp.server.mcpserver.tools.base", _lazy("tools", "tool_base")),
    ("mcp.server.fastmcp.tools.base", _lazy("tools", "tool_base")),
    ("fastmcp.tools.base", _lazy("tools", "fastmcp_tool")),
    ("fastmcp.tools.tool", _lazy("tools", "fastmcp2_tool")),
    ("fastmcp.server.telemetry", _lazy("fastmcp", "telemetry")),
    ("fastmcp.server.server", _lazy("fastmcp", "server")),
)
