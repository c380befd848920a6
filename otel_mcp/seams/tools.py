"""What only the tool itself shows: that the server has one of that name, and which class it raised.

The SDK turns every exception into a result that only says *error*.
"""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Awaitable, Callable
from functools import wraps
from types import ModuleType
from typing import Any

from opentelemetry.trace import StatusCode

from otel_mcp import semconv
from otel_mcp.guard import guarded
from otel_mcp.request import current_call
from otel_mcp.seams.patching import Patches
from otel_mcp.wire.jsonrpc import Outcome

_GUARD = guarded("tool seam")


def tool_base(module: ModuleType, patches: Patches) -> None:
    """The high-level server of the SDK."""
    patches.replace(module.Tool, "run", _run)


def fastmcp_tool(module: ModuleType, patches: Patches) -> None:
    """FastMCP 3 and 4."""
    if hasattr(module, "Tool"):
        patches.replace(module.Tool, "_run", _run)


def fastmcp2_tool(module: ModuleType, patches: Patches) -> None:
    """FastMCP 2."""
    if hasattr(module, "FunctionTool"):
        patches.replace(module.FunctionTool, "run", _run)


def _run(original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @wraps(original)
    async def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        if (call := current_call.get()) is not None:
            call.trusted_name = True
        try:
            return await original(self, *args, **kwargs)
        except Exception as error:
            with _GUARD:
                _note(error)
            raise
        except CancelledError:
            with _GUARD:
                _cancelled()
            raise

    return run


def _cancelled() -> None:
    """Say so while a native span is still open; the SDK ends it as if nothing had been."""
    call = current_call.get()
    if call is not None and call.span is not None and call.span.is_recording():
        call.span.set_attribute(semconv.ERROR_TYPE, "cancelled")
        call.span.set_status(StatusCode.ERROR)


def _note(error: Exception) -> None:
    call = current_call.get()
    if call is None or call.told is not None:
        return
    cause = error.__cause__ or error
    name = type(cause).__qualname__[:128]
    call.told = Outcome(exception_type=name)
    if call.span is not None and call.span.is_recording():
        call.span.set_attribute(semconv.TOOL_EXCEPTION_TYPE, name)
