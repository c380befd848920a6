"""Content capture: arguments and results, only where the user asked for them, and redacted first."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, Final

from pydantic_core import to_json

from otel_mcp import semconv
from otel_mcp.guard import guarded
from otel_mcp.model.call import Call
from otel_mcp.settings import Settings, captures_content

_MAX: Final = 16_384
"""Characters of one captured value on a span."""


def redactor(name: str | None) -> Callable[[Any], Any]:
    """Load the user's redaction hook.

    A hook that cannot be loaded, or that raises, passes nothing on: what was to be
    redacted must not leave because of a typing error.
    """
    if name is None:
        return lambda value: value
    hook: Callable[[Any], Any] | None = None
    with guarded("redaction hook"):
        module, _, attribute = name.partition(":")
        hook = getattr(import_module(module), attribute)

    def redact(value: Any) -> Any:
        with guarded("redaction hook"):
            return hook(value) if hook is not None else None
        return None

    return redact


def as_attribute(value: Any) -> str:
    """Write a captured value as JSON text, cut to a size that back ends take."""
    return to_json(value, serialize_unknown=True).decode("utf-8", "replace")[:_MAX]


def capturer(settings: Settings) -> Callable[[Any], str | None] | None:
    """Make the function from a value to a span attribute, redacted; ``None`` = nothing may be captured."""
    if not captures_content(settings):
        return None
    redact = redactor(settings.redaction_hook)

    def capture(value: Any) -> str | None:
        redacted = redact(value)
        return None if redacted is None else as_attribute(redacted)

    return capture


def captured(call: Call, name: str, value: Any) -> dict[str, str]:
    """Return the attribute `name` with a value, where the user asked for it and the hook left something."""
    text = call.exchange.capture(value) if call.exchange.capture is not None and value is not None else None
    return {} if text is None else {name: text}


def capture_result(call: Call, result: Any) -> None:
    """Put a result on the span of its call, where the user asked for it."""
    if call.exchange.capture is not None and call.method == "tools/call" and call.span is not None:
        call.span.set_attributes(captured(call, semconv.GEN_AI_TOOL_CALL_RESULT, result))
