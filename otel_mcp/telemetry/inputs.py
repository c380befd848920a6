"""How what clients are asked becomes measurements: the input that calls wait for, and requests of the server."""

from __future__ import annotations

from otel_mcp import semconv
from otel_mcp.bounded import BoundedNames
from otel_mcp.telemetry.instruments import Instruments
from otel_mcp.telemetry.spans import NO_SPAN


class InputMetrics:
    """Measurements of questions to clients."""

    def __init__(self, on: Instruments, tools: BoundedNames) -> None:
        self._on = on
        self._tools = tools

    def given(self, tool: str, seconds: float) -> None:
        """Measure how long a tool call has waited for input that has come."""
        self._on.input_wait.record(seconds, self._of_tool(tool), NO_SPAN)

    def abandoned(self, tool: str) -> None:
        """Count a tool call whose session is over, and that still waits for input."""
        self._on.input_abandoned.add(1, self._of_tool(tool), NO_SPAN)

    def _of_tool(self, tool: str) -> dict[str, str]:
        # A young process has seen none of its tools work yet, but the store has.
        return {semconv.GEN_AI_TOOL_NAME: self._tools.bounded(tool, proven=False, likely=True)}
