"""Content capture: arguments and results, only where the user asked for them, and redacted first."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, Final

from pydantic_core import to_json

from otel_mcp.guard import guarded
from otel_mcp.settings import Settings, captures_content

_MAX: Final = 16_384
"""Characters of one captured value on a span."""


def redactor(name: str | None) -> Callable[[Any], Any]:
    """The user's redaction hook.

    A hook that cannot be loaded, or that raises, lets nothing through: what was
    to be redacted must not leave because of a typing error.
    """
    if name is None:
        return lambda value: value
    hook: Callable[[Any], Any] | None = None
    with guarded("redaction hook"):
        module, _, attribute = name.partition(":")
        hook = getattr(import_module(module), attribute)

    def redact(value: Any) -> Any:
        if hook is None:
            return None
        with guarded("redaction hook"):
            return hook(value)
        return None

    return redact


def as_attribute(value: Any) -> str:
    """A captured value as JSON text, cut to a size that back ends take."""
    return to_json(value, serialize_unknown=True).decode("utf-8", "replace")[:_MAX]


def capturer(settings: Settings) -> Callable[[Any], str | None] | None:
    """What turns a value into a span attribute, redacted; ``None`` = nothing may be captured."""
    if not captures_content(settings):
        return None
    redact = redactor(settings.redaction_hook)

    def capture(value: Any) -> str | None:
        redacted = redact(value)
        return None if redacted is None else as_attribute(redacted)

    return capture
