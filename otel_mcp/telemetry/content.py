"""Capture arguments and results on spans, if the user opted in, after redaction."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, Final

from pydantic_core import to_json

from otel_mcp import semconv
from otel_mcp.guard import guarded
from otel_mcp.model.call import Call
from otel_mcp.settings import Settings, captures_content

_MAX_LENGTH: Final = 16_384
"""Characters of one captured value on a span."""


def redactor(name: str | None) -> Callable[[Any], Any]:
    """Load the user's redaction hook.

    If the hook cannot be loaded or raises, the value is dropped: a typing error must
    not reveal content.
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
    """Return a captured value as JSON text, cut to a size that back ends accept."""
    return to_json(value, serialize_unknown=True).decode("utf-8", "replace")[:_MAX_LENGTH]


def capturer(settings: Settings) -> Callable[[Any], str | None] | None:
    """Make the function that turns a value into a redacted span attribute; ``None`` = content is not captured."""
    if not captures_content(settings):
        return None
    redact = redactor(settings.redaction_hook)

    def capture(value: Any) -> str | None:
        redacted = redact(value)
        return None if redacted is None else as_attribute(redacted)

    return capture


def captured(call: Call, name: str, value: Any) -> dict[str, str]:
    """Return the attribute `name`, if content is captured and the hook returned a value."""
    text = call.exchange.capture(value) if call.exchange.capture is not None and value is not None else None
    return {} if text is None else {name: text}


def capture_result(call: Call, result: Any) -> None:
    """Put a result on the span of its call, if content is captured."""
    if call.exchange.capture is not None and call.method == "tools/call" and call.span is not None:
        call.span.set_attributes(captured(call, semconv.GEN_AI_TOOL_CALL_RESULT, result))
