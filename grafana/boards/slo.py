"""The service level objective that dashboards and alerts share.

The alert rules in `grafana/alerts` record the ratios, and must be changed together with this file;
`tests/stack` checks that.
"""

from __future__ import annotations

from typing import Final

OBJECTIVE: Final = 0.997
"""Share of valid tool calls that should succeed, over 30 days; wrong calls do not count."""
SERVER_FAILED: Final = ("tool", "exception")
"""Kinds of failures that are the server's; all others make a call invalid."""
CALLER_WRONG: Final = ("unknown_tool", "invalid_arguments")
"""Kinds of failures that are the caller's."""
WRONG_CALLS: Final = 0.1
"""Share of wrong calls of a tool by a client from which an alert fires."""
STRUGGLING: Final = 0.25
"""Share of a client's sessions that go in circles or are given up from which an alert fires."""
BUDGET: Final = 1 - OBJECTIVE
PAGE_BURN: Final = 14.4
"""This rate uses up 2 % of the month's budget in an hour."""
TICKET_BURN: Final = 6.0
"""This rate uses up 5 % of the month's budget in six hours."""
TOOL_FAILING: Final = 0.1
"""Failing share of a tool's calls from which an alert fires."""
TOOL_SLOW: Final = 5.0
"""95th percentile of a tool in seconds from which an alert fires."""
WINDOWS: Final = ("5m", "30m", "1h", "6h")


def valid_calls(window: str) -> str:
    """Return the recorded series of the rate of valid tool calls."""
    return f"mcp:tool_calls:valid_rate{window}"


def error_ratio(window: str) -> str:
    """Return the recorded series of the share of valid tool calls that failed."""
    return f"mcp:tool_calls:error_ratio_rate{window}"
