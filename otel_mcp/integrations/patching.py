"""Replace and restore attributes of other libraries; list all patches."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from types import MappingProxyType, ModuleType
from typing import Any, Final, cast

from wrapt import register_post_import_hook

from otel_mcp.guard import guarded

logger = logging.getLogger("otel_mcp")
ORIGINAL: Final = "_otel_mcp_original"
"""The attribute in which a replacement keeps the original."""


@dataclass(slots=True)
class Patches:
    """All replaced attributes, in order."""

    _undo: list[Callable[[], None]] = field(default_factory=list[Callable[[], None]])
    generation: int = 0
    """Grows with `restore`, after which earlier import hooks do nothing."""

    def replace(self, owner: Any, name: str, make: Callable[[Any], Any]) -> bool:
        """Replace ``owner.name`` with ``make(original)``.

        Returns:
            False if the name does not exist (in another version of the library) or
            is already replaced.
        """
        held = cast(MappingProxyType[str, Any], owner.__dict__)
        original = held.get(name)
        if original is None or hasattr(original, ORIGINAL):
            return False
        replacement = make(original)
        setattr(replacement, ORIGINAL, original)
        setattr(owner, name, replacement)

        def undo() -> None:
            # If another library has wrapped ours, both stay, and ours only passes calls on.
            if held.get(name) is replacement:
                setattr(owner, name, original)

        self._undo.append(undo)
        return True

    def on_import(self, module: str, apply: Callable[[ModuleType, Patches], None]) -> None:
        """Run `apply` when `module` is imported, or now if it already is.

        Never imports `module`: that would bind classes that other instrumentations
        are about to replace.
        """
        generation = self.generation

        def hook(loaded: ModuleType) -> None:
            # Runs inside the user's import statement, so it must not raise.
            with guarded(f"patch {module}"):
                if generation == self.generation:
                    apply(loaded, self)

        register_post_import_hook(hook, module)

    def restore(self) -> None:
        """Undo everything, newest first."""
        self.generation += 1
        while self._undo:
            with guarded("uninstrument"):
                self._undo.pop()()


def _lazy(module: str, function: str) -> Callable[[ModuleType, Patches], None]:
    """Import the integration when the library that it patches is imported."""

    def apply(loaded: ModuleType, patches: Patches) -> None:
        getattr(import_module(f"otel_mcp.integrations.{module}"), function)(loaded, patches)

    return apply


TARGETS: Final = (
    ("starlette.applications", _lazy("http", "starlette")),
    ("litestar.app", _lazy("http", "litestar")),
    ("starlette.routing", _lazy("http", "route")),
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
    ("mcp.server._otel", _lazy("mcp_v2", "native_span")),
    ("fastmcp.server.low_level", _lazy("fastmcp", "native_span")),
    ("mcp.server.lowlevel.server", _lazy("mcp_v1", "lowlevel_server")),
    ("mcp.server.mcpserver.tools.base", _lazy("tools", "tool_base")),
    ("mcp.server.fastmcp.tools.base", _lazy("tools", "tool_base")),
    ("fastmcp.tools.base", _lazy("tools", "fastmcp_tool")),
    ("fastmcp.tools.tool", _lazy("tools", "fastmcp2_tool")),
    ("fastmcp.server.telemetry", _lazy("fastmcp", "telemetry")),
    ("fastmcp.server.server", _lazy("fastmcp", "server")),
)
"""Modules, and the functions that patch them when they are imported."""
