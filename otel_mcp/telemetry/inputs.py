"""How what clients are asked becomes measurements: the input that calls wait for, and requests of the server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from otel_mcp import semconv
from otel_mcp.bounded import BoundedNames
from otel_mcp.telemetry.instruments import Instruments
from otel_mcp.telemetry.session_metrics import PROTOCOL_VERSIONS
from otel_mcp.telemetry.spans import NO_SPAN

_MAX_ERRORS: Final = 20
"""Error codes of clients that have label values of their own."""


class InputMetrics:
    """Measurements of questions to clients."""

    def __init__(self, on: Instruments, tools: BoundedNames) -> None:
        self._on = on
        self._tools = tools
        self._errors = BoundedNames(_MAX_ERRORS, ("unanswered", "-1", "-32601", "-32602", "-32603"))

    def given(self, tool: str, seconds: float) -> None:
        """Measure how long a tool call has waited for input that has come."""
        self._on.input_wait.record(seconds, self._of_tool(tool), NO_SPAN)

    def abandoned(self, tool: str) -> None:
        """Count a tool call whose session is over, and that still waits for input."""
        self._on.input_abandoned.add(1, self._of_tool(tool), NO_SPAN)

    def asked(self, method: str, version: str | None, failure: Mapping[str, str], seconds: float) -> None:
        """Measure a request of the server to its client, with the attributes of its failure."""
        attributes = {semconv.MCP_METHOD_NAME: method}
        if version is not None:
            attributes[semconv.MCP_PROTOCOL_VERSION] = version if version in PROTOCOL_VERSIONS else semconv.OTHER
        for key, error in failure.items():  # Any client may make up codes.
            attributes[key] = self._errors.bounded(error, proven=False, likely=True)
        self._on.client_duration.record(seconds, attributes, NO_SPAN)

    def _of_tool(self, tool: str) -> dict[str, str]:
        # A young process has seen none of its tools work yet, but the store has.
        return {semconv.GEN_AI_TOOL_NAME: self._tools.bounded(tool, proven=False, likely=True)}
