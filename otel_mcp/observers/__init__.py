"""Observers: code of the user's that gets each finished tool call, in the background."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol

from otel_mcp.model.state import SessionState, ToolCall

ENTRY_POINTS = "otel_mcp_observers"
"""Entry point group that observers are found by."""


class Observer(Protocol):
    """An async callable; a slow, hanging or raising one harms nobody and is counted."""

    def __call__(self, call: ToolCall, session: SessionState) -> Awaitable[None]:
        """Look at one finished call.

        Args:
            call: without arguments and result unless ``OTEL_PYTHON_MCP_STORE_CONTENT`` is on.
            session: what this process knows of the session; its ``tool_calls`` are not filled.
        """
        ...
