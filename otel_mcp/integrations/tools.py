"""Patches of the tools of the high-level servers: a tool has been entered, and how it failed.

The SDK turns every exception into a result that is marked as an error, no more.
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
"""What the libraries make of an exception that a tool raised."""
_BY_CODE: Final[dict[int, Failure]] = {-32602: "invalid_arguments", -32603: "exception", 0: "exception"}
"""Kinds of failure by the code of a protocol error that a tool raises; another code is the tool's own."""

Run = Callable[..., Awaitable[Any]]


def tool_base(module: ModuleType, patches: Patches) -> None:
    """Patch the high-level server of the SDK, whose tools wrap what they raise."""
    patches.replace(module.Tool, "run", partial(_run, unwrapped=_from_sdk))


def fastmcp_tool(module: ModuleType, patches: Patches) -> None:
    """Patch FastMCP 3 and 4."""
    if hasattr(module, "Tool"):
        patches.replace(module.Tool, "_run", partial(_run, unwrapped=_from_fastmcp))


def fastmcp2_tool(module: ModuleType, patches: Patches) -> None:
    """Patch FastMCP 2."""
    if "FunctionTool" in vars(module):  # Later versions only warn there that it is elsewhere.
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
            # A tool that it has called had failed, or its first attempt.
            call.tool_failure = call.handler_outcome = None
        return result

    return run


def _from_sdk(error: Exception) -> BaseException:
    return error.__cause__ if type(error).__name__ in _WRAPPERS and error.__cause__ is not None else error


def _from_fastmcp(error: Exception) -> BaseException:
    """Return pydantic's error where FastMCP wrapped one; all else comes as it was raised."""
    return error.__cause__ if isinstance(error.__cause__, ValidationError) else error


def note(call: Call, error: BaseException, function: object) -> None:
    """Take down what a tool raised.

    Args:
        call: the call of the tool.
        error: as the user's code or the validation of its arguments raised it.
        function: what the user gave for a tool.
    """
    call.handler_outcome = Outcome(exception_type=type(error).__qualname__[:128])
    call.tool_failure = _kind(error, function)


def _kind(error: BaseException, function: object) -> Failure:
    if isinstance(error, ValidationError):
        return "exception" if was_entered(function, error.__traceback__) else "invalid_arguments"
    if any(base.__name__ == "ToolError" for base in type(error).__mro__):
        return "tool"
    code = protocol_error(error)
    return "exception" if code is None else _BY_CODE.get(code, "tool")


def was_entered(function: object, traceback: TracebackType | None) -> bool:
    """Return whether the user's function had been entered when an exception was raised.

    Arguments are validated before it is: it has no part in a failure of that.
    """
    while isinstance(function, partial):
        function = function.func  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    code: object = getattr(function, "__code__", None)
    if code is None:
        code = getattr(getattr(type(function), "__call__", None), "__code__", None)  # noqa: B004  # pyright: ignore[reportUnknownArgumentType]
    if code is None:
        return True  # Whatever validates there is the user's.
    while traceback is not None:
        if traceback.tb_frame.f_code is code:
            return True
        traceback = traceback.tb_next
    return False
