"""Patches of the tools of high-level servers: they note that a tool was entered, and how it failed.

The answer does not show this, because the SDK turns every exception into a result marked as an error.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial, wraps
from types import ModuleType, TracebackType
from typing import Any, Final

from pydantic import ValidationError

from otel_mcp.guard import guarded
from otel_mcp.integrations.patching import Patches
from otel_mcp.loops import is_cancellation
from otel_mcp.model.call import Call, current_call
from otel_mcp.wire.jsonrpc import Failure, Outcome, protocol_error

_GUARD = guarded("tool")
_WRAPPERS: Final = frozenset({"ToolError", "UnexpectedToolError", "_ToolBodyError"})
"""Exceptions in which the libraries wrap one that a tool raised."""
_MISSING: Final = frozenset({"NotFoundError", "DisabledError"})
"""Exceptions of FastMCP for a component that is unknown or disabled."""
_BY_CODE: Final[dict[int, Failure]] = {-32602: "invalid_arguments", -32603: "exception", 0: "exception"}
"""Kinds of failure by the code of a protocol error that a tool raises; any other code counts as ``tool``."""

Run = Callable[..., Awaitable[Any]]


def tool_base(module: ModuleType, patches: Patches) -> None:
    """Patch the SDK's high-level server, whose tools wrap the exceptions that they raise."""
    patches.replace(module.Tool, "run", partial(_run, unwrapped=_from_sdk))


def fastmcp_tool(module: ModuleType, patches: Patches) -> None:
    """Patch FastMCP 3 and 4."""
    if hasattr(module, "Tool"):
        patches.replace(module.Tool, "_run", partial(_run, unwrapped=_from_fastmcp))


def fastmcp2_tool(module: ModuleType, patches: Patches) -> None:
    """Patch FastMCP 2."""
    if "FunctionTool" in vars(module):  # Later versions moved it, and warn when it is read from here.
        patches.replace(module.FunctionTool, "run", partial(_run, unwrapped=_from_fastmcp))


def _run(original: Run, *, unwrapped: Callable[[Exception], BaseException]) -> Run:
    @wraps(original)
    async def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        if (call := current_call.get()) is not None:
            call.trusted_name = call.tool_entered = True
        try:
            result = await original(self, *args, **kwargs)
        except Exception as error:
            if call is not None:
                with _GUARD:
                    note(call, unwrapped(error), getattr(self, "fn", None))
            raise
        except BaseException as error:
            if call is not None and is_cancellation(error):
                call.tool_failure = "cancelled"
            raise
        if call is not None and call.tool_failure is not None:
            # An earlier attempt, or a tool that this tool called, had failed.
            call.tool_failure = call.handler_outcome = None
        return result

    return run


def _from_sdk(error: Exception) -> BaseException:
    return error.__cause__ if type(error).__name__ in _WRAPPERS and error.__cause__ is not None else error


def _from_fastmcp(error: Exception) -> BaseException:
    """Return pydantic's error if FastMCP wrapped one; FastMCP wraps nothing else."""
    return error.__cause__ if isinstance(error.__cause__, ValidationError) else error


def note(call: Call, error: BaseException, function: object) -> None:
    """Note the exception of a tool on its call.

    Args:
        call: the call of the tool.
        error: the exception of the user's code, or of the validation of arguments.
        function: the user's function behind the tool.
    """
    call.handler_outcome = Outcome(exception_type=type(error).__qualname__[:128])
    call.tool_failure = _kind(error, function)


def note_missing(call: Call, error: BaseException | None) -> None:
    """Note on a call that FastMCP has no such tool, if that is what `error` says."""
    if call.method == "tools/call" and not call.tool_entered and type(error).__name__ in _MISSING:
        call.tool_failure = "unknown_tool"


def _kind(error: BaseException, function: object) -> Failure:
    if isinstance(error, ValidationError):
        return "exception" if was_entered(function, error.__traceback__) else "invalid_arguments"
    if any(base.__name__ == "ToolError" for base in type(error).__mro__):
        return "tool"
    code = protocol_error(error)
    return "exception" if code is None else _BY_CODE.get(code, "tool")


def was_entered(function: object, traceback: TracebackType | None) -> bool:
    """Return whether an exception came from inside the user's function, and not from validating its arguments."""
    while isinstance(function, partial):
        function = function.func  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    code: object = getattr(function, "__code__", None)
    if code is None:
        code = getattr(getattr(type(function), "__call__", None), "__code__", None)  # noqa: B004  # pyright: ignore[reportUnknownArgumentType]
    if code is None:
        return True  # Without code to look for, assume the user's code.
    while traceback is not None:
        if traceback.tb_frame.f_code is code:
            return True
        traceback = traceback.tb_next
    return False
