"""The service level objective that dashboards and alerts share.

The alert rules in `grafana/alerts` record the ratios; changing the objective here and there is one
change, which `tests/stack` holds together.
"""

from __future__ import annotations

from typing import Final

OBJECTIVE: Final = 0.997
"""Share of valid tool calls that shall work, over 30 days: what a caller asked wrongly does not count."""
SERVER_FAILED: Final = ("tool", "exception")
"""Kinds of failures that are the server's; all others make a call invalid."""
CALLER_WRONG: Final = ("unknown_tool", "invalid_arguments")
"""Kinds of failures that show what misleads a client."""
WRONG_CALLS: Final = 0.1
"""Share of one tool's calls that one client gets wrong from which a ticket names both."""
STRUGGLING: Final = 0.25
"""Share of one client's sessions that go in circles or give up from which a ticket names it."""
BUDGET: Final = 1 - OBJECTIVE
PAGE_BURN: Final = 14.4
"""At this rate, 2 % of the month's budget go in an hour."""
TICKET_BURN: Final = 6.0
"""At this rate, 5 % of the month's budget go in six hours."""
TOOL_FAILING: Final = 0.1
"""Share of one tool's calls from which an alert names it."""
TOOL_SLOW: Final = 5.0
"""Seconds of one tool's 95th percentile, likewise."""
WINDOWS: Final = ("5m", "30m", "1h", "6h")


def valid_calls(window: str) -> str:
    """Return the recorded series of the rate of valid tool calls."""
    return f"mcp:tool_calls:valid_rate{window}"


def error_ratio(window: str) -> str:
    """Return the recorded series of the share of valid tool calls that failed."""
    return f"mcp:tool_calls:error_ratio_rate{window}"
