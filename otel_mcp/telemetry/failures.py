"""Whose fault it is: calls that failed, by how; what the next call put right; and requests that were turned away."""

from __future__ import annotations

from collections import deque
from typing import Any, Final

from otel_mcp import semconv
from otel_mcp.bounded import BoundedNames
from otel_mcp.model.call import Call, client_of
from otel_mcp.model.outcomes import failure_of
from otel_mcp.telemetry.instruments import Instruments
from otel_mcp.telemetry.spans import NO_SPAN
from otel_mcp.wire.jsonrpc import Outcome

_MAX_REMEMBERED: Final = 16
"""Tools of a session whose last failure is remembered."""
_MAX_WAITING: Final = 1000
"""Refusals that wait to be counted."""


class Failures:
    """Classifies failures, and counts them."""

    def __init__(self, instruments: Instruments, tools: BoundedNames, clients: BoundedNames) -> None:
        self._on = instruments
        self._tools = tools
        self._clients = clients
        self._refused: deque[tuple[int, str | None]] = deque()
        self.tools_listed = False
        """The server has listed all its tools."""

    def register(self) -> None:
        """Create the zero-valued series of what is refused most."""
        for status in (400, 401, 403, 404):
            self._on.refused.add(0, {semconv.HTTP_RESPONSE_STATUS_CODE: status}, NO_SPAN)

    def classify(self, call: Call, outcome: Outcome) -> None:
        """Settle how a tool call failed."""
        if call.method == "tools/call":
            call.unlisted = call.unlisted or self._is_unlisted(call)
            call.failure = failure_of(call, outcome, unlisted=call.unlisted)

    def _is_unlisted(self, call: Call) -> bool:
        """Whether the server has listed its tools, and this name is none of them."""
        if not self.tools_listed or call.trusted_name or self._tools.is_full or call.target is None:
            return False
        return len(call.target) <= BoundedNames.LONGEST and call.target not in self._tools.known

    def count(self, call: Call, tool: str | None, *, worked: bool) -> None:
        """Count a finished tool call if it failed, or is the first that works after one in its session.

        Args:
            call: of a tool.
            tool: its name, bounded.
            worked: it is known to have worked.
        """
        session = call.session.conversation or call.session if call.session is not None else None
        failed = session.failed if session is not None else None
        if (failure := call.failure) is not None:
            self._on.failures.add(1, self._attributes(call, tool, failure), NO_SPAN)
            if session is not None and call.target is not None:
                session.failed = failed = failed if failed is not None else {}
                if call.target not in failed and len(failed) >= _MAX_REMEMBERED:
                    del failed[next(iter(failed))]
                failed[call.target] = failure
        elif worked and failed and call.target in failed:
            self._on.corrected.add(1, self._attributes(call, tool, failed.pop(call.target)), NO_SPAN)

    def _attributes(self, call: Call, tool: str | None, failure: str) -> dict[str, Any]:
        attributes: dict[str, Any] = {semconv.GEN_AI_TOOL_NAME: tool, semconv.FAILURE: failure}
        if (client := client_of(call)[0]) is not None:
            attributes[semconv.CLIENT_NAME] = self._clients.bounded(client, proven=False)
        return attributes

    def refuse(self, status: int, client: str | None) -> None:
        """Take a request that HTTP answered with a refusal. Counted later: who has worked before is then known."""
        self._refused.append((status, client))
        if len(self._refused) > _MAX_WAITING:
            self.settle()

    def settle(self) -> None:
        """Count the refusals that have been put off. From any thread."""
        while self._refused:
            try:
                status, client = self._refused.popleft()
            except IndexError:  # Another thread was faster.
                return
            attributes: dict[str, Any] = {semconv.HTTP_RESPONSE_STATUS_CODE: status}
            if client is not None:
                attributes[semconv.CLIENT_NAME] = self._clients.bounded(client, proven=False)
            self._on.refused.add(1, attributes, NO_SPAN)

    def forget(self) -> None:
        """Start again in a forked child: what has been put off is the parent's."""
        self._refused.clear()
